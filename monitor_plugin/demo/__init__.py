"""The parts of `monitor-plugin demo`: a real gRPC backend, and a small host that spawns it."""
