"""Idle backends are stopped; active ones are not."""

from __future__ import annotations

import pytest

from monitor_plugin import PluginError

from ..support import Spawner, eventually, is_running
from .conftest import MakeHooked

WORKS = ["sh", "-c", "while :; do :; done"]


@pytest.mark.slow
def test_idle_backends_are_stopped(
    hooked: MakeHooked, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    """Busy, hanging, active and exempt backends still run; the log has the reason."""
    idle, silent = spawner.backend(), spawner.backend("--no-status")
    kept = {
        "busy": spawner.backend("--busy-seconds", "1000"),
        "hangs": spawner.backend("--hang-status"),
        "keep": spawner.backend(),
    }
    works = spawner.process(*WORKS)
    limits = {"SECONDS": "keep=never, *=1.5"}
    hook = hooked("idle_stop", limits, sweep_interval_seconds=0.3, status_timeout_seconds=0.2)
    for model, backend in {"idle": idle, "silent": silent, **kept}.items():
        hook.spawned(model, backend)
    hook.monitor.hook.monitor_backend_spawned(model="works", pid=works.pid, address="127.0.0.1:1")
    eventually(lambda: len(hook.monitor.backends()) == 4)
    assert [each.model for each in hook.monitor.backends()] == [*kept, "works"]
    assert not is_running(idle.pid)
    assert not is_running(silent.pid)
    lines = [each for each in caplog.messages if "is being stopped" in each]
    assert len(lines) == 2
    begins = f"model 'idle' (process {idle.pid}) is being stopped: it was idle for "
    assert any(each.startswith(begins) for each in lines)
    assert lines[0].endswith("s, over 1.5 s for '*'")


def test_hook_does_nothing_without_a_limit(hooked: MakeHooked, spawner: Spawner) -> None:
    """All shipped hooks can be loaded together without settings."""
    hook = hooked("idle_stop", {}, sweep_interval_seconds=0)
    hook.spawned("m", spawner.backend())
    hook.monitor.sweep()
    hook.module.monitor_readings_swept()
    assert hook.module._activity._traces == {}


@pytest.mark.parametrize("text", ["soon", "0", "a=1,b", "a=1h", "*=5,*=6"])
def test_invalid_limit_is_refused(text: str, hooked: MakeHooked) -> None:
    """Loading the file raises an error with the expected value."""
    with pytest.raises(PluginError) as raised:
        hooked("idle_stop", {"SECONDS": text})
    assert f"MONITOR_HOOK_IDLE_STOP_SECONDS={text!r}: " in str(raised.value)
    assert "write seconds over 0, as 3600, or llama-*=600,*=3600" in str(raised.value)
