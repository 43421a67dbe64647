"""Moved to `monitor_plugin.domain.observation`."""

from monitor_plugin.domain.observation import *  # noqa: F403
