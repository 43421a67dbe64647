"""Backends above a memory limit are stopped, in the configured order."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Backend, Gpu, GpuUse, Memory, PluginError, Reading, Status, hookimpl
from monitor_plugin.domain.models import Observation, TreeUsage

from ..embedded_host import EmbeddedHost
from ..support import Spawner, eventually, is_running
from .conftest import Hooked, MakeHooked

MIB = 1024 * 1024


class Watched:
    """Real processes and a real monitor, with made-up observations.

    Args:
        hook: the monitor.
        spawner: starts the processes, one a model.
    """

    def __init__(self, hook: Hooked, spawner: Spawner, *models: str) -> None:
        self.hook = hook
        self._now = time.monotonic()
        for number, model in enumerate(models, 1):
            hook.monitor.hook.monitor_backend_spawned(
                model=model, pid=spawner.sleeper().pid, address=f"127.0.0.1:{number}"
            )

    @property
    def running(self) -> list[str]:
        """The models whose processes still run after all stops have ended."""
        eventually(lambda: not self.hook.module._limit.stops.under_way())
        return [each.model for each in self.hook.monitor.backends()]

    def sweep(self, *, times: int = 1, **seen: Any) -> None:
        """Run sweeps, five seconds apart, that observe the memory of each model, in MiB.

        A model's value is its memory, or memory and state, status or gRPC code, or None.
        """
        for _ in range(times):
            self._now += 5
            backends = {each.model: each for each in self.hook.monitor.backends()}
            observations = [
                observed(backends[m], each) for m, each in seen.items() if m in backends
            ]
            self.hook.module._limit.check(observations, self._now)


def observed(backend: Backend, seen: Any) -> Observation:
    held, word = seen if isinstance(seen, tuple) else (seen, 2)
    status = Status(word) if isinstance(word, int) else word if isinstance(word, Status) else None
    code = word if isinstance(word, str) else None
    memory = None
    if isinstance(held, dict):
        memory = Memory(0, {name: amount * MIB for name, amount in held.items()})
    elif held is not None:
        memory = Memory(held * MIB)
    return Observation(
        backend=backend,
        reading=Reading(backend, status, None, "grpc", code, time.time()),
        memory=memory,
        tree=TreeUsage(processes=1, cpu_seconds=1.0),
    )


MakeWatched = Callable[..., Watched]


@pytest.fixture
def watched(hooked: MakeHooked, spawner: Spawner) -> MakeWatched:
    """Makes a `Watched`: `watched("a", "b", TOTAL="1GiB")`."""

    def make(*models: str, **hook_settings: str) -> Watched:
        hook = hooked("memory_limit", hook_settings, sweep_interval_seconds=0)
        return Watched(hook, spawner, *models)

    return make


def test_backend_over_its_limit_is_stopped(
    watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit of the first matching pattern counts; the log has the figures."""
    host = watched("a1", "a2", "b", "free", MODELS="free=none,a1=1GiB,a*=100MiB,*=200MiB")
    host.sweep(times=3, a1=900, a2=101, b=200, free=10000)
    assert host.running == ["a1", "b", "free"]
    (line,) = caplog.messages
    assert "model 'a2' (process" in line
    assert "uses 101 MiB, over 100 MiB for 'a*'" in line


def test_single_high_figure_stops_no_backend(watched: MakeWatched) -> None:
    """The memory must exceed the limit in each sweep for FOR_SECONDS."""
    host = watched("a", "b", MODELS="a=100MiB", TOTAL="1GiB", FOR_SECONDS="10")
    for a, b in ((5000, 1), (50, 1), (101, 1), (101, 1), (None, 5000), (101, 1), (101, 1)):
        host.sweep(a=a, b=b)
    assert host.running == ["a", "b"]
    host.sweep(a=101, b=1)
    assert host.running == ["b"]


def test_shortest_duration_takes_two_sweeps(watched: MakeWatched) -> None:
    """Also if FOR_SECONDS is shorter than the time between two sweeps."""
    host = watched("a", MODELS="100MiB", FOR_SECONDS="0.001")
    host.sweep(a=101)
    assert host.running == ["a"]
    host.sweep(a=101)
    assert host.running == []


