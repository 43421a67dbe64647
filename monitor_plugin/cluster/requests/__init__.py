"""Requests to other nodes, and the answers to theirs."""
