"""The adapter to supervisord, which runs as an event listener of supervisord."""
