"""Requests, results and schemas, whatever the transport."""
