"""The monitor: wires everything together, for a host to hold."""

from __future__ import annotations

import enum
import math
import os
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import falcon
import grpc
import pluggy

from .errors import MonitorError, SettingsError
from .hook_files import load_hook_files
from .hookspecs import PROJECT_NAME
from .host_manager import HostCalls, HostManager
from .http.app import create_app
from .http.audit import audited_shutdown
from .http.server import Server
from .inventory import list_plugins
from .models import Backend, LoadedPlugin, Reading
from .names import checked_model
from .observation import Observation
from .plugins import PluginManager
from .settings import Settings
from .shared import Shared
from .tokens import Tokens
from .wiring import Parts

if TYPE_CHECKING:
    from .cluster.node import ClusterNode


class Monitor:
    """Watches a host's backends, and serves what it knows over HTTP.

    Installs no signal handlers and configures no logging. To be used in a `with`, or by `start()`
    and `close()`.

    Args:
        settings: None reads them from the environment.
        plugins: plugins to register, implemented with `monitor_plugin.hookimpl`.
        host_manager: a host's own plugin manager; `install()` gives it.

    Raises:
        SettingsError: a setting cannot be used.
        PluginError: a plugin cannot be used.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        plugins: Iterable[object] = (),
        *,
        host_manager: pluggy.PluginManager | None = None,
    ) -> None:
        settings = Settings.from_environment(os.environ) if settings is None else settings
        self._settings = settings
        self._tokens = Tokens(settings.token, settings.token_file)
        self._plugin_manager = PluginManager(settings.disable_hook)
        self._host = HostManager(host_manager) if host_manager else None
        self._host_manager = host_manager
        managers = (
            [self._plugin_manager] if host_manager is None else [host_manager, self._plugin_manager]
        )
        self._parts = Parts(settings, managers)
        self._plugin_manager.register_monitor(HostCalls(PROJECT_NAME, self._parts.lifecycle))
        for plugin in plugins:
            self._plugin_manager.register_from("plugins=", plugin)
        load_hook_files(
            settings.hooks_dir,
            settings.hook,
            self._plugin_manager.register_from,
            self._plugin_manager.is_disabled,
        )
        self._plugin_manager.load_entry_points()
        self._plugin_manager.log_unknown_disabled()
        self._lock = threading.Lock()
        self._phase = _Phase.NEW
        self._app = Shared(math.inf, self._make_app)  # once, and not before the plugins are there
        self._server: Server | None = None
        self._cluster: ClusterNode | None = None
        if settings.cluster is not None:
            self._cluster = _join_cluster(settings, self._parts)

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start watching and serving; once started, does nothing.

        Raises:
            ListenError: the HTTP server cannot listen where the settings say.
            PluginError: the host's manager does not take the monitor.
            MonitorError: it was closed, and cannot be started again.
        """
        app = self.app
        with self._lock:
            if self._phase is _Phase.STARTED:
                return
            if self._phase is _Phase.CLOSED:
                raise MonitorError("the monitor was closed; make a new one")
            if self._host:
                self._host.register(self._parts.lifecycle)
            try:
                if self._settings.listen is not None:
                    self._server = Server(
                        app, self._settings.listen, self._settings, self._parts.waits
                    )
            except BaseException:
                if self._host:
                    self._host.unregister()
                raise
            self._parts.start()
            if self._cluster:
                self._cluster.start(self._server.url if self._server else None)
            self._phase = _Phase.STARTED
        self._parts.hooks.started(self)

    def close(self) -> None:
        """Stop watching and serving, and let go of every thread and descriptor.

        Backends are left alone; a shutdown that is under way reports what is left of its model.
        Once closed, does nothing.
        """
        with self._lock:
            previous, self._phase = self._phase, _Phase.CLOSED
        if previous is _Phase.CLOSED:
            return
        self._parts.sweeper.stop()
        if previous is _Phase.STARTED:
            self._parts.hooks.closing()
        self._parts.shutdowns.close()
        self._parts.journal.close()
        if self._cluster:
            self._cluster.close()
        if self._server:
            self._server.close()
        self._parts.close()
        if self._host:
            self._host.unregister()

    @property
    def url(self) -> str:
        """Where the HTTP server answers, with the port that was picked, without a slash at the end.

        Raises:
            MonitorError: there is no server: the monitor was not started, or `listen` is None.
        """
        if self._server is None:
            raise MonitorError(
                "there is no HTTP server: not started, or the setting listen is None"
            )
        return self._server.url

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks, for the host to call: `hook.monitor_backend_spawned(model=..., ...)`."""
        return self._plugin_manager.hook

    @property
    def plugin_manager(self) -> PluginManager:
        """The monitor's own manager, where third parties' plugins are registered."""
        return self._plugin_manager

    @property
    def app(self) -> falcon.App[Any, Any]:
        """The WSGI application, for a host that has its own server."""
        return self._app.get()

    def _make_app(self) -> falcon.App[Any, Any]:
        is_ready = lambda: self._phase is _Phase.STARTED  # noqa: E731
        elsewhere = self._cluster.whole if self._cluster else None
        app = create_app(
            self._parts, is_ready, self.plugins, self._settings, self._tokens, elsewhere
        )
        self._parts.hooks.add_routes(app)
        return app

    def backends(self) -> list[Backend]:
        """List the registered backends, in the order of their registration."""
        return [record.backend for record in self._parts.registry.records()]

    def plugins(self) -> list[LoadedPlugin]:
        """List the plugins, where they come from and how their hooks fared, as `/hooks` does."""
        return list_plugins(self._parts.isolation, self._plugin_manager, self._host_manager)

    def read(self, model: str, pid: int | None = None) -> Reading:
        """Read a model, or one of its backends, as `/backend/monitor` does.

        Raises:
            InvalidRequest: that cannot be a model's name; `PidNotHeld`: it has no such backend.
            ModelNotLoaded: no backend of it is registered.
            BackendUnreadable: its status failed, and its process cannot be read.
        """
        return self._parts.model_readings.read(checked_model(model), pid, anew=True).reading

    def sweep(self, model: str | None = None, fresh: bool = True) -> list[Observation]:
        """Read all backends at the same time, or those of a model, as `/backends` does.

        Args:
            model: whose.
            fresh: read them now; else what the last sweep found is given.
        """
        sweeper = self._parts.sweeper
        return sweeper.sweep(model) if fresh else sweeper.last(model)

    def shutdown(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
    ) -> None:
        """Stop a model's backends, or one, as `/backend/shutdown` does; return once it is gone.

        Args:
            model: whose.
            force: do not wait for busy backends, and overrule hooks that refuse by an error.
            pid: the one to stop; None for all.
            spare_busy: fail where one is busy still when the time to wait for that is over, unless
                somebody else asks for the same without this.

        Raises:
            InvalidRequest: that cannot be a model's name; `PidNotHeld`: it has no such backend.
            ModelNotLoaded: no backend of it is registered.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: processes are left, or the host started the model again.
        """
        with audited_shutdown(model, force, pid):
            self._parts.shutdowns.shutdown(checked_model(model), force, pid, spare_busy)

    def stopping(self) -> list[Backend]:
        """List the backends for which a shutdown is under way."""
        return self._parts.shutdowns.stopping()

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown is under way that was asked for this backend alone, by its PID."""
        return self._parts.shutdowns.stops_one(backend)

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Make a gRPC channel to a backend as the monitor's own: with its TLS, and by no proxy.

        For hooks that speak another protocol. It connects at its first call; who asked closes it.

        Raises:
            ValueError: the address is not local, and nothing says how to protect it.
        """
        return self._parts.status_client.open_channel(backend)

    def call_metadata(self, backend: Backend) -> Mapping[str, str]:
        """Give the metadata of the monitor's own calls to a backend: from hooks, and its token."""
        return self._parts.status_client.metadata(backend)

    def reload_tokens(self) -> None:
        """Read the file of the setting `token_file` now; what changes is also noticed by itself.

        A file that cannot be used is logged, and the tokens that it held before stay valid.
        """
        self._tokens.reload()


def _join_cluster(settings: Settings, parts: Parts) -> ClusterNode:
    try:
        from .cluster.node import ClusterNode  # which needs what is not always installed
    except ImportError as error:
        raise SettingsError(
            "cluster", f"setting cluster: {error}: pip install 'monitor-plugin[cluster]'"
        ) from None
    return ClusterNode(settings, parts)


class _Phase(enum.Enum):
    NEW = "new"
    STARTED = "started"
    CLOSED = "closed"
