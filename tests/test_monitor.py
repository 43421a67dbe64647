"""The monitor as hosts use it: embedded, with the host's plugin manager, in the host's server."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pluggy
import pytest
import waitress.server

from monitor_plugin import (
    Backend,
    InvalidBackend,
    ListenError,
    Monitor,
    MonitorError,
    PluginError,
    Settings,
    SettingsError,
    Status,
    hookimpl,
    install,
)
from monitor_plugin.backends.exits import ExitRecorder
from monitor_plugin.backends.registration import Registration
from monitor_plugin.concurrency.thread_pool import ThreadPool
from monitor_plugin.http.server.connections import Connections
from monitor_plugin.http.server.dispatcher import Dispatcher
from monitor_plugin.http.server.listener import Listener
from monitor_plugin.http.server.server import Server
from monitor_plugin.plugins.event_queue import EventQueue
from monitor_plugin.plugins.executor import HookExecutor
from monitor_plugin.plugins.hooks import Hooks
from monitor_plugin.plugins.host_manager import HostManager
from monitor_plugin.processes.exit_watcher import ExitWatcher
from monitor_plugin.readings.sweeper import Sweeper
from monitor_plugin.rpc.client import StatusClient
from monitor_plugin.shutdown.coordinator import ShutdownCoordinator
from monitor_plugin.telemetry.event_log import EventLog
from monitor_plugin.testing import RunningBackend

from .support import (
    Client,
    Spawner,
    descriptors,
    eventually,
    free_port,
    logged,
    refuse_descriptors,
    refuse_thread,
    register,
    started_since,
)

QUIET = Settings(listen=None, respawn_watch_seconds=0, hook_timeout_seconds=30.0)


def test_import_of_the_package_loads_no_heavy_module(spawner: Spawner) -> None:
    """gRPC and the HTTP server are imported with `Monitor`; all names are listed before."""
    code = """
import sys, monitor_plugin
heavy = {"grpc", "falcon", "waitress", "google.protobuf", "prometheus_client"}
print(sorted(heavy & set(sys.modules)), set(monitor_plugin.__all__) - set(dir(monitor_plugin)))
monitor_plugin.Settings(), monitor_plugin.hookimpl, monitor_plugin.ModelNotLoaded
print(sorted(heavy & set(sys.modules)))
print(monitor_plugin.Monitor.__name__, monitor_plugin.install.__name__, "grpc" in sys.modules)
"""
    output: Any = spawner.process(sys.executable, "-c", code).communicate(timeout=60)[0]
    assert output.splitlines() == ["[] set()", "[]", "Monitor install True"]


def test_closed_monitor_leaves_nothing_behind(spawner: Spawner) -> None:
    """Threads, sockets and channels are gone after `close`; both may be called again."""
    backend = spawner.backend()
    others = threading.enumerate()  # hooks of other tests that are still blocking

    def run() -> None:
        monitor = Monitor(Settings(listen="127.0.0.1:0"))
        monitor.start()
        monitor.start()
        monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
        assert Client(monitor.url).monitor("m").status == 200
        monitor.close()
        monitor.close()
        with pytest.raises(MonitorError, match="closed"):
            monitor.start()
        with pytest.raises(InvalidBackend, match="closed"):
            monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address="h:1")

    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    run()
    before = counts()
    for _ in range(5):
        run()
    eventually(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)))
    eventually(lambda: not [name for name in started_since(others) if name.startswith("monitor-")])


def test_port_in_use_is_a_clear_error(monitor: Monitor) -> None:
    """The error names the port and says what to do; nothing is left running."""
    listen = monitor.url.removeprefix("http://")
    other = Monitor(Settings(listen=listen))
    with pytest.raises(ListenError, match=f"{listen}: Address already in use"):
        other.start()
    with pytest.raises(MonitorError, match="no HTTP server"):
        other.url  # noqa: B018 - it raises
    other.close()


@pytest.mark.parametrize("listen", ["no-such-host.invalid:80", "192.0.2.1:8080"])
def test_unusable_listen_address_is_a_clear_error(listen: str) -> None:
    """An unknown host, or the address of another machine, is an error."""
    with pytest.raises(ListenError, match="cannot listen on"):
        Monitor(Settings(listen=listen, insecure=True)).start()


def test_ipv6_is_served() -> None:
    """An IPv6 address is written in brackets, in the setting and in the URL."""
    with Monitor(Settings(listen="[::1]:0")) as monitor:
        assert monitor.url.startswith("http://[::1]:")
        assert Client(monitor.url).monitor("m").json["error"]["type"] == "model_not_loaded"


def test_host_serves_the_app_itself(spawner: Spawner) -> None:
    """With `listen=None` the WSGI application is served by the host."""

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    process = spawner.sleeper()
    with Monitor(QUIET) as monitor:
        assert monitor.app is monitor.app
        monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        server = make_server("127.0.0.1", 0, monitor.app, handler_class=Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = Client(f"http://127.0.0.1:{server.server_port}")
        try:
            assert client.monitor("m").status == 200
            assert client.shutdown("m").json == {"message": "model stopped"}
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_environment_is_read_by_monitor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Monitor()` reads MONITOR_* variables; `Monitor(Settings())` does not."""
    monkeypatch.setenv("MONITOR_LISTEN", "127.0.0.1:0")
    with Monitor() as monitor:
        assert monitor.url.startswith("http://127.0.0.1:")
    monkeypatch.setenv("MONITOR_STATUS_TIMEOUT_SECONDS", "soon")
    with pytest.raises(SettingsError, match="MONITOR_STATUS_TIMEOUT_SECONDS='soon'"):
        Monitor()
    Monitor(QUIET)


