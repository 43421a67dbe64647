"""`/gpus`, and GPUs in lists, readings and metrics, of devices that a hook lists."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Backend, Gpu, GpuUse, Monitor, Status, hookimpl
from monitor_plugin.domain.models import Memory
from monitor_plugin.processes.usage import UsageReader
from monitor_plugin.readings import sweeper

from .. import gpus as hook_file
from ..gpus import GpuFile, make_gpu
from ..support import Client, Spawner, eventually, register
from .test_app import assert_error

NOTHING: dict[str, Any] = {"gpus": []}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[GpuFile]:
    """A file of GPUs; after the test no hook hangs."""
    file = GpuFile(tmp_path / "gpus.json")
    yield file
    file.write()


class Ready:
    """Gives every backend a status, with memory that a test chooses."""

    memory: Memory | None = None
    components: Mapping[str, int] = {}

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status:
        return Status(2, self.memory)

    @hookimpl
    def monitor_memory_components(self) -> Mapping[str, int]:
        return self.components


def get(monitor: Monitor, path: str = "/gpus") -> Any:
    answer = Client(monitor.url).request("GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def listed(monitor: Monitor, **expected: object) -> Any:
    """Wait until the first GPU has some fields, and return it."""

    def found() -> Any:
        gpus = get(monitor)["gpus"]
        return gpus[0] if gpus and expected.items() <= gpus[0].items() else None

    return eventually(found)


def members(monitor: Monitor) -> Sequence[int]:
    """List the members of the first backend."""
    return [pid for pid, _ in monitor._services.registry.records()[0].members.identities()]


def test_machine_without_gpus_lists_none(make_monitor: Callable[..., Monitor]) -> None:
    monitor = make_monitor(gpu="off")
    assert get(monitor) == NOTHING
    assert get(monitor, "/backends")["gpus"] == []
    assert monitor.gpus() == []


def test_gpus_need_a_token_of_role_read(
    make_monitor: Callable[..., Monitor], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read:dashboard:secret\n")
    tokens.chmod(0o600)
    client = Client(make_monitor(gpu="off", token_file=str(tokens)).url)
    assert_error(client.request("GET", "/gpus"), 401, "unauthorized")
    assert client.request("GET", "/gpus", None, {"Authorization": "Bearer secret"}).status == 200


def test_memory_is_attributed_to_backends_and_others(
    file: GpuFile, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """All answers have the same figures, also by the members of a backend."""
    ready = Ready()
    monitor = make_monitor([file, ready], gpu="off")
    backend = spawner.backend("--fork-workers", "1")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    (worker,) = eventually(lambda: [each for each in members(monitor) if each != backend.pid])
    uses = {backend.pid: 100, worker: 50, os.getpid(): 30}
    file.write(make_gpu(uses, uuid="GPU-7"))
    gpu = listed(monitor, ours=150)
    assert gpu["models"] == [{"model": "m", "pid": backend.pid, "memory": 150, "gtt": None}]
    (other,) = gpu["processes"]
    assert (other["pid"], other["memory"]) == (os.getpid(), 30)
    assert other["name"]
    assert other["user"]
    assert (gpu["others"], gpu["unexplained"], gpu["used"]) == (30, 420, 600)
    answer = get(monitor, "/backends")
    assert {**answer["gpus"][0], "age_seconds": 0} == {**gpu, "age_seconds": 0}
    (item,) = answer["backends"]
    assert item["memory"]["breakdown"] == {"vram:test0": 150}
    assert (item["process"]["tree"]["vram"], item["process"]["tree"]["gtt"]) == (150, None)
    reading = get(monitor, "/backend/monitor?model=m")
    assert reading["memory"]["breakdown"] == {"vram:test0": 150}
    assert [gpu.uuid for gpu in monitor.gpus()] == ["GPU-7"]
    metrics = Client(monitor.url).request("GET", "/metrics").body.decode()
    held = 'monitor_gpu_memory_held_bytes{component="vram:test0",holder="ours",index="0",'
    assert f'{held}name="Test GPU",uuid="GPU-7"}} 150.0' in metrics
    assert 'component="vram:test0",model="m"' in metrics


@pytest.mark.parametrize("path", ["/gpus", "/backend/monitor?model=m"])
def test_member_that_started_since_the_last_list_is_found(
    path: str,
    file: GpuFile,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list itself looks for members."""
    monkeypatch.setattr(UsageReader, "record_baseline", lambda reader: None)
    monitor = make_monitor([file, Ready()], gpu="off")
    parent = spawner.process("sh", "-c", "read line; sleep 1000 & echo $!; wait", stdin=-1)
    register(monitor, parent.pid)
    monitor.sweep()
    assert parent.stdin
    assert parent.stdout
    parent.stdin.write("\n")
    parent.stdin.flush()
    child = int(parent.stdout.readline())
    file.write(make_gpu({child: 50}))

    def is_found() -> bool:
        answer = get(monitor, path)
        if path == "/gpus":
            return bool(answer["gpus"]) and answer["gpus"][0]["ours"] == 50
        return bool(answer["memory"]["breakdown"] == {"vram:test0": 50})

    eventually(is_found)


