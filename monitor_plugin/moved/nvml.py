"""Moved to `monitor_plugin.hook_support.nvml`."""

from monitor_plugin.hook_support.nvml import *  # noqa: F403
