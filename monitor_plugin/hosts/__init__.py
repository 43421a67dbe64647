"""Adapters to real hosts: each tells a monitor what runs, and stops it by the host's books."""
