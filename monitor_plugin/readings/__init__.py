"""A status or a sample of one backend, of a model, and of all backends."""