class Host:
    """A host's own plugin, with its own markers."""

    impl = pluggy.HookimplMarker("somehost")

    def __init__(self) -> None:
        self.seen: list[str] = []

    @impl
    def monitor_backend_registered(self, backend: Backend) -> None:
        self.seen.append(backend.model)

    @impl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> bool:
        os.kill(backend.pid, 15)
        self.seen.append("stopped by the host")
        return True


@pytest.fixture
def manager() -> pluggy.PluginManager:
    return pluggy.PluginManager("somehost")


@pytest.mark.parametrize("before", [True, False])
def test_host_may_have_its_own_plugin_manager(
    before: bool, manager: pluggy.PluginManager, spawner: Spawner
) -> None:
    """Under another project name the host calls and implements the hooks with its own markers."""
    host = Host()
    if before:
        manager.register(host)
    with install(manager, QUIET) as monitor:
        if not before:
            manager.register(host)
        seen: list[str] = []

        class ThirdParty:
            @hookimpl
            def monitor_backend_registered(self, backend: Backend) -> None:
                seen.append(backend.model)

        monitor.plugin_manager.register(ThirdParty())
        process = spawner.sleeper()
        manager.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        assert host.seen == seen == ["m"]
        with pytest.raises(InvalidBackend):
            manager.hook.monitor_backend_spawned(model="m", pid=0, address="127.0.0.1:1")
        monitor.shutdown("m")
        assert host.seen[-1] == "stopped by the host"
        assert manager.has_plugin("monitor_plugin")
    assert not manager.has_plugin("monitor_plugin")
    with install(manager, QUIET) as again:
        process = spawner.sleeper()
        manager.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        assert again.read("m").backend.pid == process.pid


def test_manager_takes_one_monitor(manager: pluggy.PluginManager) -> None:
    """A second live install is refused, and leaves the first alone."""
    with install(manager, QUIET):
        with pytest.raises(PluginError, match="already"):
            install(manager, QUIET)
        assert manager.has_plugin("monitor_plugin")
        with install(pluggy.PluginManager("otherhost"), QUIET):
            pass


