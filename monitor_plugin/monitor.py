"""The monitor: creates, connects, starts and closes all parts."""

from __future__ import annotations

import enum
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import falcon
import grpc
import pluggy

from .api.audit import audited, audited_shutdown
from .api.doctor import Doctor
from .api.gpus import GpuLister
from .api.lister import Lister
from .api.member_lister import MemberLister
from .backends.counters import ModelCounter
from .backends.exits import ExitRecorder
from .backends.left_behind import LeftBehindTracker
from .backends.log_reader import LogReader
from .backends.postmortems import PostMortemMaker
from .backends.refusals import Refusals
from .backends.registration import Registration
from .backends.registry import Registry
from .concurrency.blocking import BlockingObserver
from .concurrency.closing import close_all
from .concurrency.single_flight import SingleFlight
from .concurrency.thread_pool import ThreadPool
from .config.settings import Settings
from .config.tokens import Tokens
from .domain.errors import MonitorError, SettingsError
from .domain.fits import Fit
from .domain.gpus import Gpu
from .domain.known_models import KnownModel
from .domain.model_name import validate_model_name
from .domain.models import Backend, LoadedPlugin, Observation, Reading
from .domain.peaks import ModelPeaks
from .gpu.providers import make_providers
from .gpu.reader import GpuReader
from .hookspecs import PROJECT_NAME
from .http.app import create_app
from .http.resources.metrics import MetricsSource
from .http.server.server import Server
from .operations.known_models import KnownModels
from .operations.model_operations import ModelOperations
from .operations.starter import ModelStarter
from .plugins.event_queue import EventQueue
from .plugins.executor import HookExecutor
from .plugins.file_loader import load_hook_files
from .plugins.hooks import Hooks
from .plugins.host_manager import HostCalls, HostManager
from .plugins.manager import PluginManager
from .processes.control_groups import ControlGroups
from .processes.kernel import KernelProbe
from .processes.limits import LimitsReader
from .processes.member_pidfds import MemberPidfds
from .processes.members import MemberTable
from .processes.output_files import OutputFileTable
from .processes.sockets import SocketTable
from .processes.usage import UsageReader
from .processes.visibility import find_unseen
from .readings.address_check import AddressCheck
from .readings.backend_reader import BackendReader
from .readings.fit_checker import FitChecker
from .readings.memory_reader import MemoryReader
from .readings.model_reader import ModelReader
from .readings.sweeper import Sweeper
from .readings.unit_reader import UnitReader
from .rpc.channels import ChannelSecurity
from .rpc.client import StatusClient
from .shutdown.address_verifier import AddressVerifier
from .shutdown.coordinator import ShutdownCoordinator
from .shutdown.memory_release import MemoryRelease
from .shutdown.stop import Stopper
from .status_protocols.transports import Transports
from .telemetry.event_log import EventLog
from .telemetry.log_lines import log_event
from .telemetry.peaks import PeakStore
from .telemetry.time_series import TimeSeries

if TYPE_CHECKING:
    from .cluster.node import ClusterNode

_logger = logging.getLogger(__name__)


