"""Moved to `monitor_plugin.domain.models`."""

from monitor_plugin.domain.models import *  # noqa: F403