def test_failed_install_leaves_nothing_registered(
    manager: pluggy.PluginManager, monitor: Monitor
) -> None:
    """A blocked name and a taken port are clear errors, after which installing works."""
    with pytest.raises(ListenError):
        install(manager, Settings(listen=monitor.url.removeprefix("http://")))
    assert not manager.has_plugin("monitor_plugin")
    install(manager, QUIET).close()
    manager.set_blocked("monitor_plugin")
    with pytest.raises(PluginError, match="blocks the name"):
        install(manager, QUIET)


def test_manager_that_cannot_take_the_hooks_is_refused(manager: pluggy.PluginManager) -> None:
    """Implementations with wrong signatures, and other specifications, are refused."""

    class WrongArguments:
        @Host.impl
        def monitor_backend_gone(self, nonsense: object) -> None:
            pass

    class Wrapper:
        @pluggy.HookimplMarker("wrapping")(hookwrapper=True)
        def monitor_backend_gone(self, backend: object) -> Any:
            yield

    class OtherSpecs:
        @pluggy.HookspecMarker("otherspecs")
        def monitor_backend_gone(self, other: object) -> None:
            pass

    class Historic:
        @pluggy.HookspecMarker("historic")(historic=True)
        def monitor_backend_spawned(self, model: str, pid: int, address: str) -> None:
            pass

    manager.register(WrongArguments())
    with pytest.raises(PluginError, match="nonsense"):
        install(manager, QUIET)
    wrapping = pluggy.PluginManager("wrapping")
    wrapping.register(Wrapper())
    with pytest.raises(PluginError, match="wrapper"):
        install(wrapping, QUIET)
    other = pluggy.PluginManager("otherspecs")
    other.add_hookspecs(OtherSpecs)
    with pytest.raises(PluginError, match="other arguments"):
        install(other, QUIET)
    historic = pluggy.PluginManager("historic")
    historic.add_hookspecs(Historic)
    with pytest.raises(PluginError, match="historic"):
        install(historic, QUIET)


def test_invalid_plugin_is_refused_until_it_is_removed(manager: pluggy.PluginManager) -> None:
    """A refusal changes nothing: the second try fails the same, and works without the plugin."""

    class WrongArguments:
        @Host.impl
        def monitor_add_routes(self, application: object) -> None:
            pass

    plugin = WrongArguments()
    manager.register(plugin, "wrong")
    for _ in range(2):
        with pytest.raises(PluginError, match=r"plugin 'wrong': .* no argument 'application'"):
            install(manager, QUIET)
        assert not manager.hook.monitor_add_routes.has_spec()
    manager.unregister(plugin)
    install(manager, QUIET).close()


def test_refused_install_calls_no_hook(manager: pluggy.PluginManager) -> None:
    """The second monitor on a manager is refused before any hook of the host is called."""
    apps: list[object] = []

    class Routes:
        @Host.impl
        def monitor_add_routes(self, app: object) -> None:
            apps.append(app)

    manager.register(Routes())
    with install(manager, QUIET):
        with pytest.raises(PluginError, match="already"):
            install(manager, QUIET)
        assert len(apps) == 1


def test_hosts_own_implementation_of_a_host_call_runs_too(
    manager: pluggy.PluginManager, spawner: Spawner
) -> None:
    """A host's own implementation of a host call runs after the monitor's, and cannot break it.

    The same is true of the host's wrappers, which see the monitor's errors.
    """
    heard: list[int] = []
    errors: list[object] = []

    class Others:
        @Host.impl
        def monitor_backend_spawned(self, pid: int) -> None:
            heard.append(pid)
            raise RuntimeError("the host's own")

    class Wrapper:
        @Host.impl(hookwrapper=True)
        def monitor_backend_spawned(self) -> Any:
            errors.append((yield).excinfo)

    manager.register(Wrapper())
    with install(manager, QUIET) as monitor:
        manager.register(Others())  # the last registered is called first, but for the monitor
        process = spawner.sleeper()
        with pytest.raises(InvalidBackend):
            manager.hook.monitor_backend_spawned(model="m", pid=0, address="127.0.0.1:1")
        with pytest.raises(RuntimeError, match="the host's own"):
            manager.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        assert [backend.pid for backend in monitor.backends()] == heard == [process.pid]
        assert [error[0] for error in errors] == [InvalidBackend, RuntimeError]  # type: ignore[index]


