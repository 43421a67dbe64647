"""Tables and live screens."""
