"""Falcon middleware: the guard, the audit and the name of the node."""
