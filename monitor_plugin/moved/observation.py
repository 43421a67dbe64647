"""Moved to `monitor_plugin.domain.models`."""

from monitor_plugin.domain.models import Observation, ProcessUsage, TreeUsage

__all__ = ["Observation", "ProcessUsage", "TreeUsage"]
