"""Merges the answers of several nodes into one."""