@pytest.mark.parametrize(
    ("order", "left"), [("largest", ["old", "new", "busy"]), ("lru", ["big", "new", "busy"])]
)
def test_total_limit_stops_as_few_backends_as_needed(
    order: str, left: list[str], watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest or the longest idle backend is stopped first; busy ones are spared."""
    host = watched("big", "old", "new", "busy", TOTAL="1000MiB", ORDER=order)
    host.sweep(big=1, old=(1, 1), new=1, busy=(1, 1))
    host.sweep(big=1, old=1, new=(1, 1), busy=(1, 1))
    host.sweep(big=(1, 1), old=1, new=1, busy=(1, 1))
    host.sweep(times=3, big=500, old=300, new=100, busy=(350, 1))
    assert host.running == left
    host.sweep(times=3, **dict.fromkeys(left, 100))
    assert host.running == left
    (line,) = caplog.messages
    assert "4 backends use 1.221 GiB, over 1000 MiB in total (this backend: " in line


def test_backend_that_is_being_stopped_does_not_count(watched: MakeWatched) -> None:
    """No other backend is stopped in its place, regardless of the duration of the stop."""
    agree = threading.Event()

    class TakesLong:
        @hookimpl
        def monitor_stop_backend(self) -> None:
            agree.wait(30)

    host = watched("a", "b", "c", TOTAL="1000MiB", ORDER="largest")
    host.hook.monitor.plugin_manager.register(TakesLong())
    host.sweep(times=8, a=900, b=400, c=300)
    agree.set()
    assert host.running == ["b", "c"]


def test_refused_stop_does_not_prevent_other_stops(
    watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """Other backends are stopped instead, and the log reports the refusal once."""

    class Refuses:
        @hookimpl
        def monitor_before_shutdown(self, backend: Backend) -> str | None:
            return "not today" if backend.model == "kept" else None

    host = watched("kept", "a", "b", TOTAL="1000MiB", ORDER="largest")
    host.hook.monitor.plugin_manager.register(Refuses())
    host.sweep(times=3, kept=900, a=400, b=300)
    assert host.running == ["kept", "a", "b"]  # without `kept` it would be enough
    host.sweep(times=3, kept=900, a=400, b=300)
    assert host.running == ["kept"]
    assert sum("refused" in each for each in caplog.messages) == 1


@pytest.mark.parametrize(
    "seen",
    [1, "DEADLINE_EXCEEDED", Status(2, requests_running=1)],
    ids=["busy", "missed", "has a request"],
)
def test_backend_that_may_be_busy_is_spared(
    seen: int | str | Status, watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once that no backend may be stopped; an idle backend is stopped."""
    host = watched("a", MODELS="100MiB", TOTAL="1MiB")
    host.sweep(times=5, a=(101, seen))
    assert host.running == ["a"]
    assert len(caplog.messages) == 2  # for the model, and for all
    assert "model 'a' (process " in caplog.messages[0]
    assert "uses 101 MiB, over 100 MiB for '*', and no backend may be stopped now" in caplog.text
    host.sweep(a=101)
    assert host.running == []


def test_stop_busy_stops_backend_that_may_be_busy(watched: MakeWatched) -> None:
    """`STOP_BUSY`."""
    host = watched("a", MODELS="100MiB", STOP_BUSY="yes")
    host.sweep(times=3, a=(101, 1))
    assert host.running == []


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in caplog.messages if "needs attention" in each]


def test_limits_are_told_of_once(watched: MakeWatched, caplog: pytest.LogCaptureFixture) -> None:
    """Each backend, also a busy one, is told once; the total is told once with any backend."""
    host = watched("a", "b", MODELS="a=100MiB", TOTAL="1000MiB", ACTION="tell")
    host.sweep(times=5, a=(500, 1), b=600)
    eventually(lambda: len(told(caplog)) == 2)
    host.sweep(a=500, b=(600, 1))
    host.sweep(times=5, a=500, b=600)
    assert host.running == ["a", "b"]
    assert len(told(caplog)) == 2
    assert "uses 500 MiB, over 100 MiB for 'a' (this backend: 500 MiB, idle for" in caplog.text
    assert "2 backends use 1.074 GiB, over 1000 MiB in total (this backend: " in caplog.text
    host.sweep(times=2, a=50, b=600)
    host.sweep(times=5, a=500, b=600)
    assert host.running == ["a", "b"]
    eventually(lambda: len(told(caplog)) == 4)
    assert len(caplog.messages) == 4


