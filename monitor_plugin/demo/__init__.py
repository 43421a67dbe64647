"""The demos: a real gRPC backend, a small host that spawns it, a real host, and a cluster."""
