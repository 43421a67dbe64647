"""Adapters to real hosts: each tells a monitor what runs there, and stops it by its host's books."""
