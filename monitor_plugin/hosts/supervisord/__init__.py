"""The adapter to supervisord, which runs as its event listener."""
