"""Runs the monitor as a service of systemd."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...concurrency.signals import Signals
from ...config.settings import Settings
from ...domain.errors import MonitorError
from ...monitor import Monitor
from ..discovery import BackendRule
from .adapter import Adapter
from .client import SystemdClient, SystemdError
from .notify import ServiceNotifier


def run(settings: Settings, rules: Sequence[BackendRule], *, user: bool) -> int:
    """Run a monitor of systemd's services, until SIGTERM or SIGINT.

    Args:
        settings: the settings of the monitor.
        rules: the services that are backends, besides those that declare it themselves.
        user: whether to monitor the services of the user's own systemd, and not the system's.

    Returns:
        The exit code.

    Raises:
        MonitorError: a setting cannot be used, or systemd cannot be reached.
    """
    signals = Signals()
    systemd = SystemdClient(user)
    adapter = Adapter(systemd, rules, settings.hook_timeout_seconds)
    try:
        adapter.connect()
        notifier = ServiceNotifier(os.environ, settings)
        with Monitor(settings, [adapter, notifier]) as monitor:
            signals.wait(lambda: notifier.reload(monitor.reload_tokens))
    except SystemdError as error:
        raise MonitorError(str(error)) from None
    finally:
        systemd.close()
    return 0
