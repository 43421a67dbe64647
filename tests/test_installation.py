"""Installing a monitor in a host's own plugin manager where the monitor cannot start."""

from __future__ import annotations

import select
import threading
from pathlib import Path

import pluggy
import pytest

from monitor_plugin import ListenError, PluginError, Settings, install

from .support import (
    Client,
    Spawner,
    descriptors,
    eventually,
    free_port,
    refuse_descriptors,
    refuse_thread,
    started_since,
)


@pytest.mark.parametrize("thread", [None, "monitor-http-7", "monitor-watcher", "monitor-events"])
def test_install_that_fails_leaves_nothing_to_close(
    thread: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The host gets the error and no monitor, and may install one later."""
    manager = pluggy.PluginManager("somehost")
    settings = Settings(listen=f"unix:{tmp_path}/monitor.sock")
    others, before = threading.enumerate(), descriptors()
    with monkeypatch.context() as patch:
        if thread:
            refuse_thread(patch, thread)
        else:
            refuse_descriptors(patch, select, "epoll")
        with pytest.raises((OSError, RuntimeError), match=r"new thread|open files"):
            install(manager, settings)
    assert manager.get_plugins() == set()
    assert list(tmp_path.iterdir()) == []
    eventually(lambda: not started_since(others))
    assert not descriptors() - before
    with install(manager, settings) as monitor:
        assert Client(monitor.url).monitor("m").json["error"]["type"] == "model_not_loaded"
    assert manager.get_plugins() == set()


def test_install_that_fails_forgets_backends_that_were_reported_meanwhile(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread of the host may report one while the monitor starts."""
    manager = pluggy.PluginManager("somehost")
    process = spawner.sleeper()
    before = descriptors()

    start = threading.Thread.start

    def report_and_fail(thread: threading.Thread) -> None:
        if thread.name == "monitor-ticker":
            manager.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", report_and_fail)
    with pytest.raises(RuntimeError, match="new thread"):
        install(manager, Settings(listen=None))
    eventually(lambda: not descriptors() - before)


def test_install_that_cannot_load_a_plugin_leaves_nothing(tmp_path: Path) -> None:
    """The monitor cannot even be made, so that nothing of it is registered or bound."""
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('broken')")
    manager = pluggy.PluginManager("somehost")
    others, before = threading.enumerate(), descriptors()
    listen = f"unix:{tmp_path}/monitor.sock"
    with pytest.raises(PluginError, match="broken"):
        install(manager, Settings(listen=listen, hook=(str(file),)))
    assert manager.get_plugins() == set()
    assert not (tmp_path / "monitor.sock").exists()
    assert not started_since(others)
    assert not descriptors() - before
    install(manager, Settings(listen=listen)).close()


def test_install_that_is_refused_leaves_the_plugins_of_the_host() -> None:
    """Also where the host blocks names, which Pluggy keeps as plugins that are None."""
    manager = pluggy.PluginManager("somehost")
    plugin = object()
    manager.register(plugin, "mine")
    manager.set_blocked("other")
    listen = f"127.0.0.1:{free_port()}"
    with install(manager, Settings(listen=listen)):
        second = pluggy.PluginManager("somehost")
        second.set_blocked("other")
        with pytest.raises(ListenError):
            install(second, Settings(listen=listen))
        with pytest.raises(PluginError):
            install(manager, Settings(listen=None))
        assert manager.has_plugin("monitor_plugin")
    assert manager.get_plugin("mine") is plugin
    assert not manager.has_plugin("monitor_plugin")
    assert not second.has_plugin("monitor_plugin")
    assert manager.is_blocked("other")
