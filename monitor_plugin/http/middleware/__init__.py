"""Falcon middleware: the guard and the audit."""