@pytest.mark.parametrize("block", [True, False])
def test_monitor_closes_after_the_host_unregistered_it(
    block: bool, manager: pluggy.PluginManager
) -> None:
    """A monitor that the host has blocked or unregistered still closes."""
    monitor = install(manager, QUIET)
    if block:
        manager.set_blocked("monitor_plugin")
    else:
        manager.unregister(name="monitor_plugin")
    monitor.close()
    if not block:
        install(manager, QUIET).close()


@pytest.mark.parametrize("project", ["my host-1", "monitor_plugin"])
def test_host_may_use_all_features_of_pluggy(project: str, spawner: Spawner) -> None:
    """Any project name, options of implementations, checks, traces and subsets work."""
    impl = pluggy.HookimplMarker(project)
    manager = pluggy.PluginManager(project)
    seen: list[str] = []

    class Plugin:
        @impl(specname="monitor_backend_registered", trylast=True)
        def whatever(self, backend: Backend) -> None:
            seen.append(f"last {backend.model}")

        @impl(tryfirst=True)
        def monitor_backend_registered(self) -> None:
            seen.append("first")

        @impl(optionalhook=True)
        def monitor_of_another_version(self, unknown: object) -> None:
            pass

    plugin = Plugin()
    manager.register(plugin)
    for _ in range(2):
        with install(manager, QUIET) as monitor:
            manager.check_pending()
            untrace = manager.enable_tracing()
            unmonitor = manager.add_hookcall_monitoring(
                lambda name, *_: seen.append(name), lambda *_: None
            )
            process = spawner.sleeper()
            others = manager.subset_hook_caller("monitor_backend_spawned", [plugin])
            others(model="m", pid=process.pid, address="127.0.0.1:1")
            assert [backend.pid for backend in monitor.backends()] == [process.pid]
            unmonitor()
            untrace()
        assert seen == ["monitor_backend_spawned", "first", "last m"]
        seen.clear()
        manager.check_pending()
        assert manager.hook.monitor_backend_spawned(model="m", pid=1, address="h:1") == []


def test_monitors_of_one_project_share_nothing(spawner: Spawner) -> None:
    """Two managers with one project name, in one process, have nothing in common."""
    first, second = pluggy.PluginManager("somehost"), pluggy.PluginManager("somehost")
    hosts = [Host(), Host()]
    with install(first, QUIET) as one, install(second, QUIET) as two:
        for manager, host, model in zip((first, second), hosts, "ab", strict=True):
            manager.register(host)
            process = spawner.sleeper()
            manager.hook.monitor_backend_spawned(
                model=model, pid=process.pid, address="127.0.0.1:1"
            )
        assert [host.seen for host in hosts] == [["a"], ["b"]]
        one.close()
        assert [backend.model for backend in two.backends()] == ["b"]
        two.shutdown("b")
        assert hosts[1].seen[-1] == "stopped by the host"


def test_plugin_may_be_unregistered_during_calls(
    manager: pluggy.PluginManager, spawner: Spawner
) -> None:
    """A host may unregister a plugin during calls: no reading fails, and its calls end."""
    calls: list[int] = []

    class Components:
        @Host.impl
        def monitor_query_status(self) -> Status:
            calls.append(1)
            return Status(2)

    with install(manager, QUIET) as monitor:
        process = spawner.sleeper()
        manager.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        ended = threading.Event()
        sources: set[str] = set()

        def read() -> None:
            while not ended.is_set():
                sources.add(monitor.read("m").source)

        reader = threading.Thread(target=read)
        reader.start()
        plugin = Components()
        for _ in range(50):
            manager.register(plugin)
            manager.unregister(plugin)
        manager.register(plugin)
        eventually(lambda: calls)
        manager.unregister(plugin)
        ended.set()
        reader.join()
        count = len(calls)
        assert monitor.read("m").source == "psutil"
        assert len(calls) == count
        assert sources <= {"hook", "psutil"}


