"""Moved to `monitor_plugin.hook_support.signed_post`."""

from monitor_plugin.hook_support.signed_post import *  # noqa: F403
