"""LocalAI's gRPC protocol: channels, calls and messages."""
