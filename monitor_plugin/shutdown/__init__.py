"""The stop of one backend, and the shutdown of a model."""
