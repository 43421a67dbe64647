"""Loading, checking and calling hooks."""
