"""The adapter to circus, which runs as its plugin. Needs the extra `[circus]`."""

from .adapter import MonitorPlugin

__all__ = ["MonitorPlugin"]
