"""What a monitor is made of, put together."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pluggy

from .channel_security import ChannelSecurity
from .events import Events
from .history import History
from .hooks import Hooks
from .isolation import Isolation
from .journal import Journal
from .lifecycle import Lifecycle
from .logs import log_event
from .model_counts import ModelCounter
from .model_readings import ModelReadings
from .process_table import ProcessTable
from .readings import Readings
from .registry import Registry
from .settings import Settings
from .shutdown import Shutdowns
from .status_client import StatusClient
from .stopping import Stopper
from .sweep import Sweeper
from .tree_figures import TreeReader
from .waits import Waits


class Parts:
    """The parts of one monitor, each of which gets those that it works with.

    Args:
        settings: the monitor's.
        managers: where hooks are implemented; the first manager's are called first.
    """

    def __init__(self, settings: Settings, managers: Sequence[pluggy.PluginManager]) -> None:
        security = ChannelSecurity(settings)
        self.isolation = isolation = Isolation(managers)
        table = ProcessTable()
        self.journal = Journal(time.time())
        self.history = History(settings.sweep_interval_seconds)
        self.registry = Registry()
        self.model_counter = ModelCounter(self.registry)
        self.events = Events(isolation, settings.hook_timeout_seconds, log_event)
        self.hooks = Hooks(isolation, self.events, self.journal, settings.hook_timeout_seconds)
        self.waits = Waits()
        self.status_client = StatusClient(
            settings.status_timeout_seconds, self.hooks.call_metadata, security, self.waits
        )
        self.lifecycle = Lifecycle(
            self.registry, table, self.status_client, self.hooks, self.model_counter, security
        )
        self.readings = Readings(
            self.registry, self.status_client, table, self.hooks, settings.status_timeout_seconds
        )
        self.model_readings = ModelReadings(
            self.registry, self.lifecycle, self.readings, settings.reading_max_age_seconds
        )
        self.sweeper = Sweeper(
            self.registry,
            self.lifecycle,
            self.readings,
            self.status_client,
            TreeReader(table),
            self.hooks,
            self.history,
            settings,
        )
        stopper = Stopper(
            self.registry,
            self.lifecycle,
            self.readings,
            self.status_client,
            self.hooks,
            settings,
        )
        self.shutdowns = Shutdowns(
            self.registry,
            self.lifecycle,
            stopper,
            self.hooks,
            self.journal,
            self.model_counter,
            settings.respawn_watch_seconds,
        )

    def start(self) -> None:
        """Start what works in the background."""
        self.events.start()
        self.lifecycle.start()
        self.sweeper.start()

    def close(self) -> None:
        """End what works in the background, and let go of every thread and descriptor."""
        self.sweeper.stop()
        self.lifecycle.close()
        self.status_client.close()
        self.sweeper.close()
        self.events.close()
        self.isolation.close()
