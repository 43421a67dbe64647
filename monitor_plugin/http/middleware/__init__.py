"""Falcon middleware: the guard, the audit and the header with the node's name."""
