"""Backends that are busy without a break are stopped by force."""

from __future__ import annotations

import os
import signal

import pytest

from monitor_plugin import PluginError, State, Status, hookimpl

from ..support import Spawner, eventually, is_running
from .conftest import MakeHooked


def test_stuck_backends_are_stopped(
    hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Backends that are BUSY too long, or no longer answer after that, are stopped by force."""
    stuck = spawner.backend("--busy-seconds", "1000", "--ignore-sigterm")
    frozen = spawner.backend("--busy-seconds", "1000")
    kept = {
        "ready": spawner.backend(),
        "never answered": spawner.backend("--hang-status"),
        "silent": spawner.backend("--no-status"),
        "keep": spawner.backend("--busy-seconds", "1000"),
    }
    hook = hooked(
        "stuck_stop",
        {"SECONDS": "keep=never,*=4"},
        sweep_interval_seconds=0.2,
        status_timeout_seconds=0.2,
        stop_timeout_seconds=1.0,
        drain_timeout_seconds=1000.0,
    )
    for model, backend in {"stuck": stuck, "frozen": frozen, **kept}.items():
        hook.spawned(model, backend)
    eventually(lambda: hook.monitor.read("frozen").status)
    os.kill(frozen.pid, signal.SIGSTOP)
    eventually(lambda: len(hook.monitor.backends()) == 4)
    assert [each.model for each in hook.monitor.backends()] == [*kept]
    assert not is_running(stuck.pid)
    assert not is_running(frozen.pid)
    lines = sorted(each for each in caplog.messages if "is being stopped" in each)
    assert len(lines) == 2
    assert f"model 'stuck' (process {stuck.pid}) is being stopped: it was busy for" in lines[1]
    assert lines[1].endswith("over 4 s for '*'")


class Says:
    """Returns a configurable state for all backends."""

    state: State | None = State.BUSY

    @hookimpl
    def monitor_query_status(self) -> Status | None:
        return None if self.state is None else Status(self.state)


def test_break_restarts_the_busy_time(hooked: MakeHooked, spawner: Spawner) -> None:
    """A break that only another reading saw counts; a missing response is no break."""
    hook = hooked(
        "stuck_stop", {"SECONDS": "1000"}, sweep_interval_seconds=0, status_timeout_seconds=1.0
    )
    says = Says()
    hook.monitor.plugin_manager.register(says)
    backend = spawner.backend("--hang-status")
    hook.spawned("m", backend)

    def busy_since() -> float | None:
        hook.monitor.sweep("m")
        hook.module.monitor_readings_swept()
        return next(iter(hook.module._busy_since.values()), None)

    since = busy_since()
    assert since is not None
    assert busy_since() == since
    says.state = None  # by gRPC it does not answer
    assert busy_since() == since
    says.state = State.READY
    hook.monitor.read("m")
    says.state = State.BUSY
    later = busy_since()
    assert later is not None
    assert later > since
    says.state = State.READY
    assert busy_since() is None
    says.state = None
    assert busy_since() is None


def test_hook_does_nothing_without_a_limit(hooked: MakeHooked, spawner: Spawner) -> None:
    """All shipped hooks can be loaded together without settings."""
    hook = hooked("stuck_stop", {}, sweep_interval_seconds=0)
    hook.spawned("m", spawner.backend("--busy-seconds", "1000"))
    hook.monitor.sweep()
    hook.module.monitor_readings_swept()
    assert hook.module._busy_since == {}


def test_invalid_limit_is_refused(hooked: MakeHooked) -> None:
    """Loading the file raises an error with the expected value."""
    with pytest.raises(PluginError) as raised:
        hooked("stuck_stop", {"SECONDS": "15min"})
    assert "MONITOR_HOOK_STUCK_STOP_SECONDS='15min': " in str(raised.value)
    assert "write seconds over 0, as 900, or llama-*=600,*=900" in str(raised.value)
