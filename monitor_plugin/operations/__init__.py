"""Starts and restarts of models, and the order of the starts and shutdowns of one model."""
