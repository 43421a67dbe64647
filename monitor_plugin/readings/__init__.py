"""Readings of one backend, of a model, and of all backends."""
