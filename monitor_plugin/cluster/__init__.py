"""Reads and stops the models of several machines, over NATS."""
