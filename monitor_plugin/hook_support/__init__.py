"""Building blocks for hook files: settings, idleness, background stops, delivery of events."""
