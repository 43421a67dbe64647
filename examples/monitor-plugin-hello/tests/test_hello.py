"""The installed hook in a real monitor, with real backends."""

from __future__ import annotations

import logging
import os

import pytest
from monitor_plugin_hello import swapped_bytes

from monitor_plugin.testing import BackendFactory, MonitorFactory, eventually

pytest_plugins = ["monitor_plugin.testing"]


def test_hook_greets_each_backend(
    make_monitor: MonitorFactory, backend: BackendFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a greeting with the model's name."""
    caplog.set_level(logging.INFO, "monitor_plugin_hello")
    backend().register(make_monitor(), "llama")
    eventually(lambda: "hello, llama" in caplog.text)


@pytest.mark.parametrize("no_memory", [False, True])
def test_reading_contains_swapped_bytes(
    no_memory: bool, make_monitor: MonitorFactory, backend: BackendFactory
) -> None:
    """Also if the backend reports no memory itself."""
    monitor = make_monitor(status_timeout_seconds=30)
    backend(no_memory=no_memory).register(monitor, "llama")
    status = monitor.read("llama").status
    assert status
    assert status.memory
    assert status.memory.breakdown["swap"] >= 0


def test_hook_is_loaded_from_the_package(make_monitor: MonitorFactory) -> None:
    """The plugin has the name of the entry point, and can be disabled by that name."""
    (plugin,) = make_monitor().plugins()
    assert (plugin.name, plugin.source) == ("hello", "monitor-plugin-hello 0.1.0")
    assert make_monitor(disable_hook=("hello",)).plugins() == []


def test_ended_process_has_no_swapped_bytes() -> None:
    """A running process may have some."""
    assert swapped_bytes(2**22 + 1) == 0
    assert swapped_bytes(os.getpid()) >= 0
