"""Moved to `monitor_plugin.config.settings`."""

from monitor_plugin.config.settings import *  # noqa: F403