def test_protected_model_counts_and_is_not_stopped(
    watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """Another backend is stopped in its place."""
    host = watched("kept", "a", TOTAL="1000MiB", MODELS="kept=1MiB", ORDER="largest", PROTECT="k*")
    host.sweep(times=5, kept=900, a=400)
    assert host.running == ["kept"]
    assert sum("is being stopped" in each for each in caplog.messages) == 1
    eventually(lambda: len(told(caplog)) == 2)  # of its own limit, and of the total one
    assert all("model 'kept' " in each for each in told(caplog))
    host.sweep(times=5, kept=900)
    assert host.running == ["kept"]
    assert len(told(caplog)) == 2


def test_model_over_its_limit_is_restarted(hooked: MakeHooked, spawner: Spawner) -> None:
    """With ACTION=restart the host restarts the large model, and not the small one."""
    host = EmbeddedHost(spawner, {"large": ("--weights-mib", "40"), "small": ()})
    hook = hooked(
        "memory_limit",
        {"MODELS": "30MiB", "FOR_SECONDS": "0.5", "ACTION": "restart", "RESTARTS_PER_HOUR": "1"},
        plugins=[host],
        sweep_interval_seconds=0.2,
        hook_timeout_seconds=30,
    )
    eventually(lambda: host.started == ["large"])
    eventually(lambda: hook.module._limit.watchdog._histories["large"].gave_up)
    assert host.started == ["large"]
    assert sorted(each.model for each in hook.monitor.backends()) == ["large", "small"]


def test_unknown_memory_exceeds_no_limit(watched: MakeWatched) -> None:
    """Unknown memory exceeds neither a model's limit nor the total."""
    host = watched("a", "b", MODELS="a=1MiB", TOTAL="1000MiB")
    host.sweep(times=5, a=None, b=900)
    assert host.running == ["a", "b"]


def test_component_can_be_limited(watched: MakeWatched) -> None:
    """The component replaces the total; backends without the component do not count."""
    host = watched("a", "b", TOTAL="1000MiB", COMPONENT="vram", ORDER="largest")
    host.sweep(times=5, a={"vram:0": 400, "vram:1": 400, "weights": 5000}, b=5000)
    assert host.running == ["a", "b"]
    host.sweep(times=3, a={"vram:0": 600, "vram:1": 500}, b={"vram": 10})
    assert host.running == ["b"]


def test_real_backends_are_stopped(hooked: MakeHooked, spawner: Spawner) -> None:
    """Both the reported memory and the memory of the processes count, in background sweeps."""
    switches = {
        "says": ("--weights-mib", "40"),
        "holds": ("--no-status", "--weights-mib", "150"),
        "small": (),
        "busy": ("--weights-mib", "40", "--busy-seconds", "1000"),
    }
    backends = {model: spawner.backend(*each) for model, each in switches.items()}
    hook_settings = {"MODELS": "holds=140MiB,*=30MiB", "FOR_SECONDS": "0.5"}
    hook = hooked("memory_limit", hook_settings, sweep_interval_seconds=0.2)
    for model, backend in backends.items():
        hook.spawned(model, backend)
    eventually(lambda: len(hook.monitor.backends()) == 2)
    assert [each.model for each in hook.monitor.backends()] == ["small", "busy"]
    assert not is_running(backends["says"].pid)
    assert not is_running(backends["holds"].pid)


# Maps a file and reads it, as llama.cpp does with a model, and has other memory of so many MiB.
MAPS = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
total = sum(mapped[at] for at in range(0, len(mapped), 4096))
block = bytearray(b"x") * (int(sys.argv[2]) * 1024 * 1024)
print("mapped", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(("count", "left"), [("all", []), ("unreclaimable", ["maps"])])
def test_pages_of_a_mapped_model_count_as_configured(
    hooked: MakeHooked, spawner: Spawner, tmp_path: Path, count: str, left: list[str]
) -> None:
    """The kernel can drop them. Other memory counts in any case."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(MIB) * 150)
    if subprocess.check_output(["stat", "-f", "-c", "%T", path]) == b"tmpfs\n":
        pytest.skip("files of a tmpfs are shared memory")
    running = {
        "maps": spawner.python(MAPS, str(path), "1"),
        "holds": spawner.python(MAPS, __file__, "150"),
    }
    hook_settings = {"MODELS": "100MiB", "COUNT": count, "FOR_SECONDS": "1"}
    hook = hooked("memory_limit", hook_settings, sweep_interval_seconds=0.2)
    for number, (model, process) in enumerate(running.items(), 1):
        assert process.stdout
        assert process.stdout.readline() == "mapped\n"
        hook.monitor.hook.monitor_backend_spawned(
            model=model, pid=process.pid, address=f"127.0.0.1:{number}"
        )
    eventually(lambda: [each.model for each in hook.monitor.backends()] == left)
    if left:
        (observation,) = hook.monitor.sweep()
        assert observation.memory
        assert observation.tree
        assert observation.tree.file is not None
        assert observation.memory.total > 150 * MIB
        assert 150 * MIB <= observation.tree.file < 180 * MIB


class Devices:
    """A plugin with GPUs."""

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = gpus

    @hookimpl
    def monitor_list_gpus(self) -> Sequence[Gpu]:
        return self.gpus


class Components:
    """A plugin that may report components."""

    @hookimpl
    def monitor_memory_components(self) -> Mapping[str, int]:
        return {}


KNOWN = Gpu(component="vram:acme0", vendor="acme", uses=())
USELESS = Gpu(component="vram:acme1", vendor="acme", uses=None)
UNREPORTED = Gpu(component="vram:acme2", vendor="nvidia", uses=(GpuUse(1, None),))


@pytest.mark.parametrize(
    ("component", "plugin", "is_error"),
    [
        ("vram", None, True),
        ("vram:acme0", Devices(KNOWN, USELESS), False),
        ("vram", Devices(USELESS, KNOWN), False),
        ("gtt", Devices(KNOWN), False),
        ("vram:acme1", Devices(KNOWN, USELESS), True),
        ("vram:acme2", Devices(UNREPORTED), True),
        ("gtt", Devices(UNREPORTED), True),
        ("vram:acme", Devices(KNOWN), True),
        ("vram", Components(), False),
        ("weights", None, False),
    ],
)
def test_limit_on_a_component_that_nothing_reports_is_an_error(
    hooked: MakeHooked,
    caplog: pytest.LogCaptureFixture,
    component: str,
    plugin: object | None,
    is_error: bool,
) -> None:
    """The log says so at the start, and names the devices."""
    hook_settings = {"TOTAL": "1GiB", "COMPONENT": component}
    plugins = [plugin] if plugin else []
    hooked("memory_limit", hook_settings, plugins=plugins, gpu="off", sweep_interval_seconds=0)
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(errors) == is_error
    if is_error:
        text = errors[0].getMessage()
        assert f"MONITOR_HOOK_MEMORY_LIMIT_COMPONENT={component!r} limits nothing" in text
        names = [gpu.component for gpu in plugin.gpus] if isinstance(plugin, Devices) else ["none"]
        assert f"GPUs: {', '.join(names)} (" in text


def test_component_that_no_backend_has_is_an_error_after_some_sweeps(
    watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and only while a backend is ready: a loading backend has no memory yet."""
    host = watched("a", "b", TOTAL="1GiB", COMPONENT="wieghts")
    host.sweep(times=20, a=({"weights": 1}, 1), b=({"kv": 1}, 0))
    host.sweep(times=11, a=({"weights": 1}, 2), b=({"kv": 1}, 0))
    assert caplog.messages == []
    host.sweep(times=30, a=({"weights": 1}, 2), b=({"kv": 1}, "UNIMPLEMENTED"))
    (line,) = caplog.messages
    assert "COMPONENT='wieghts' limits nothing: no backend had this component" in line
    assert line.endswith("they have: kv, weights")


def test_component_that_was_seen_once_is_no_error(
    watched: MakeWatched, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend without the component may run on a CPU."""
    host = watched("a", TOTAL="1GiB", COMPONENT="vram")
    caplog.clear()
    host.hook.module._limit._watches_component = True  # as with a plugin that reports components
    host.sweep(times=5, a={"weights": 1})
    host.sweep(a={"vram:0": 1})
    host.sweep(times=30, a={"weights": 1})
    assert caplog.messages == []


def test_hook_does_nothing_without_a_limit(watched: MakeWatched) -> None:
    """All shipped hooks can be loaded together without settings."""
    host = watched("a")
    host.sweep(times=5, a=10**9)
    assert host.running == ["a"]


@pytest.mark.parametrize(
    ("hook_settings", "why"),
    [
        ({"MODELS": "a=8"}, None),
        (
            {"MODELS": "a=8 Gb"},
            "_MODELS='a=8 Gb': in 'a=8 Gb': it is not a number of bytes",
        ),
        ({"TOTAL": "9" * 400}, "999': it is not a number of bytes; write bytes, as 48GiB"),
        ({"TOTAL": "80%"}, "_TOTAL='80%': it is not a number of bytes; write bytes, as 48GiB"),
        ({"ORDER": "oldest"}, "_ORDER='oldest': it is none of lru, largest; write lru or largest"),
        ({"STOP_BUSY": "1"}, "_STOP_BUSY='1': it is neither yes nor no; write yes or no"),
        ({"COUNT": "some"}, "_COUNT='some': it is none of all, unreclaimable; write all or"),
        (
            {"COUNT": "unreclaimable", "COMPONENT": "vram"},
            "_COUNT='unreclaimable': the kernel drops pages of the total, not of a component; "
            "unset COUNT or COMPONENT",
        ),
        ({"FOR_SECONDS": "0"}, "_FOR_SECONDS='0': it must be over 0, and finite; write seconds"),
    ],
)
def test_invalid_settings_are_refused(
    hook_settings: dict[str, str], why: str | None, hooked: MakeHooked
) -> None:
    """Loading the file raises an error with the expected value."""
    if why is None:
        hooked("memory_limit", hook_settings)
        return
    with pytest.raises(PluginError) as raised:
        hooked("memory_limit", hook_settings)
    assert "MONITOR_HOOK_MEMORY_LIMIT_" in str(raised.value)
    assert why in str(raised.value)
