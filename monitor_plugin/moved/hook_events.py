"""Moved to `monitor_plugin.hook_support.events`."""

from monitor_plugin.hook_support.events import *  # noqa: F403
