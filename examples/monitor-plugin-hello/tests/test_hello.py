"""The hook in a real monitor, with real backends; it is loaded as it is installed."""

from __future__ import annotations

import logging
import os

import pytest
from monitor_plugin_hello import swapped

from monitor_plugin.testing import BackendFactory, MonitorFactory, eventually

pytest_plugins = ["monitor_plugin.testing"]


def test_it_greets(
    make_monitor: MonitorFactory, backend: BackendFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Each backend that is registered is greeted by its model's name."""
    caplog.set_level(logging.INFO, "monitor_plugin_hello")
    backend().register(make_monitor(), "llama")
    eventually(lambda: "hello, llama" in caplog.text)


@pytest.mark.parametrize("no_memory", [False, True])
def test_it_tells_what_is_swapped(
    no_memory: bool, make_monitor: MonitorFactory, backend: BackendFactory
) -> None:
    """Beside what the backend says of itself, or does not say."""
    monitor = make_monitor(status_timeout_seconds=30)
    backend(no_memory=no_memory).register(monitor, "llama")
    status = monitor.read("llama").status
    assert status
    assert status.memory
    assert status.memory.breakdown["swap"] >= 0


def test_it_is_loaded_from_the_package(make_monitor: MonitorFactory) -> None:
    """Under the name of its entry point; and it can be left out."""
    (plugin,) = make_monitor().plugins()
    assert (plugin.name, plugin.source) == ("hello", "monitor-plugin-hello 0.1.0")
    assert make_monitor(disable_hook=("hello",)).plugins() == []


def test_a_process_that_has_ended_holds_nothing() -> None:
    """And one that runs holds what it holds."""
    assert swapped(2**22 + 1) == 0
    assert swapped(os.getpid()) >= 0