class Monitor:
    """Monitors the backends of a host, and serves their readings over HTTP.

    Installs no signal handlers and configures no logging. Use it in a `with` statement, or call
    `start()` and `close()`.

    Args:
        settings: the settings; None reads them from the environment.
        plugins: plugins to register, implemented with `monitor_plugin.hookimpl`.
        host_manager: the host's own plugin manager, which `install()` passes.

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
        self._services = _Services(settings, managers)
        registration = self._services.registration
        self._plugin_manager.register_monitor(
            HostCalls(PROJECT_NAME, registration.spawned, registration.exited)
        )
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
        self._pid: int | None = None  # of the process that called `start`
        self._app = SingleFlight(math.inf, self._make_app)  # created once, after the plugins
        self._server: Server | None = None
        self._cluster: ClusterNode | None = None
        if settings.cluster is not None:
            self._cluster = _join_cluster(settings, self._services)

    def __enter__(self) -> Monitor:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start monitoring and serving. A second call does nothing.

        After an exception, nothing stays bound or running, and the monitor is not registered with
        the host's plugin manager. The backends stay registered, no plugin was called with
        `monitor_started`, and `start` may be called again. After Ctrl-C the monitor is closed
        instead.

        Raises:
            ListenError: the HTTP server cannot listen at the address of the setting `listen`.
            PluginError: the monitor cannot be registered with the host's plugin manager.
            MonitorError: the monitor was closed, and cannot be started again.
            OSError, RuntimeError: the system has no file descriptor or no thread left.
        """
        app = self.app
        try:
            with self._lock:
                if self._phase is _Phase.STARTED:
                    return
                if self._phase is _Phase.CLOSED:
                    raise MonitorError("the monitor was closed; make a new one")
                try:
                    self._start_parts(app)
                except Exception:
                    self._stop_parts()
                    raise
                self._phase = _Phase.STARTED
            self._services.hooks.started(self)
        except Exception:
            raise
        except BaseException:
            # Ctrl-C: a thread may run although its start was interrupted, and a plugin may know
            # that the monitor has started.
            self.close()
            raise

    def _start_parts(self, app: falcon.App[Any, Any]) -> None:
        services, listen = self._services, self._settings.listen
        self._pid = os.getpid()
        if self._host:
            self._host.register(services.registration.spawned, services.registration.exited)
        if listen is not None:
            self._server = Server(app, listen, self._settings, services.blocking_observer)
        services.start()
        if self._cluster:  # last, as it cannot be started again after its `close`
            self._cluster.start(self._server.url if self._server else None)

    def _stop_parts(self) -> None:
        """Undo a start that failed. The parts can be started again."""
        server, self._server = self._server, None
        close_all(
            *([server.close] if server else []),
            self._services.stop,
            *([self._host.unregister] if self._host else []),
        )

    def close(self) -> None:
        """Stop monitoring and serving, and release every thread and descriptor.

        Backends keep running. A shutdown in progress ends with an error that lists the processes
        that still run. If a part cannot be closed, that is logged, and the others are closed. A
        second call does nothing, nor does a call in a forked child of the process that started the
        monitor.
        """
        if self._pid not in (None, os.getpid()):  # the child shares the parent's sockets and pipes
            return
        with self._lock:
            previous, self._phase = self._phase, _Phase.CLOSED
        if previous is _Phase.CLOSED:
            return
        services = self._services
        close_all(
            services.sweeper.stop,
            *([services.hooks.closing] if previous is _Phase.STARTED else []),
            services.operations.close,
            services.shutdown_coordinator.close,
            services.event_log.close,
            *([self._cluster.close] if self._cluster else []),
            *([self._server.close] if self._server else []),
            services.close,
            *([self._host.unregister] if self._host else []),
        )

    @property
    def url(self) -> str:
        """The URL of the HTTP server, with the actual port, without a slash at the end.

        Raises:
            MonitorError: the monitor was not started, or the setting `listen` is None.
        """
        if self._server is None:
            raise MonitorError(
                "there is no HTTP server: not started, or the setting listen is None"
            )
        return self._server.url

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks that the host calls, as `hook.monitor_backend_spawned(model=..., ...)`."""
        return self._plugin_manager.hook

    @property
    def plugin_manager(self) -> PluginManager:
        """The monitor's own plugin manager, which has the plugins of third parties."""
        return self._plugin_manager

    @property
    def app(self) -> falcon.App[Any, Any]:
        """The WSGI application, for a host that serves it with its own server."""
        return self._app.get()

    def _make_app(self) -> falcon.App[Any, Any]:
        services = self._services
        gpu_lister = GpuLister(services.registry, services.member_table, services.gpu_reader)
        app = create_app(
            self._settings,
            self._tokens,
            read=services.model_reader.read,
            shutdown=services.operations.shutdown,
            start=services.operations.start,
            is_loaded=services.operations.is_loaded,
            restart=services.operations.restart,
            lister=Lister(
                services.registry,
                services.refusals,
                services.sweeper,
                services.shutdown_coordinator,
                services.limits_reader,
                gpu_lister,
                services.known_models,
                services.unit_reader,
            ),
            read_log=services.log_reader.read,
            find_exit=services.registry.find_exit,
            member_lister=MemberLister(
                services.registry, services.exit_recorder, services.usage_reader
            ),
            read_gpus=gpu_lister.read,
            event_log=services.event_log,
            time_series=services.time_series,
            peaks=services.peaks,
            check_fit=services.fit_checker.check,
            metrics=MetricsSource(
                services.sweeper.sweep_with_gpus,
                gpu_lister.list,
                services.status_client.counts,
                services.model_counter.counts,
                services.registry.last_exits,
                self.plugins,
                services.limits_reader.own,
                services.known_models.known,
                services.unit_reader.read,
            ),
            is_ready=lambda: self._phase is _Phase.STARTED,
            unseen=services.unseen,
            examine=services.doctor.examine,
            plugins=self.plugins,
            blocking=services.blocking_observer,
            cluster=self._cluster.service if self._cluster else None,
        )
        services.hooks.add_routes(app)
        return app

    def backends(self) -> list[Backend]:
        """List the registered backends, in the order of their registration."""
        return [record.backend for record in self._services.registry.records()]

    def plugins(self) -> list[LoadedPlugin]:
        """List the plugins, their sources and the statistics of their hooks, as `/hooks` does."""
        services = self._services
        return self._plugin_manager.list_plugins(
            services.hook_executor, services.event_queue, self._host_manager
        )

    def read(self, model: str, pid: int | None = None) -> Reading:
        """Read a model, or one of its backends, as `/backend/monitor` does.

        Raises:
            InvalidRequest: `model` cannot be the name of a model.
            PidNotHeld: the model has no backend with that PID.
            ModelNotLoaded: the model has no backend.
            BackendUnreadable: the status request failed, and the process cannot be read.
        """
        return self._services.model_reader.read(validate_model_name(model), pid, fresh=True).reading

    def sweep(self, model: str | None = None, fresh: bool = True) -> list[Observation]:
        """Read all backends at the same time, or those of a model, as `/backends` does.

        Args:
            model: the name of the model; None reads all backends.
            fresh: read the backends now; if False, return what the last sweep found.
        """
        sweeper = self._services.sweeper
        return sweeper.sweep(model) if fresh else sweeper.last_sweep(model)

    def gpus(self) -> list[Gpu]:
        """List the GPUs, with the processes that use them, read at most a second ago.

        If a driver has not answered within a second, its last answer is used. `GET /gpus` also
        tells which backends use each GPU, and the age of the figures.
        """
        return list(self._services.gpu_reader.read().gpus)

    def peaks(self, model: str | None = None) -> list[ModelPeaks]:
        """Return the peaks of one model, or of all models, like `GET /models/peaks`."""
        return self._services.peaks.read(model)

    def fits(self, model: str) -> Fit:
        """Tell whether one more backend of a model fits into the free memory, like `GET /fits`.

        Raises:
            InvalidRequest: `model` cannot be the name of a model.
        """
        return self._services.fit_checker.check(validate_model_name(model))

    def shutdown(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
    ) -> None:
        """Stop a model's backends, or one of them, as `/backend/shutdown` does, and verify it.

        Args:
            model: the name of the model.
            force: do not wait for busy backends, and overrule hooks that refuse because of an
                error.
            pid: the PID of the backend to stop, which may have ended; None stops all.
            spare_busy: fail if a backend is still busy when the drain ends, unless another caller
                requests the same shutdown without this.

        Raises:
            InvalidRequest: `model` cannot be the name of a model.
            PidNotHeld: the model has no backend with that PID.
            ModelNotLoaded: the model has no backend, and none left a process behind.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: processes are left, an address is still served, or the host started the
                model again.
        """
        with audited_shutdown(model, force, pid) as audit:
            audit.freed = self._services.operations.shutdown(
                validate_model_name(model), force, pid, spare_busy
            )

    def start_model(self, model: str, timeout_seconds: float | None = None) -> None:
        """Start a model through its host, and wait until it is ready, as `/backend/load` does.

        Returns immediately if a backend of the model is ready.

        Args:
            model: the name of the model.
            timeout_seconds: the maximum time, with the wait for a shutdown or another start of the
                model that began before; None: the setting `start_timeout_seconds`.

        Raises:
            InvalidRequest: `model` cannot be the name of a model.
            StartFailed: no host knows the model, it did not become ready, or a shutdown by force or
                the end of the monitor ended the wait.
        """
        with audited("Monitor.start_model", {"model": model}, "loaded"):
            self._services.operations.start(validate_model_name(model), timeout_seconds)

    def restart_model(
        self,
        model: str,
        force: bool = False,
        pid: int | None = None,
        *,
        spare_busy: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Stop a model as `shutdown` does, and start it as `start_model` does.

        A model that is not loaded is only started. With replicas, it waits until as many of them
        are ready as there were.

        Args:
            model: the name of the model.
            force: as for `shutdown`.
            pid: the PID of the only backend to stop; None stops all.
            spare_busy: as for `shutdown`.
            timeout_seconds: the maximum time of the start alone; None: the setting
                `start_timeout_seconds`.

        Raises:
            InvalidRequest: `model` cannot be the name of a model.
            PidNotHeld: the model has no backend with that PID.
            ShutdownRefused: a hook refused; nothing was stopped.
            ShutdownFailed: the model was not stopped, and not started.
            StartFailed: the model was stopped, and did not become ready again; or no host can start
                models, and it was not stopped.
        """
        arguments = {"model": model, "force": force, "pid": pid}
        with audited("Monitor.restart_model", arguments, "restarted"):
            self._services.operations.restart(
                validate_model_name(model),
                force,
                pid,
                spare_busy=spare_busy,
                timeout_seconds=timeout_seconds,
            )

    def known_models(self) -> list[KnownModel]:
        """List the models that the host can run, as its hook `monitor_list_models` lists them."""
        return self._services.known_models.known()

    def report_watchdog(self, backend: Backend, watchdog: str, action: str, reason: str) -> None:
        """Report what a watchdog has found, and what it does: see `monitor_watchdog_acted`."""
        self._services.hooks.watchdog_acted(backend, watchdog, action, reason)

    def adopt_process(self, backend: Backend, pid: int) -> None:
        """Replace the registered process of a backend; its model and address stay the same.

        For example a container, whose process is no descendant of the client `docker run` that a
        host has registered. The former process and its members stay members of the backend, and no
        exit is recorded. From then on the end of the new process is the end of the backend. The
        host goes on knowing the former PID: if it registers that PID again, or reports its exit,
        the call is about the backend of the new process. In the ten seconds after the end of the
        new process, the former one is not registered again, because it is about to end. A reading
        or a shutdown of this backend alone needs the new PID.

        Args:
            backend: a registered backend, as `backends()` lists it or as a hook got it.
            pid: the process. It need not be related to the registered one, must run, and may be the
                registered one, which changes nothing.

        Raises:
            InvalidBackend: the backend is not registered any more, or has another process by now;
                the PID is no integer, 0, 1, that of the monitor or of its ancestor, or that of
                another backend; the process does not run; or a shutdown of the backend is in
                progress. Nothing was changed.
        """
        self._services.registration.adopt(backend, pid)

    def host_pid(self, pid: int) -> int:
        """Return the PID by which the host knows the backend with a PID.

        It is another one if `adopt_process` has replaced the process that the host registered. For
        a PID of no registered backend, it is that PID.
        """
        return self._services.registration.host_pid(pid)

    def stopping(self) -> list[Backend]:
        """List the backends that a shutdown is stopping."""
        return self._services.shutdown_coordinator.stopping()

    def stops_one(self, backend: Backend) -> bool:
        """Whether a shutdown of this backend alone, by its PID, is in progress."""
        return self._services.shutdown_coordinator.stops_one(backend)

    def open_channel(self, backend: Backend) -> grpc.Channel:
        """Open a gRPC channel to a backend with the monitor's own options: its TLS, and no proxy.

        For hooks that use another protocol. The channel connects at its first call. The caller
        closes it.

        Raises:
            ValueError: the address is a URL, or it is not local, and no setting protects or allows
                calls to it.
        """
        return self._services.status_client.open_channel(backend)

    def call_metadata(self, backend: Backend) -> Mapping[str, str]:
        """Return the metadata for calls to a backend: the metadata of hooks, and the token."""
        return self._services.status_client.metadata(backend)

    def log_refusal(self, backend: Backend, method: str) -> None:
        """Log that a backend answered a hook's call of a method with UNAUTHENTICATED.

        A backend's refusals of hooks' calls and of the monitor's own calls are logged once. A
        refusal of `Status` is logged again if the backend has answered `Status` meanwhile. The log
        names the setting `grpc_token_file`.
        """
        self._services.status_client.log_refusal(backend, method)

    def reload_tokens(self) -> None:
        """Read the file of the setting `token_file` now; changes are also noticed automatically.

        If the file cannot be used, that is logged, and the previous tokens stay valid.
        """
        self._tokens.reload()


class _Services:
    """The parts of one monitor, connected with each other.

    Args:
        settings: the settings of the monitor.
        managers: the plugin managers; the hooks of the first one are called first.
    """

    def __init__(self, settings: Settings, managers: Sequence[pluggy.PluginManager]) -> None:
        security = ChannelSecurity(settings)
        self.member_pidfds = MemberPidfds()
        groups = ControlGroups()
        table = self.member_table = MemberTable(pidfds=self.member_pidfds, control_groups=groups)
        limits = self.limits_reader = LimitsReader(groups)
        self.kernel_probe = KernelProbe()
        self.unseen = find_unseen()
        pool = self.thread_pool = ThreadPool("monitor-worker")
        executor = self.hook_executor = HookExecutor(managers)
        events = self.event_log = EventLog(time.time())
        series = self.time_series = TimeSeries(settings.sweep_interval_seconds)
        peaks = self.peaks = PeakStore(settings.state_file)
        registry = self.registry = Registry()
        counter = self.model_counter = ModelCounter(registry)
        hook_seconds = settings.hook_timeout_seconds
        self.event_queue = EventQueue(executor, hook_seconds, log_event)
        hooks = self.hooks = Hooks(executor, self.event_queue, events, hook_seconds)
        gpus = self.gpu_reader = GpuReader(
            make_providers(settings.gpu), hooks.list_gpus, hooks.may_list_gpus
        )
        self.blocking_observer = BlockingObserver()
        status_seconds = settings.status_timeout_seconds
        client = self.status_client = StatusClient(
            status_seconds,
            hooks.call_metadata,
            security,
            self.blocking_observer,
            Transports(settings, security).choose,
        )
        usage = self.usage_reader = UsageReader(table)
        known_models = self.known_models = KnownModels(registry, hooks)
        self.unit_reader = UnitReader(hooks, pool, hook_seconds)
        self.log_reader = LogReader(
            registry, hooks, lambda model: known_models.find(model) is not None
        )
        self.postmortems = PostMortemMaker(registry, hooks, self.log_reader)
        left_behind = self.left_behind = LeftBehindTracker(
            registry, table, hooks, self.postmortems.add
        )
        recorder = self.exit_recorder = ExitRecorder(
            registry, client, hooks, counter, usage, left_behind
        )
        refusals = self.refusals = Refusals()
        self.output_table = OutputFileTable()
        memory_reader = self.memory_reader = MemoryReader(registry)
        self.registration = Registration(
            registry,
            table,
            client,
            hooks,
            recorder,
            left_behind,
            security,
            refusals,
            self.output_table,
            on_added=memory_reader.wake,
        )
        sockets = SocketTable()
        check = self.address_check = AddressCheck(sockets, table, registry, client, hooks)
        reader = self.backend_reader = BackendReader(
            registry, client, table, limits, check, gpus, hooks, status_seconds
        )
        self.model_reader = ModelReader(
            registry, recorder, reader, pool, settings.reading_max_age_seconds
        )
        self.sweeper = Sweeper(
            registry,
            recorder,
            reader,
            check,
            pool,
            client,
            usage,
            limits,
            gpus,
            hooks,
            series,
            peaks,
            settings,
        )
        self.doctor = Doctor(
            self.unseen,
            self.kernel_probe,
            registry,
            gpus,
            settings.gpu,
            hooks,
            groups,
            settings.hooks_dir,
        )
        self.fit_checker = FitChecker(registry, self.sweeper, peaks, limits, gpus)
        verifier = AddressVerifier(registry, table, sockets)
        release = MemoryRelease(gpus, settings.memory_release_seconds)
        stopper = Stopper(
            registry, recorder, reader, check, client, table, verifier, release, hooks, settings
        )
        self.shutdown_coordinator = ShutdownCoordinator(
            registry,
            recorder,
            left_behind,
            stopper,
            hooks,
            events,
            counter,
            pool,
            self.unseen,
            settings,
        )
        starter = ModelStarter(
            registry,
            recorder,
            refusals,
            self.model_reader,
            self.known_models,
            hooks,
            pool,
            read_output=lambda model, after_end_id: self.log_reader.last_output(
                model, after_end_id=after_end_id
            ),
        )
        self.operations = ModelOperations(
            registry, self.shutdown_coordinator, starter, settings.start_timeout_seconds
        )

    def start(self) -> None:
        """Start the background threads. Call `stop` if an exception is raised."""
        self.kernel_probe.run()
        if self.unseen:
            _logger.warning(
                "not everything can be seen: %s; if backends run as another user than the monitor, "
                "run the monitor as root",
                self.unseen,
            )
        self.exit_recorder.start()
        self.left_behind.start()
        self.postmortems.start()
        self.gpu_reader.start()
        self.memory_reader.start()
        self.peaks.start()
        self.sweeper.start()
        self.event_queue.start()

    def stop(self) -> None:
        """End the background threads; `start` may be called again."""
        close_all(
            self.exit_recorder.close,
            self.left_behind.close,
            self.postmortems.close,
            self.memory_reader.close,
            self.sweeper.close,
            self.gpu_reader.close,
            self.peaks.close,
            self.event_queue.close,
        )

    def close(self) -> None:
        """End the background threads, and release every thread and descriptor."""
        close_all(
            self.exit_recorder.close,
            self.left_behind.close,
            self.postmortems.close,
            self.memory_reader.close,
            self.registration.close,
            self.status_client.close,
            self.sweeper.close,
            self.gpu_reader.close,
            self.peaks.close,
            self.event_queue.close,
            self.hook_executor.close,
            self.thread_pool.close,
            self.output_table.close,
            self.member_pidfds.close,
        )


def _join_cluster(settings: Settings, services: _Services) -> ClusterNode:
    try:
        from .cluster.node import ClusterNode, node_name  # needs the extra `cluster`
        from .cluster.requests.local_node import LocalNode
    except ImportError as error:
        raise SettingsError(
            "cluster", f"setting cluster: {error}: pip install 'monitor-plugin[cluster]'"
        ) from None
    node = node_name(settings)
    local_node = LocalNode(
        node,
        services.registry,
        services.left_behind,
        services.refusals,
        services.model_reader,
        services.operations,
        services.shutdown_coordinator,
        services.sweeper,
        services.limits_reader,
        GpuLister(services.registry, services.member_table, services.gpu_reader, node),
        services.known_models,
        services.unit_reader,
        services.exit_recorder.describe_last_exit,
        services.unseen is not None,
    )
    return ClusterNode(
        settings, services.registry, services.operations, local_node, services.blocking_observer
    )


class _Phase(enum.Enum):
    NEW = "new"
    STARTED = "started"
    CLOSED = "closed"
