"""NATS: the connection, subjects, messages and pending requests."""
