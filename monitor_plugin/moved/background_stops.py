"""Moved to `monitor_plugin.hook_support.background_stops`."""

from monitor_plugin.hook_support.background_stops import *  # noqa: F403