def test_manager_may_have_the_hosts_own_class(spawner: Spawner) -> None:
    """A manager that ignores the monitor's implementations is refused; other subclasses work."""

    class Choosy(pluggy.PluginManager):
        def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
            return super().parse_hookimpl_opts(plugin, name) if name.startswith("my_") else None

    class ByName(pluggy.PluginManager):
        def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
            found = super().parse_hookimpl_opts(plugin, name)
            return {} if found is None and name.startswith("monitor_") else found

    choosy = Choosy("choosy")
    with pytest.raises(PluginError, match="ignores implementations of 'monitor_backend_spawned'"):
        install(choosy, QUIET)
    assert not choosy.has_plugin("monitor_plugin")

    seen: list[Backend] = []

    class Unmarked:
        def monitor_backend_registered(self, backend: Backend) -> None:
            seen.append(backend)

    by_name = ByName("byname")
    by_name.register(Unmarked())
    with install(by_name, QUIET):
        process = spawner.sleeper()
        by_name.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
        assert [backend.pid for backend in seen] == [process.pid]


def test_started_and_closing_hooks_get_a_serving_monitor(
    make_monitor: Callable[..., Monitor],
) -> None:
    """`monitor_started` gets a serving monitor; `monitor_closing` is called while it serves."""
    seen: list[str] = []

    class Plugin:
        @hookimpl
        def monitor_started(self, monitor: Monitor) -> None:
            self.monitor = monitor
            seen.append(f"started {Client(monitor.url).monitor('m').status}")

        @hookimpl
        def monitor_closing(self) -> None:
            seen.append(f"closing {Client(self.monitor.url).monitor('m').status}")

    make_monitor([Plugin()]).close()
    assert seen == ["started 500", "closing 500"]


class Told:
    """A plugin that records whether the monitor says that it started and is closing."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def monitor_started(self) -> None:
        self.seen.append("started")

    @hookimpl
    def monitor_closing(self) -> None:
        self.seen.append("closing")


def refuse_registration(patch: pytest.MonkeyPatch) -> None:
    """Let the host's own manager fail after it has registered the monitor."""
    register = pluggy.PluginManager.register

    def register_and_fail(manager: Any, plugin: object, name: str | None = None) -> None:
        register(manager, plugin, name)
        raise OSError("the host's own error")

    patch.setattr(pluggy.PluginManager, "register", register_and_fail)


OBSTACLES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "registration": refuse_registration,
    "first request thread": partial(refuse_thread, name="monitor-http-0"),
    "last request thread": partial(refuse_thread, name="monitor-http-15"),
    "server's loop": partial(refuse_thread, name="monitor-http"),
    "exit watcher": partial(refuse_thread, name="monitor-watcher"),
    "baselines": partial(refuse_thread, name="monitor-ticker"),
    "left behind": partial(refuse_thread, name="monitor-left-behind"),
    "sweeps": partial(refuse_thread, name="monitor-sweep"),
    "events": partial(refuse_thread, name="monitor-events"),
    "link to NATS": partial(refuse_thread, name="monitor-cluster"),
    "epoll": partial(refuse_descriptors, target=select, name="epoll"),
    "pipe": partial(refuse_descriptors, target=os, name="pipe"),
    "WSGI server": partial(refuse_descriptors, target=waitress.server, name="create_server"),
    "loop of the link": partial(refuse_descriptors, target=asyncio, name="new_event_loop"),
}


