"""The registered backends: registry, registration, exits and counters."""
