"""Requests, results and schemas, for HTTP and for the cluster."""