@pytest.mark.once
@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_start_that_fails_leaves_nothing_and_may_be_tried_again(
    obstacle: str,
    unix: bool,
    manager: pluggy.PluginManager,
    spawner: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever step fails: nothing is bound, registered or running, and no plugin is told."""
    settings: dict[str, Any] = {"sweep_interval_seconds": 3600.0}
    if "link" in obstacle:
        pytest.importorskip("nats")
        settings["cluster"] = "nats://127.0.0.1:1"
    path = tmp_path / "monitor.sock"
    listen = f"unix:{path}" if unix else f"127.0.0.1:{free_port()}"
    told = Told()
    monitor = Monitor(Settings(listen=listen, **settings), [told], host_manager=manager)
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    others, before = threading.enumerate(), descriptors()
    with monkeypatch.context() as patch:
        OBSTACLES[obstacle](patch)
        with pytest.raises((OSError, RuntimeError)) as caught:
            monitor.start()
    errors = ("the host's own error", "can't start new thread", "Too many open files")
    assert str(caught.value).endswith(errors)
    eventually(lambda: not started_since(others))
    assert not descriptors() - before
    assert not manager.has_plugin("monitor_plugin")
    assert not path.exists()
    with pytest.raises(MonitorError, match="no HTTP server"):
        monitor.url  # noqa: B018 - it raises
    assert told.seen == []
    assert logged(caplog) == []

    monitor.start()
    assert told.seen == ["started"]
    assert Client(monitor.url).monitor("m").status == 200
    assert manager.has_plugin("monitor_plugin")
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not monitor.backends())
    monitor.close()
    assert told.seen == ["started", "closing"]
    eventually(lambda: not started_since(others))
    assert not path.exists()


def test_close_after_a_failed_start_is_harmless(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It releases the backends too; no plugin is told, and a start is then an error."""
    before, told = descriptors(), Told()
    monitor = Monitor(Settings(listen="127.0.0.1:0"), [told])
    register(monitor, spawner.sleeper().pid)
    refuse_descriptors(monkeypatch, select, "epoll")
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            monitor.start()
    monitor.close()
    monitor.close()
    with pytest.raises(MonitorError, match="closed"):
        monitor.start()
    assert monitor.backends() == []
    assert {name for _, name in descriptors() - before if "pidfd" in name or "socket" in name} == (
        set()
    )
    assert told.seen == []
    assert logged(caplog) == []


def test_with_statement_that_cannot_start_closes_the_monitor(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else closes it, because the statement's body and its end are not reached."""
    monitor = Monitor(Settings(listen="127.0.0.1:0"))
    register(monitor, spawner.sleeper().pid)
    refuse_descriptors(monkeypatch, select, "epoll")
    with pytest.raises(OSError, match="Too many open files"), monitor:
        pass
    assert monitor.backends() == []
    with pytest.raises(MonitorError, match="closed"):
        monitor.start()


@pytest.mark.parametrize(
    "name",
    ["http-0", "http-15", "http", "watcher", "ticker", "sweep", "events", "cluster"],
)
def test_interrupt_during_the_start_closes_the_monitor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come when a thread has just been started."""
    pytest.importorskip("nats")
    others, before, start = threading.enumerate(), descriptors(), threading.Thread.start

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == f"monitor-{name}":
            raise KeyboardInterrupt

    told = Told()
    monitor = Monitor(Settings(listen="127.0.0.1:0", cluster="nats://127.0.0.1:1"), [told])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            monitor.start()
    eventually(lambda: not started_since(others))
    eventually(lambda: not descriptors() - before)
    assert told.seen == []
    with pytest.raises(MonitorError, match="closed"):
        monitor.start()


def test_interrupt_in_a_plugin_during_the_start_closes_the_monitor() -> None:
    """A plugin may have been told of the start, so all are told of the close."""
    others, told = threading.enumerate(), Told()

    class Interrupted:
        @hookimpl(trylast=True)
        def monitor_started(self) -> None:
            raise KeyboardInterrupt

    monitor = Monitor(Settings(listen="127.0.0.1:0"), [told, Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        monitor.start()
    assert told.seen == ["started", "closing"]
    eventually(lambda: not started_since(others))
    with pytest.raises(MonitorError, match="closed"):
        monitor.start()


STARVED = """
import os, resource, sys, threading
from monitor_plugin import Monitor, Settings

def descriptors():
    return {int(each) for each in os.listdir("/proc/self/fd")}

limits = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in range(100):
    monitor = Monitor(Settings(listen=sys.argv[1]))
    monitor.app
    before, threads = descriptors(), threading.active_count()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + free, limits[1]))
    try:
        monitor.start()
        error = None
    except OSError as caught:
        error = caught
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    if error is None:
        monitor.close()
        break
    left = descriptors() - before, threading.active_count() - threads, os.path.exists(sys.argv[2])
    monitor.close()
    print(type(error).__name__, left == (set(), 0, False), flush=True)
