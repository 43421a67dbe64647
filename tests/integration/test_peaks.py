"""Peaks of real backends over restarts of monitors that end in any way, in one file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Monitor, Settings, SettingsError
from monitor_plugin.cli import main

from ..support import Client, Spawner, eventually, load_sleeper

MIB = 1 << 20

MONITOR = """
import sys
from monitor_plugin import Monitor, Settings
settings = Settings(listen="127.0.0.1:0", sweep_interval_seconds=0.1, state_file=sys.argv[1])
with Monitor(settings) as m:
    print(m.url, flush=True)
    for line in sys.stdin:
        model, pid, address = line.split()
        m.hook.monitor_backend_spawned(model=model, pid=int(pid), address=address)
"""

WRITER = """
import sys
from monitor_plugin.domain.models import Backend, Memory, Observation
from monitor_plugin.telemetry import peaks
peaks._WRITE_SECONDS = 0
store = peaks.PeakStore(sys.argv[1])
store.start()
backend = Backend(sys.argv[2], 1, "unix:/m", 1.0)
total = 0
while True:
    total += 1
    memory = Memory(total)
    store.add([Observation(backend=backend, memory=memory, memory_source="pss")], ())
    if total == 1000:
        print("writes", flush=True)
"""


class MonitorProcess:
    """A monitor in a process of its own."""

    def __init__(self, spawner: Spawner, path: Path) -> None:
        self.process = spawner.python(MONITOR, str(path), stdin=subprocess.PIPE)
        assert self.process.stdout
        self.client = Client(self.process.stdout.readline().strip())

    def register(self, model: str, pid: int, address: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{model} {pid} {address}\n")
        self.process.stdin.flush()

    def peaks(self, model: str) -> Any:
        found = self.client.request("GET", f"/models/peaks?model={model}").json["models"]
        return found[0] if found else None


def test_peaks_outlive_killed_monitors_and_backends(spawner: Spawner, tmp_path: Path) -> None:
    """The next monitor has them. A backend that is READY already gives no new time to READY."""
    path = tmp_path / "state.db"
    first = MonitorProcess(spawner, path)
    backend = spawner.backend("--weights-mib", "64", "--no-memory")
    first.register("m", backend.pid, backend.address)
    seen = eventually(
        lambda: (found := first.peaks("m")) and found["ready_seconds"] and found["memory"] and found
    )
    assert seen["tree_memory"] > 64 * MIB

    def is_written() -> bool:
        monitor = Monitor(Settings(listen=None, state_file=str(path)))
        return [each.memory for each in monitor.peaks("m")] == [first.peaks("m")["memory"]]

    eventually(is_written)
    first.process.kill()
    first.process.wait()

    second = MonitorProcess(spawner, path)
    before = second.peaks("m")
    assert before["memory"] >= seen["memory"]
    second.register("m", backend.pid, backend.address)
    eventually(lambda: second.client.request("GET", "/backends").json["backends"])
    second.client.request("GET", "/backends")
    after = second.peaks("m")
    for name in ("ready_seconds", "ready_at", "longest_ready_seconds", "since"):
        assert after[name] == seen[name], name
    assert after["memory"] >= before["memory"]
    backend.end()
    assert second.process.stdin
    second.process.stdin.close()  # it closes, and writes what is not written yet
    second.process.wait(timeout=60)
    third = MonitorProcess(spawner, path)
    assert third.peaks("m")["memory"] == after["memory"]
    fit = third.client.request("GET", "/fits?model=m").json
    assert fit["loaded"] == 0
    assert fit["memory"]["needed"] == third.peaks("m")["tree_memory"]


def test_file_is_whole_after_each_kill(spawner: Spawner, tmp_path: Path) -> None:
    """Two monitors write as often as they can, and are killed in the middle of it."""
    path = tmp_path / "state.db"
    known = {"a": 0, "b": 0}
    for _ in range(5):
        writers = [spawner.python(WRITER, str(path), name) for name in known]
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline() == "writes\n"
        for writer in writers:
            writer.kill()
            writer.wait()
        monitor = Monitor(Settings(listen=None, state_file=str(path)))
        found = {each.model: each.memory or 0 for each in monitor.peaks()}
        assert all(found.get(name, 0) >= amount for name, amount in known.items())
        known.update(found)
    assert all(known.values())


def test_damaged_file_prevents_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python and on the command line, with an error that says what to do."""
    path = tmp_path / "state.db"
    path.write_text("no database")
    message = (
        f"setting state_file: {path} cannot be used: file is not a database; move it away, or "
        "name another file"
    )
    with pytest.raises(SettingsError) as caught:
        Monitor(Settings(listen=None, state_file=str(path)))
    assert str(caught.value) == message
    monkeypatch.setenv("MONITOR_STATE_FILE", str(path))
    assert main(["demo", "--listen", "127.0.0.1:0"]) != 0
    assert message in capsys.readouterr().err
    assert path.read_text() == "no database"


def test_closed_monitor_has_written_its_last_sweep(
    make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """Close waits for the file."""
    path = tmp_path / "state.db"
    monitor = make_monitor(state_file=str(path))
    load_sleeper(monitor, spawner)
    eventually(lambda: monitor.sweep() and monitor.peaks("m")[0].memory)
    monitor.close()
    kept = Monitor(Settings(listen=None, state_file=str(path))).peaks("m")
    assert kept == monitor.peaks("m")
    assert kept[0].memory
