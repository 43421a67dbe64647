"""Sends requests to other nodes, and serves theirs."""
