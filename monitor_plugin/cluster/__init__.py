"""More than one machine: one view and one stop, over NATS."""
