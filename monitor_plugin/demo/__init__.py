"""What `monitor-plugin demo` runs: a backend that is real, and a small host that spawns it."""
