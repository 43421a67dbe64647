"""Installs a monitor in a host's own plugin manager."""

from __future__ import annotations

import pluggy

from .config.settings import Settings
from .monitor import Monitor


def install(plugin_manager: pluggy.PluginManager, settings: Settings | None = None) -> Monitor:
    """Register a monitor with a host's own plugin manager, of any project name, and start it.

    The hook specifications are added to the manager, and the monitor is registered there as
    `monitor_plugin`. The host then calls `plugin_manager.hook.monitor_backend_spawned(...)`, and
    implements hooks with its own marker. Hooks of third parties keep `monitor_plugin.hookimpl`.
    Closing the monitor unregisters it; the specifications stay.

    Args:
        plugin_manager: the host's plugin manager.
        settings: the settings; None reads them from the environment.

    Raises:
        PluginError: the manager has another running monitor, blocks the name, or does not accept
            the hooks.
        ListenError: the HTTP server cannot listen at the address of the setting `listen`.
        Exception: what `Monitor(...)` and `Monitor.start` raise. After any exception, no monitor
            stays registered or running.
    """
    monitor = Monitor(settings, host_manager=plugin_manager)
    try:
        monitor.start()
    except BaseException:
        monitor.close()
        raise
    return monitor