"""


FORKED = """
import os, sys
from monitor_plugin import Monitor, Settings

monitor = Monitor(Settings(listen=sys.argv[1]))
with monitor:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), monitor.url, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("unix", [False, True])
def test_forked_child_leaves_the_monitor_to_its_parent(
    unix: bool, spawner: Spawner, tmp_path: Path
) -> None:
    """A child that leaves the `with` statement closes nothing: it shares sockets and pipes."""
    listen = f"unix:{tmp_path / 'monitor.sock'}" if unix else "127.0.0.1:0"
    process = spawner.python(FORKED, listen, stdin=subprocess.PIPE)
    assert process.stdout
    code, url = process.stdout.readline().split()
    assert code == "0"
    assert Client(url).request("GET", "/healthz").status == 200
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert not (tmp_path / "monitor.sock").exists()


@pytest.mark.once
@pytest.mark.parametrize("unix", [False, True])
def test_start_leaves_nothing_wherever_descriptors_run_out(
    unix: bool, spawner: Spawner, tmp_path: Path
) -> None:
    """A real limit on the descriptors fails each step that opens one."""
    path = tmp_path / "monitor.sock"
    listen = f"unix:{path}" if unix else f"127.0.0.1:{free_port()}"
    process = spawner.python(STARVED, listen, str(path), stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    lines = output.splitlines()
    assert set(lines) == {"ListenError True", "OSError True"}
    assert len(lines) > 5


STEPS: list[tuple[type[Any], str]] = [
    (Sweeper, "stop"),
    (Hooks, "closing"),
    (ShutdownCoordinator, "close"),
    (EventLog, "close"),
    (Listener, "remove"),
    (Dispatcher, "close"),
    (Connections, "close"),
    (Listener, "close"),
    (Server, "close"),
    (ExitWatcher, "close"),
    (ExitRecorder, "close"),
    (ExitRecorder, "release"),
    (Registration, "close"),
    (StatusClient, "close"),
    (Sweeper, "close"),
    (EventQueue, "close"),
    (HookExecutor, "close"),
    (ThreadPool, "close"),
    (HostManager, "unregister"),
]


@pytest.fixture(scope="module")
def serving() -> Iterator[RunningBackend]:
    """A backend that several tests register and read."""
    spawner = Spawner()
    yield spawner.backend()
    spawner.close()


@pytest.mark.once
@pytest.mark.parametrize(
    ("part", "name"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_close_never_raises_and_closes_the_other_parts(
    part: type[Any],
    name: str,
    manager: pluggy.PluginManager,
    serving: RunningBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A part that raises at its end is logged; all threads and descriptors are released."""
    others, before, told = threading.enumerate(), descriptors(), Told()
    monitor = Monitor(Settings(listen="127.0.0.1:0"), [told], host_manager=manager)
    monitor.start()
    register(monitor, serving.pid, "m", serving.address)
    assert Client(monitor.url).monitor("m").status == 200
    close = getattr(part, name)

    def close_and_fail(*arguments: Any) -> None:
        close(*arguments)
        raise RuntimeError("bad part")

    monkeypatch.setattr(part, name, close_and_fail)
    monitor.close()
    monitor.close()
    assert "RuntimeError: bad part" in caplog.text
    assert told.seen == ["started", "closing"]
    assert not manager.has_plugin("monitor_plugin")
    eventually(lambda: not [each for each in started_since(others) if each.startswith("monitor-")])
    ours = ("socket:", "anon_inode:[pidfd]", "anon_inode:[eventpoll]", "pipe:")
    eventually(
        lambda: not [target for _, target in descriptors() - before if target.startswith(ours)]
    )
