"""The adapter to systemd, which runs as a service of systemd."""
