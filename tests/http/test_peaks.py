"""`/models/peaks` and `/fits`, with real processes and GPUs of a hook."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitor_plugin import Backend, InvalidRequest, Monitor, Status, hookimpl
from monitor_plugin.api.schemas import FitsAnswer, PeaksAnswer

from ..gpus import GpuFile, make_gpu
from ..support import Client, Spawner, eventually, load_sleeper, register

MIB = 1 << 20

# Holds as many MiB as each line of its input says.
HOLDER = """
import mmap, sys
for line in sys.stdin:
    held = mmap.mmap(-1, max(1, int(line)) << 20)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    print("holds", flush=True)
"""


class Holder:
    """A process that holds as much memory as a test wants."""

    def __init__(self, spawner: Spawner) -> None:
        self.process = spawner.python(HOLDER, stdin=-1)
        self.pid = self.process.pid

    def hold(self, mebibytes: int) -> None:
        """Hold so many MiB in place of what was held before."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{mebibytes}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "holds\n"


def get(client: Client, path: str) -> Any:
    answer = client.request("GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def peaks_of(client: Client, model: str) -> dict[str, Any]:
    (found,) = get(client, f"/models/peaks?model={model}")["models"]
    assert isinstance(found, dict)
    return found


def test_peak_outlives_the_backend(monitor: Monitor, client: Client, spawner: Spawner) -> None:
    """A backend grows, shrinks and ends; a later one holds less."""
    assert get(client, "/models/peaks") == {"models": []}
    holder = Holder(spawner)
    holder.hold(1)
    register(monitor, holder.pid)
    monitor.sweep()
    small = peaks_of(client, "m")["tree_memory"]
    holder.hold(100)
    eventually(lambda: monitor.sweep() and peaks_of(client, "m")["memory"] > small + 90 * MIB)
    high = peaks_of(client, "m")
    assert high["tree_memory"] >= high["memory"] < small + 150 * MIB
    assert high["memory_at"] >= high["since"]
    holder.hold(1)
    holder.process.kill()
    holder.process.wait()
    load_sleeper(monitor, spawner)
    monitor.sweep()
    assert peaks_of(client, "m")["memory"] == high["memory"]
    assert peaks_of(client, "m")["memory_at"] == high["memory_at"]
    answer = client.request("GET", "/models/peaks")
    decoded = msgspec.json.decode(answer.body, type=PeaksAnswer)
    assert [each.model for each in decoded.models] == ["m"]
    assert [each.model for each in monitor.peaks()] == ["m"]
    assert monitor.peaks("other") == []


def test_peak_between_two_sweeps_is_seen(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """The kernel keeps the highest RSS of a process."""
    holder = Holder(spawner)
    register(monitor, holder.pid)
    holder.hold(100)
    holder.hold(1)
    eventually(lambda: monitor.sweep() and peaks_of(client, "m")["tree_memory"] > 100 * MIB)


class Stateful:
    """A hook that answers a state for all backends."""

    def __init__(self, state: int) -> None:
        self.state = state

    @hookimpl
    def monitor_query_status(self, backend: Backend, timeout_seconds: float) -> Status:
        return Status(self.state)


def test_time_to_ready_is_measured_from_the_creation(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """It ends at the first READY that is seen; READY after BUSY is none."""
    hook = Stateful(0)
    monitor = make_monitor([hook])
    client = Client(monitor.url)
    began = time.monotonic()
    process = load_sleeper(monitor, spawner)
    monitor.sweep()
    assert peaks_of(client, "m")["ready_seconds"] is None
    hook.state = 2
    monitor.read("m")
    elapsed = time.monotonic() - began
    for state in (1, 2):
        hook.state = state
        monitor.read("m")
    eventually(lambda: monitor.sweep() and peaks_of(client, "m")["ready_seconds"])
    found = peaks_of(client, "m")
    # The kernel's start times have a resolution of 10 ms.
    assert 0 < found["ready_seconds"] <= elapsed + 0.02
    assert found["ready_seconds"] == found["longest_ready_seconds"]
    ready_at = datetime.fromisoformat(found["ready_at"].replace("Z", "+00:00"))
    assert abs(ready_at.timestamp() - time.time()) < 3600
    process.kill()
    load_sleeper(monitor, spawner)
    monitor.sweep()
    again = peaks_of(client, "m")
    assert again["ready_at"] > found["ready_at"]
    longest = max(found["ready_seconds"], again["ready_seconds"])
    assert again["longest_ready_seconds"] == longest


@pytest.mark.parametrize("first", [0, 1, 2])
def test_time_to_ready_is_unknown_if_the_monitor_came_late(
    first: int,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backend that runs already may have been READY long ago, unless it was not loaded yet."""
    monkeypatch.setattr("monitor_plugin.backends.registration._START_SEEN_SECONDS", -1.0)
    hook = Stateful(first)
    monitor = make_monitor([hook])
    load_sleeper(monitor, spawner)
    monitor.sweep()
    hook.state = 2
    monitor.read("m")
    eventually(lambda: monitor.sweep()[0].ready_at)
    found = peaks_of(Client(monitor.url), "m")
    assert (found["ready_seconds"] is None) == (first != 0)


def test_time_to_ready_is_kept_when_the_server_replaces_its_launcher(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """It begins with the launcher; a model that takes over the process has no time of its own."""
    monitor = make_monitor([Stateful(0)])
    launcher = spawner.launcher("127.0.0.1:0")
    register(monitor, launcher.pid)
    (record,) = monitor._services.registry.records()
    spawned_at = record.spawned_at
    launcher.launch()
    register(monitor, launcher.server)
    (record,) = monitor._services.registry.records()
    assert record.backend.pid == launcher.server
    assert (record.spawned_at, record.saw_start) == (spawned_at, True)
    register(monitor, launcher.server, model="other")
    assert not record.saw_start


def test_fits_compares_peaks_with_the_free_memory(
    make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """A model is loaded and stopped; whether it fits again depends on the GPU's free memory."""
    gpus = GpuFile(tmp_path / "gpus.json")
    gpus.write(make_gpu({}, free=1000))
    monitor = make_monitor([gpus])
    client = Client(monitor.url)
    fit = get(client, "/fits?model=m")
    assert (fit["fits"], fit["loaded"], fit["peaks"], fit["unload"]) == (None, 0, None, None)
    assert "peaks are not known" in fit["reason"]
    assert fit["memory"]["free"] > 0
    assert [(each["component"], each["free"]) for each in fit["gpus"]] == [("vram:test0", 1000)]

    process = load_sleeper(monitor, spawner)
    gpus.write(make_gpu({process.pid: 700}, free=300))
    eventually(lambda: monitor.sweep() and peaks_of(client, "m")["gpus"])
    (gpu,) = peaks_of(client, "m")["gpus"]
    assert (gpu["component"], gpu["uuid"], gpu["memory"]) == ("vram:test0", "GPU-0", 700)

    def fits() -> Any:
        return get(client, "/fits?model=m")

    fit = fits()
    assert (fit["fits"], fit["loaded"], fit["gpus"][0]["missing"]) == (False, 1, 400)
    process.kill()
    gpus.write(make_gpu({}, free=1000))
    fit = eventually(lambda: (found := fits())["fits"] and found)
    assert (fit["reason"], fit["unload"], fit["loaded"]) == (None, [], 0)
    assert fit["memory"]["needed"] == fit["peaks"]["tree_memory"]
    body = client.request("GET", "/fits?model=m").body
    assert msgspec.json.decode(body, type=FitsAnswer).fits is True
    assert monitor.fits("m").fits is True


def test_idle_model_is_proposed_for_shutdown(
    make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """A READY backend without CPU time is proposed; a busy one, and one without Status, is not."""
    gpus = GpuFile(tmp_path / "gpus.json")
    monitor = make_monitor([gpus], sweep_interval_seconds=0.1)
    client = Client(monitor.url)
    gpus.write(make_gpu({}, free=1000))
    wanted = load_sleeper(monitor, spawner, "wanted")
    gpus.write(make_gpu({wanted.pid: 700}))
    eventually(lambda: monitor.peaks("wanted") and monitor.peaks("wanted")[0].gpus)
    wanted.kill()
    idle, silent = spawner.backend(), spawner.backend("--no-status")
    idle.register(monitor, "idle")
    silent.register(monitor, "silent")
    gpus.write(make_gpu({idle.pid: 600, silent.pid: 300}, free=100))

    def going() -> Any:
        return get(client, "/fits?model=wanted")["unload"]

    (found,) = eventually(going)
    assert (found["model"], found["gpus"]) == ("idle", {"vram:test0": 600})
    assert found["idle_seconds"] > 0
    assert found["memory"] > 0
    idle.process.send_signal(10)  # SIGUSR1: it is busy
    eventually(lambda: going() is None)
    fit = get(client, "/fits?model=wanted")
    assert (fit["fits"], fit["gpus"][0]["missing"]) == (False, 600)
    assert fit["reason"].endswith("; the models that are known to be idle hold too little")


def test_invalid_model_names_are_refused(monitor: Monitor, client: Client) -> None:
    """A missing or invalid name is a 400; a name that nobody knows is none."""
    for path in (
        "/fits",
        "/fits?model=",
        "/fits?model=%00",
        "/fits?model=a&model=b",
        "/fits?model=%ff",
        "/models/peaks?model=%00",
        "/models/peaks?model=" + "x" * 256,
    ):
        answer = client.request("GET", path)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request"), path
    assert get(client, "/models/peaks?model=nobody") == {"models": []}
    assert get(client, "/fits?model=nobody")["fits"] is None
    assert client.request("POST", "/fits?model=m", {}).status == 405
    with pytest.raises(InvalidRequest):
        monitor.fits("")


def test_host_and_role_are_checked(make_monitor: Callable[..., Monitor], tmp_path: Path) -> None:
    """A token that may read is enough, and a page of another site gets nothing."""
    tokens = tmp_path / "tokens"
    tokens.write_text("read:reader:secret-of-the-reader-1\n")
    client = Client(make_monitor(token_file=str(tokens)).url)
    for path in ("/models/peaks", "/fits?model=m"):
        assert client.request("GET", path).status == 401
        token = {"Authorization": "Bearer secret-of-the-reader-1"}
        assert client.request("GET", path, headers=token).status == 200
        foreign = {**token, "Host": "example.com"}
        assert client.request("GET", path, headers=foreign).status == 403
