"""Moved to `monitor_plugin.hook_support.idleness`."""

from monitor_plugin.hook_support.idleness import *  # noqa: F403
