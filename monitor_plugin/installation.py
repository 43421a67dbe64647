"""A monitor in a host's own plugin manager."""

from __future__ import annotations

import pluggy

from .config.settings import Settings
from .monitor import Monitor


def install(plugin_manager: pluggy.PluginManager, settings: Settings | None = None) -> Monitor:
    """Put a monitor into a host's own plugin manager, under any project name, and start it.

    The hooks become the manager's, and the monitor is registered there as `monitor_plugin`, so that
    `plugin_manager.hook.monitor_backend_spawned(...)` reaches it, and the host implements hooks
    with its own marker. Third parties' hooks keep `monitor_plugin.hookimpl`. Close the monitor to
    take it out again; the hooks' specs stay.

    Args:
        plugin_manager: the host's.
        settings: None reads them from the environment.

    Raises:
        PluginError: the manager holds a monitor that lives, blocks its name, or does not take its
            hooks; nothing is left registered.
        ListenError: the HTTP server cannot listen where the settings say.
    """
    monitor = Monitor(settings, host_manager=plugin_manager)
    monitor.start()
    return monitor
