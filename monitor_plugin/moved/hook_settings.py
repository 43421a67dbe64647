"""Moved to `monitor_plugin.hook_support.settings`."""

from monitor_plugin.hook_support.settings import *  # noqa: F403
