"""`/metrics`: both formats, every figure with its labels, and nothing that is not known."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitor_plugin import (
    Backend,
    BackendExit,
    EventFigures,
    KnownModel,
    LoadedPlugin,
    Memory,
    Monitor,
    Reading,
    Status,
    hookimpl,
)
from monitor_plugin.api.schemas import GpuItem
from monitor_plugin.backends.counters import ModelCounts
from monitor_plugin.backends.registry import EndedBackend
from monitor_plugin.domain.models import (
    LeftBehindProcess,
    Limits,
    Observation,
    ProcessUsage,
    State,
    TreeUsage,
)
from monitor_plugin.domain.units import HostUnit
from monitor_plugin.domain.version import package_version
from monitor_plugin.gpu.reading import GpuReading
from monitor_plugin.http.exposition import Exposition
from monitor_plugin.http.resources.metrics import INSTALL, OPENMETRICS, TEXT
from monitor_plugin.readings.sweeper import Sweep
from monitor_plugin.rpc.call import StatusCounter

from ..support import Client, Spawner, eventually, free_port, register
from .test_app import assert_error

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
BACKEND = {"model": "m", "replica": "127.0.0.1:1"}
UNIT = HostUnit(
    manager="systemd",
    name="m.service",
    memory_current=1,
    memory_max=2,
    memory_peak=3,
    tasks=4,
    cpu_quota=0.5,
    restarts=6,
)
LIMITS = Limits(
    memory_limit=8000,
    memory_available=5000,
    cpu_limit=1.5,
    memory_pressure=2.5,
    cpu_pressure=40.0,
)
GPU = GpuItem(
    component="vram:nvidia0",
    uuid="GPU-1",
    index=0,
    name="A100",
    total=1000,
    used=600,
    free=300,
    ours=400,
    others=150,
    unexplained=50,
    gtt_total=90,
    gtt_used=80,
    utilization_percent=75.0,
    temperature_celsius=61.5,
    power_watts=250.5,
    age_seconds=0.5,
)
GPU_LABELS = {"component": "vram:nvidia0", "uuid": "GPU-1", "index": "0", "name": "A100"}
# What Prometheus 2.42 asks for.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def series(text: str, media_type: str = TEXT) -> Series:
    """Parse every sample, and check that no series occurs twice."""
    parse = parse_openmetrics if media_type == OPENMETRICS else parse_text
    found: Series = {}
    for family in parse(text):
        for name, labels, value, *_ in family.samples:
            key = (name, frozenset(labels.items()))
            assert key not in found
            found[key] = value
    return found


def value(found: Series, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def observe(model: str = "m", address: str = "127.0.0.1:1", **facts: Any) -> Observation:
    return Observation(backend=Backend(model, 2, address, 1.0), **facts)


def read(
    state: int, memory: Memory | None = None, load: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Any]:
    status = msgspec.structs.replace(Status(state), **load)
    reading = Reading(Backend("m", 2, "a", 1.0), status, None, "grpc", None, 1.0)
    return {"reading": reading, "memory": memory}


LOAD = {
    "requests_running": 2,
    "requests_waiting": 0,
    "tokens_per_second": 41.5,
    "kv_cache_percent": 62.5,
}
TREE = TreeUsage(
    processes=1, pss=60, anonymous=10, file=20, shared=30, swap=40, memory_age_seconds=2.5
)

# Two backends left processes behind, one left none, and one was not looked at yet.
EXITS = [
    EndedBackend(
        Backend("m", pid, address, 1.0),
        BackendExit("killed", None, 9, None, 2.0),
        False,
        left_behind=None if count is None else (LeftBehindProcess(7, "sleep", 4096),) * count,
    )
    for pid, address, count in (
        (1, "127.0.0.1:1", 1),
        (2, "127.0.0.1:1", 2),
        (3, "127.0.0.1:3", 0),
        (4, "127.0.0.1:4", None),
    )
]


def failed(code: str) -> dict[str, Any]:
    return {"reading": Reading(Backend("m", 2, "a", 1.0), None, None, "psutil", code, 1.0)}


def render(
    *observations: Observation,
    media_type: str = TEXT,
    own_limits: Limits = LIMITS,
    gpus: Sequence[GpuItem] = (),
    units: bool = False,
) -> str:
    counter = StatusCounter()
    counter.add(0.02, "UNAVAILABLE")
    models = {"m": ModelCounts({"killed": 2}, {"stopped": 3})}
    plugins = [
        LoadedPlugin("\udce9", "s", (), EventFigures(3, 2.5, 4, 1)),
        LoadedPlugin("without event hooks", "s", ()),
    ]
    exposition = Exposition(
        lambda: Sweep(list(observations), GpuReading()),
        lambda reading: gpus,
        lambda _: counter.counts(),
        lambda: models,
        lambda: EXITS,
        lambda: plugins,
        lambda: own_limits,
        lambda: [KnownModel("m", "running"), KnownModel("n", "failed", "gave up")],
        lambda backends: {each: UNIT for each in backends if units},
    )
    return exposition.render(media_type)[0].decode()


def scrape(monitor: Monitor, **headers: str) -> Series:
    answer = Client(monitor.url).request("GET", "/metrics", None, headers)
    assert answer.status == 200, answer
    media_type = answer.headers["Content-Type"].partition(";")[0]
    return series(answer.body.decode(), media_type)


@pytest.mark.parametrize("media_type", [TEXT, OPENMETRICS])
def test_both_formats_have_the_same_figures(media_type: str) -> None:
    """Every figure of a backend that gives all stands there, with its labels."""
    memory = Memory(300, {"weights": 200, "kv_cache": 2**64 - 1})
    figures = ProcessUsage(rss=5000, cpu_seconds=1.25)
    text = render(observe(**read(1, memory), process=figures, tree=TREE), media_type=media_type)
    found = series(text, media_type)
    labels = {"model": "m", "replica": "127.0.0.1:1"}
    assert value(found, "monitor_backend_up", **labels) == 1
    for state in ("uninitialized", "busy", "ready", "error", "starting", "unknown"):
        one = value(found, "monitor_backend_state", **labels, monitor_backend_state=state)
        assert one == (state == "busy")
    name = "monitor_backend_memory_bytes"
    assert value(found, name, **labels, component="weights") == 200
    assert value(found, name, **labels, component="kv_cache") == float(2**64 - 1)
    assert value(found, "monitor_backend_memory_total_bytes", **labels) == 300
    assert value(found, "monitor_backend_process_resident_bytes", **labels) == 5000
    assert value(found, "monitor_backend_process_cpu_seconds_total", **labels) == 1.25
    name = "monitor_backend_process_memory_bytes"
    kinds = {"anonymous": 10, "file": 20, "shared": 30, "swap": 40, "pss": None}
    assert {kind: value(found, name, **labels, kind=kind) for kind in kinds} == kinds
    assert value(found, "monitor_backend_process_memory_age_seconds", **labels) == 2.5
    name = "monitor_backend_status_duration_seconds"
    assert value(found, f"{name}_bucket", **labels, le="0.01") == 0
    assert value(found, f"{name}_bucket", **labels, le="0.05") == 1
    assert value(found, f"{name}_bucket", **labels, le="+Inf") == 1
    assert value(found, f"{name}_count", **labels) == 1
    assert value(found, f"{name}_sum", **labels) == 0.02
    failures = "monitor_backend_status_failures_total"
    assert value(found, failures, **labels, code="UNAVAILABLE") == 1
    assert value(found, "monitor_backend_exits_total", model="m", cause="killed") == 2
    assert value(found, "monitor_backend_shutdowns_total", model="m", outcome="stopped") == 3
    for model, current in (("m", "running"), ("n", "failed")):
        for state in ("running", "starting", "stopped", "waiting", "failed", "exited"):
            one = value(found, "monitor_model_state", model=model, state=state)
            assert one == (state == current)
    # Of two backends that ended at the same address.
    assert value(found, "monitor_backend_left_behind_processes", **labels) == 3
    assert text.count("monitor_backend_left_behind_processes{") == 1
    versions = {"version": package_version(), "python_version": platform.python_version()}
    assert value(found, "monitor_build_info", **versions) == 1
    plugin = {"plugin": "\\udce9"}
    assert value(found, "monitor_plugin_events_waiting", **plugin) == 3
    assert value(found, "monitor_plugin_events_oldest_seconds", **plugin) == 2.5
    assert value(found, "monitor_plugin_events_coalesced_total", **plugin) == 4
    assert value(found, "monitor_plugin_events_dropped_total", **plugin) == 1
    assert "without event hooks" not in text
    assert value(found, "monitor_machine_memory_bytes") == psutil.virtual_memory().total
    assert value(found, "monitor_machine_memory_limit_bytes") == 8000
    assert value(found, "monitor_machine_memory_available_bytes") == 5000
    assert value(found, "monitor_machine_cpu_limit_cores") == 1.5
    assert value(found, "monitor_machine_memory_pressure_ratio") == 0.025
    assert value(found, "monitor_machine_cpu_pressure_ratio") == 0.4


@pytest.mark.parametrize(
    ("limits", "amount"),
    [(None, 8000), (Limits(memory_limit=500), 500), (Limits(cpu_limit=1.0), None)],
    ids=["as the monitor", "its own", "none"],
)
def test_memory_limit_of_a_backend_is_the_one_in_force(
    limits: Limits | None, amount: int | None
) -> None:
    """A backend has the limit of the monitor unless it has limits of its own."""
    found = series(render(observe(limits=limits)))
    name = ("monitor_backend_memory_limit_bytes", frozenset(BACKEND.items()))
    assert found.get(name) == amount


def test_unknown_figures_are_absent() -> None:
    """Of a backend that was never read there is a state, which is unknown, and no figure."""
    exposition = Exposition(
        lambda: Sweep([observe()], GpuReading()),
        lambda _: [],
        lambda _: None,
        dict,
        list,
        list,
        Limits,
        list,
        lambda _: {},
    )
    found = series(exposition.render(TEXT)[0].decode())
    assert {name for name, labels in found if not labels} == {"monitor_machine_memory_bytes"}
    names = {name for name, labels in found if labels}
    assert names == {"monitor_build_info", "monitor_backend_state"}
    state = {"model": "m", "replica": "127.0.0.1:1", "monitor_backend_state": "unknown"}
    assert value(found, "monitor_backend_state", **state) == 1
    process, tree = ProcessUsage(rss=None, cpu_seconds=None), TreeUsage(processes=1)
    found = series(render(observe(process=process, tree=tree)))
    assert not [name for name, _ in found if "_process_" in name]


@pytest.mark.parametrize(
    ("facts", "up"),
    [
        (read(State.READY), 1),
        (read(State.ERROR), 1),
        (failed("UNIMPLEMENTED"), 1),
        (failed("DEADLINE_EXCEEDED"), 0),
        (failed("UNAVAILABLE"), 0),
        ({**failed("UNAVAILABLE"), "starting": True}, None),
        ({**failed("DEADLINE_EXCEEDED"), "starting": True}, None),
    ],
)
def test_up_means_that_the_backend_answers(facts: dict[str, Any], up: int | None) -> None:
    """A backend that has no Status is up too; a silent one is not, unless it is starting."""
    found = series(render(observe(**facts)))
    assert value(found, "monitor_backend_up", model="m", replica="127.0.0.1:1") == up


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (read(2), "ready"),
        (read(-1), "error"),
        (read(7), "unknown"),
        ({**failed("DEADLINE_EXCEEDED"), "last_state": State.BUSY}, "unknown"),
        (failed("UNIMPLEMENTED"), "unknown"),
        ({**failed("UNAVAILABLE"), "starting": True}, "starting"),
        ({"starting": True}, "starting"),
    ],
)
def test_exactly_one_state_is_true(facts: dict[str, Any], name: str) -> None:
    """It is what the backend says now, and `unknown` while it says nothing."""
    found = series(render(observe(**facts)))
    states = {
        dict(labels)["monitor_backend_state"]: one
        for (metric, labels), one in found.items()
        if metric == "monitor_backend_state"
    }
    assert len(states) == 6
    assert [state for state, one in states.items() if one] == [name]


@pytest.mark.parametrize("media_type", [TEXT, OPENMETRICS])
@pytest.mark.parametrize(
    "model", ['a"b', "a\\", "a\\nb", "模型 😀", '{a="b"} 1', "# HELP", "a,b='c'"]
)
def test_any_name_is_escaped(model: str, media_type: str) -> None:
    """Whatever a model or a component is called, it comes out as it went in."""
    memory = Memory(1, {f"{model}\n\r\x00": 1, "\u2028": 2})
    found = series(render(observe(model, **read(2, memory)), media_type=media_type), media_type)
    labels = {"model": model, "replica": "127.0.0.1:1"}
    assert value(found, "monitor_backend_up", **labels) == 1
    name = "monitor_backend_memory_bytes"
    assert value(found, name, **labels, component=f"{model}\n\r\x00") == 1
    assert value(found, name, **labels, component="\u2028") == 2


def test_replicas_have_their_own_series() -> None:
    """Two backends of a model differ by their address; one seen twice stands there once."""
    text = render(observe(**read(2)), observe(address="unix:/b", **read(0)), observe(**read(1)))
    found = series(text)
    assert value(found, "monitor_backend_up", model="m", replica="unix:/b") == 1
    busy = {"model": "m", "replica": "127.0.0.1:1", "monitor_backend_state": "busy"}
    assert value(found, "monitor_backend_state", **busy) == 1


def test_a_backend_cannot_flood_prometheus_with_components() -> None:
    """The largest stand there, and the others together; the sum stays what it was."""
    breakdown = {f"c{number}": number for number in range(1000)}
    found = series(render(observe(**read(2, Memory(1, breakdown)))))
    components = {
        dict(labels)["component"]: amount
        for (name, labels), amount in found.items()
        if name == "monitor_backend_memory_bytes"
    }
    assert len(components) == 32
    assert components["c999"] == 999
    assert "c5" not in components
    assert sum(components.values()) == sum(breakdown.values())
    breakdown["(other)"] = 10**6
    text = render(observe(**read(2, Memory(1, breakdown))))
    amounts = re.findall(r"^monitor_backend_memory_bytes\{.*\} (\S+)", text, re.M)
    assert sum(map(float, amounts)) == sum(breakdown.values())


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/json", False),
        ("nonsense;;,", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain, application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text;q=0, text/plain;q=0.1", False),
        ("application/openmetrics-text, text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        (PROMETHEUS, True),
    ],
)
def test_the_format_is_what_the_client_prefers(
    accept: str, openmetrics: bool, client: Client
) -> None:
    """OpenMetrics for who likes it better, by its q, and the text format for everybody else."""
    answer = client.request("GET", "/metrics", None, {"Accept": accept} if accept else {})
    assert answer.status == 200
    kind, _, parameters = answer.headers["Content-Type"].partition(";")
    assert kind == (OPENMETRICS if openmetrics else TEXT)
    assert "charset=utf-8" in parameters
    assert answer.body.endswith(b"# EOF\n") == openmetrics


class Components:
    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Any) -> Mapping[str, int]:
        return {"vram": 7}


@pytest.fixture
def loaded(make_monitor: Callable[..., Monitor], spawner: Spawner) -> Monitor:
    """A monitor with a backend that answers, one that hangs, and one that has no Status."""
    monitor = make_monitor(
        plugins=[Components()], status_timeout_seconds=0.5, start_grace_seconds=0
    )
    for model, switches in (("m", ()), ("hung", ("--hang-status",)), ("old", ("--no-status",))):
        backend = spawner.backend(*switches)
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
    return monitor


def labels_of(monitor: Monitor, model: str) -> dict[str, str]:
    (address,) = [each.address for each in monitor.backends() if each.model == model]
    return {"model": model, "replica": address}


def test_real_backends_are_scraped(loaded: Monitor, spawner: Spawner) -> None:
    """Each shows what it does, none holds up the others, and what is gone is absent at once."""
    m, hung, old = (labels_of(loaded, model) for model in ("m", "hung", "old"))
    up = "monitor_backend_up"
    found: Series = {}

    def all_that_answer_are_up() -> bool:  # on a slow machine a backend may answer too late
        found.clear()
        found.update(scrape(loaded))
        return [value(found, up, **each) for each in (m, hung, old)] == [1, 0, 1]

    eventually(all_that_answer_are_up)
    assert {name.split("_")[0] for name, _ in found} == {
        "monitor"
    }  # no metrics of the host's process
    name = "monitor_backend_memory_bytes"
    assert value(found, name, **m, component="weights") == 2 * 1024**2
    assert value(found, name, **m, component="vram") == 7
    total = "monitor_backend_memory_total_bytes"
    assert value(found, total, **m) == 3 * 1024**2
    assert (value(found, total, **old) or 0) > 10**6
    assert (value(found, "monitor_backend_process_resident_bytes", **hung) or 0) > 10**6
    failures = "monitor_backend_status_failures_total"
    assert value(found, failures, **old, code="UNIMPLEMENTED") == 1
    again = scrape(loaded)
    cpu = "monitor_backend_process_cpu_seconds_total"
    for each in (m, hung, old):
        assert 0 < (value(found, cpu, **each) or 0) <= (value(again, cpu, **each) or 0)
    (process,) = [each for each in loaded.backends() if each.model == "m"]
    Client(loaded.url).shutdown("m")
    gone = scrape(loaded)
    assert not [labels for _, labels in gone if ("replica", process.address) in labels]
    exits, shutdowns = "monitor_backend_exits_total", "monitor_backend_shutdowns_total"
    assert value(gone, exits, model="m", cause="shutdown") == 1
    assert value(gone, exits, model="m", cause="killed") == 0
    assert value(gone, shutdowns, model="m", outcome="stopped") == 1
    assert value(gone, exits, model="old", cause="shutdown") == 0


def test_up_is_absent_until_the_first_answer_or_the_end_of_the_grace(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """So no alert fires while a model is loaded; the state says `starting` meanwhile."""
    monitor = make_monitor()
    port = free_port()
    launcher = spawner.launcher(f"127.0.0.1:{port}")
    register(monitor, launcher.pid, "loads", f"127.0.0.1:{port}")
    register(monitor, spawner.sleeper().pid, "never")
    loads, never = (labels_of(monitor, model) for model in ("loads", "never"))
    found = scrape(monitor)
    for each in (loads, never):
        assert value(found, "monitor_backend_up", **each) is None
        state = {**each, "monitor_backend_state": "starting"}
        assert value(found, "monitor_backend_state", **state) == 1
    launcher.launch()
    for record in monitor._services.registry.records():
        record.registered_at -= 300
    found = scrape(monitor)
    assert value(found, "monitor_backend_up", **loads) == 1
    assert value(found, "monitor_backend_up", **never) == 0


@pytest.mark.parametrize("media_type", [TEXT, OPENMETRICS])
def test_gpus_have_metrics(media_type: str) -> None:
    found = series(render(media_type=media_type, gpus=[GPU]), media_type)
    figures = {
        name.removeprefix("monitor_gpu_"): amount
        for (name, labels), amount in found.items()
        if labels == frozenset(GPU_LABELS.items())
    }
    assert figures == {
        "memory_total_bytes": 1000,
        "memory_used_bytes": 600,
        "memory_free_bytes": 300,
        "gtt_total_bytes": 90,
        "gtt_used_bytes": 80,
        "utilization_ratio": 0.75,
        "temperature_celsius": 61.5,
        "power_watts": 250.5,
        "age_seconds": 0.5,
    }
    held = {
        dict(labels)["holder"]: amount
        for (name, labels), amount in found.items()
        if name == "monitor_gpu_memory_held_bytes"
    }
    assert held == {"ours": 400, "others": 150, "unexplained": 50}


def test_unknown_and_old_figures_of_gpus_are_absent() -> None:
    """Devices without a UUID and a name differ by their component."""
    unknown = GpuItem(component="vram:a", age_seconds=1.0)
    old = msgspec.structs.replace(GPU, component="vram:b", age_seconds=31.0)
    found = series(render(gpus=[unknown, old]))
    samples = [(name, dict(labels)["component"]) for name, labels in found if "_gpu_" in name]
    assert sorted(samples) == [
        ("monitor_gpu_age_seconds", "vram:a"),
        ("monitor_gpu_age_seconds", "vram:b"),
    ]
    assert "monitor_gpu_" not in render()


def test_load_of_a_backend_has_metrics() -> None:
    """A figure that is not known is absent, and 0 is 0."""
    name = "monitor_backend_{}".format
    names = [
        *map(name, ["requests_running", "requests_waiting"]),
        *map(name, ["tokens_per_second", "kv_cache_ratio"]),
    ]
    found = series(render(observe(**read(1, load=LOAD))))
    assert [value(found, each, **BACKEND) for each in names] == [2, 0, 41.5, 0.625]
    found = series(render(observe(**read(1, load={"requests_running": 0}))))
    assert [value(found, each, **BACKEND) for each in names] == [0, None, None, None]
    found = series(render(observe(**failed("DEADLINE_EXCEEDED"))))
    assert [value(found, each, **BACKEND) for each in names] == [None] * 4


def test_every_metric_is_documented() -> None:
    """The table names each metric that is exposed, its type and its labels, and no other."""
    observation = observe(
        **read(2, Memory(2, {"weights": 1}), LOAD),
        process=ProcessUsage(rss=1, cpu_seconds=1.0),
        tree=TREE,
    )
    text, openmetrics = (
        render(observation, media_type=each, gpus=[GPU], units=True) for each in (TEXT, OPENMETRICS)
    )
    names = re.findall(r"^# TYPE (\S+)", text, re.M)
    types = re.findall(r"^# TYPE \S+ (\S+)", openmetrics, re.M)
    labels: dict[str, set[str]] = {name: set() for name in names}
    for sample, names_and_values in series(text):
        (name,) = [each for each in names if re.fullmatch(f"{each}(_bucket|_count|_sum)?", sample)]
        labels[name] |= {label for label, _ in names_and_values} - {"le"}
    exposed = {(name, type, *sorted(labels[name])) for name, type in zip(names, types, strict=True)}
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.*?) \|", PAGE, re.M)
    described = {
        (name, type.replace(" ", ""), *sorted(re.findall(r"`(\w+)`", column)))
        for name, type, column in rows
    }
    assert described == exposed


def test_a_token_of_role_read_is_enough(
    make_monitor: Callable[..., Monitor], tmp_path: Path
) -> None:
    """Metrics name models, and want a token where one is set."""
    tokens = tmp_path / "tokens"
    tokens.write_text("read:prometheus:secret\n")
    tokens.chmod(0o600)
    client = Client(make_monitor(token_file=str(tokens)).url)
    assert_error(client.request("GET", "/metrics"), 401, "unauthorized")
    answer = client.request("GET", "/metrics", None, {"Authorization": "Bearer secret"})
    assert answer.status == 200


def test_without_the_package_the_answer_says_what_to_install(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 501 with the command; once it is installed the next scrape works."""
    monkeypatch.delitem(sys.modules, "monitor_plugin.http.exposition")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "prometheus_client", None)
        answer = client.request("GET", "/metrics")
        assert INSTALL in assert_error(answer, 501, "not_implemented")
        assert INSTALL == "pip install 'monitor-plugin[metrics]'"
    assert client.request("GET", "/metrics").status == 200


def test_nothing_imports_prometheus_client_before_the_first_scrape() -> None:
    """Neither the package, nor a monitor with its application, needs it."""
    code = (
        "import sys, monitor_plugin as m\n"
        "with m.Monitor(m.Settings(listen='127.0.0.1:0')) as monitor: monitor.app\n"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
