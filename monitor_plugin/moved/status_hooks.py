"""Moved to `monitor_plugin.hook_support.status_hooks`."""

from monitor_plugin.hook_support.status_hooks import *  # noqa: F403
