"""The adapter to circus, which runs as a plugin of circus. Needs the extra `[circus]`."""

from .plugin import MonitorPlugin

__all__ = ["MonitorPlugin"]