def test_components_of_backends_and_hooks_replace_those_of_gpus(
    file: GpuFile, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A hook that reports `vram` reports the sum of all devices."""
    ready = Ready()
    monitor = make_monitor([file, ready], gpu="off")
    pid = spawner.sleeper().pid
    register(monitor, pid)
    file.write(make_gpu({pid: 100}), make_gpu({pid: 10}, component="vram:test1", uuid="GPU-1"))
    listed(monitor, ours=100)

    def vram() -> tuple[dict[str, int], int]:
        (item,) = get(monitor, "/backends")["backends"]
        return item["memory"]["breakdown"], item["process"]["tree"]["vram"]

    # Answers within 20 ms share a sweep.
    eventually(lambda: vram() == ({"vram:test0": 100, "vram:test1": 10}, 110))
    ready.components = {"vram:test1": 12}
    eventually(lambda: vram() == ({"vram:test0": 100, "vram:test1": 12}, 112))
    ready.components = {"vram": 111}
    eventually(lambda: vram() == ({"vram:test0": 100, "vram:test1": 10, "vram": 111}, 111))
    ready.components = {}
    ready.memory = Memory(7, {"vram:test0": 5})
    eventually(lambda: vram()[0] == {"vram:test0": 5, "vram:test1": 10})


def test_list_without_a_sweep_has_the_last_gpus(
    file: GpuFile,
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the GPUs of the last sweep, or newer ones if that sweep was long ago."""
    monitor = make_monitor([file, Ready()], gpu="off")
    pid = spawner.sleeper().pid
    register(monitor, pid)

    def last() -> list[tuple[int, str | None]]:
        answer = get(monitor, "/backends?fresh=false")
        return [(gpu["ours"], gpu["note"]) for gpu in answer["gpus"]]

    file.write(make_gpu({pid: 100}))
    listed(monitor, ours=100)
    assert last() == [(100, None)]  # there was no sweep yet
    monitor.sweep()
    file.write(make_gpu({pid: 200}))
    listed(monitor, ours=200)
    assert last() == [(100, None)]
    monkeypatch.setattr(sweeper, "STALE_SECONDS", 0.0)
    assert last() == [(200, None)]


def test_unknown_amount_is_in_no_reading(
    file: GpuFile, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The reading has neither 0 nor the sum of the known amounts."""
    monitor = make_monitor([file, Ready()], gpu="off")
    pid = spawner.sleeper().pid
    register(monitor, pid)
    file.write(make_gpu({pid: None}), make_gpu({pid: 10}, component="vram:test1", uuid="GPU-1"))
    gpu = listed(monitor, ours=None)
    assert f"PID {pid}" in gpu["note"]
    (item,) = get(monitor, "/backends")["backends"]
    assert item["memory"]["breakdown"] == {"vram:test1": 10}
    assert item["process"]["tree"]["vram"] is None


def test_backend_that_has_ended_holds_nothing_of_ours(
    file: GpuFile, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """While the driver goes on listing its PID, the bytes are those of a process without a name."""
    monitor = make_monitor([file], gpu="off")
    process = spawner.sleeper()
    register(monitor, process.pid)
    file.write(make_gpu({process.pid: 100}))
    listed(monitor, ours=100)
    process.kill()
    process.wait()
    eventually(lambda: not monitor.backends())
    gpu = listed(monitor, ours=0)
    assert (gpu["others"], gpu["unexplained"]) == (100, 500)
    other = {"pid": process.pid, "name": None, "user": None, "memory": 100, "gtt": None}
    listed(monitor, processes=[other])


def test_hook_that_hangs_delays_no_answer(
    file: GpuFile, make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Its last devices stay, with their age, and the monitor closes."""
    monitor = make_monitor([file, Ready()], gpu="off", hook_timeout_seconds=0.2)
    pid = spawner.sleeper().pid
    register(monitor, pid)
    file.write(make_gpu({pid: 100}))
    listed(monitor, ours=100)
    file.write(make_gpu({pid: 200}), fault="hang")
    aged = eventually(lambda: [each for each in get(monitor)["gpus"] if each["age_seconds"] > 1.5])
    assert aged[0]["ours"] == 100
    began = time.monotonic()
    for _ in range(20):
        assert get(monitor, "/backends")["backends"][0]["process"]["tree"]["vram"] == 100
        get(monitor, "/backend/monitor?model=m")
        Client(monitor.url).request("GET", "/metrics")
    assert time.monotonic() - began < 20  # each of 60 answers would take 0.2 s or 1 s longer
    monitor.close()


@pytest.mark.parametrize("fault", ["raise", "rubbish"])
def test_hook_that_fails_is_logged_and_its_devices_age(
    fault: str,
    file: GpuFile,
    make_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = make_monitor([file], gpu="off")
    file.write(make_gpu({}))
    listed(monitor, used=600)
    file.write(make_gpu({}, used=700), fault=fault)
    eventually(lambda: get(monitor)["gpus"][0]["age_seconds"] > 1.5)
    assert listed(monitor)["used"] == 600
    assert "hook monitor_list_gpus" in caplog.text
    file.write(make_gpu({}, used=700))
    listed(monitor, used=700)


def test_hook_file_lists_gpus_in_a_monitor_process(tmp_path: Path, spawner: Spawner) -> None:
    """The hook file is one for tests of real monitor processes."""
    file = GpuFile(tmp_path / "gpus.json")
    file.write(make_gpu({}))
    process = spawner.process(
        *(sys.executable, "-c", PROGRAM),
        stdin=subprocess.PIPE,
        env={
            **os.environ,
            hook_file.VARIABLE: str(file.path),
            "MONITOR_HOOK": hook_file.HOOK,
            "MONITOR_GPU": "off",
            "MONITOR_LISTEN": "none",
        },
    )
    assert process.stdout
    assert json.loads(process.stdout.readline()) == ["vram:test0"]


PROGRAM = """
import json, monitor_plugin
with monitor_plugin.Monitor() as monitor:
    print(json.dumps([gpu.component for gpu in monitor.gpus()]), flush=True)
"""


class Devices:
    """Lists what a test wants."""

    def __init__(self, gpus: object) -> None:
        self.gpus = gpus

    @hookimpl
    def monitor_list_gpus(self) -> Any:
        return self.gpus


class Int(int):
    """A third party's integer, which msgspec cannot encode."""


@pytest.mark.parametrize(
    "rubbish",
    [
        5,
        "ab",
        {"a": 1},
        [None],
        [{"component": "vram:a"}],
        [make_gpu({}), make_gpu({}, component="")],
        [make_gpu({}, component=None)],
        [make_gpu({}, name="\udce9")],
        [make_gpu({}, used=-1)],
        [make_gpu({}, used=2**64)],
        [make_gpu({}, used=1.5)],
        [make_gpu({}, used=True)],
        [make_gpu({}, power_watts=float("nan"))],
        [make_gpu({}, power_watts="1")],
        [Gpu(component="a", vendor="x", uses=5)],  # type: ignore[arg-type]
        [Gpu(component="a", vendor="x", uses=[5])],  # type: ignore[list-item]
        [Gpu(component="a", vendor="x", uses=[GpuUse("1", 1)])],  # type: ignore[arg-type]
        [make_gpu({1: 2**63, 2: 2**63})],
        [make_gpu({}, unread="a")],
    ],
)
def test_invalid_devices_are_ignored(
    rubbish: object, make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make_monitor([Devices(rubbish)], gpu="off")
    assert get(monitor) == NOTHING
    assert get(monitor, "/backends")["gpus"] == []
    assert "hook monitor_list_gpus returned" in caplog.text


@pytest.mark.parametrize(
    ("rubbish", "named"),
    [
        ([make_gpu({}), {"component": "vram:a"}], "item 1 is dict"),
        ([make_gpu({}), make_gpu({}, used="600")], "item 1: Expected"),
        ([make_gpu({}, power_watts=float("nan"))], "item 0: the value of 'power_watts'"),
        ([make_gpu({}, component="")], "item 0: the value of 'component'"),
    ],
)
def test_log_names_what_is_invalid_in_a_list_of_devices(
    rubbish: object,
    named: str,
    make_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An author need not guess which of many fields has the wrong value."""
    monitor = make_monitor([Devices(rubbish)], gpu="off")
    assert get(monitor) == NOTHING
    assert named in caplog.text


def test_odd_devices_are_accepted(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """The first of devices of one component counts, and the first use of a process."""
    odd = Gpu(
        component="tpu",
        vendor="x",
        total=Int(2**64 - 1),
        temperature_celsius=-5,
        uses=(GpuUse(2**31, 7), GpuUse(2**31, 9)),
    )
    monitor = make_monitor([Devices((odd, make_gpu({}), make_gpu({}, used=1)))], gpu="off")
    first, second = get(monitor)["gpus"]
    assert (first["total"], first["temperature_celsius"]) == (2**64 - 1, -5)
    assert [each["memory"] for each in first["processes"]] == [7]
    assert second["used"] == 600
    assert "'vram:test0' is listed more than once" in caplog.text


def test_device_of_the_plugin_registered_last_counts(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """As with other hooks, the plugin that was registered last is called first."""
    monitor = make_monitor(
        [Devices([make_gpu({}, used=1)]), Devices([make_gpu({}, used=2)])], gpu="off"
    )
    assert [each["used"] for each in get(monitor)["gpus"]] == [2]
    assert "'vram:test0' is listed more than once" in caplog.text


def test_list_and_its_gpus_come_from_one_reading(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """Also while the figures change all the time."""
    pid = spawner.sleeper().pid
    amounts = itertools.count(1)

    class Changing:
        @hookimpl
        def monitor_list_gpus(self) -> Sequence[Gpu]:
            return [make_gpu({pid: next(amounts)})]

    monitor = make_monitor([Changing(), Ready()], gpu="off")
    register(monitor, pid)
    stop = threading.Event()

    def read_all_the_time() -> None:
        while not stop.is_set():
            monitor._services.gpu_reader.read(max_age_seconds=0)

    thread = threading.Thread(target=read_all_the_time)
    thread.start()
    try:
        for _ in range(20):
            answer = get(monitor, "/backends")
            (gpu,), (item,) = answer["gpus"], answer["backends"]
            assert gpu["ours"] == item["process"]["tree"]["vram"]
            assert gpu["ours"] == item["memory"]["breakdown"]["vram:test0"]
    finally:
        stop.set()
        thread.join()
