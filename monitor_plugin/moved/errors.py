"""Moved to `monitor_plugin.domain.errors`."""

from monitor_plugin.domain.errors import *  # noqa: F403
