"""Moved to `monitor_plugin.hook_support.delivery`."""

from monitor_plugin.hook_support.delivery import *  # noqa: F403
