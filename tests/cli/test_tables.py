"""Tables and screens, at any width."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from rich.console import Group

from monitor_plugin.api.schemas import ClusterBackendsAnswer, NodeGpuItem
from monitor_plugin.cli.live import Screen, draw
from monitor_plugin.cli.queries import EventItem
from monitor_plugin.cli.views.tables import backends_view, details_view
from monitor_plugin.cli.views.text import describe_unit, summarize
from monitor_plugin.domain.models import ProcessName
from monitor_plugin.domain.units import HostUnit

from .support import rows, text_of

MIB = 2**20


def item(model: str, pid: int, **fields: Any) -> dict[str, Any]:
    tree = {"rss": 7, "cpu_percent": 150.0, "processes": 3}
    return {
        "model": model,
        "pid": pid,
        "address": "127.0.0.1:1",
        "state": 2,
        "state_name": "ready",
        "source": "grpc",
        "memory": {"total": pid * MIB, "breakdown": {"weights": MIB, "x\x1b": 0}},
        "memory_source": "backend",
        "process": {"rss": 5, "cpu_percent": 1.0, "tree": tree},
        "uptime_seconds": 3700.0,
        "created_at": "2026-01-02T03:04:05.5Z",
        **fields,
    }


def answer(*items: dict[str, Any], ended: int = 0) -> ClusterBackendsAnswer:
    end = {"model": "gone\x1b", "pid": 9, "cause": "killed", "description": "was killed\x1b[2J"}
    end["created_at"] = "2026-01-02T03:00:00Z"
    return msgspec.convert(
        {
            "backends": items,
            "ended": [{**end, "ended_at": "2026-01-02T03:04:05Z"}] * ended,
            "machine": {"memory_total": 1000 * MIB, "cpus": 2},
        },
        ClusterBackendsAnswer,
    )


SOME = answer(
    item("small", 1),
    item("large", 480),
    item("[red]bad[/red] :smile: \u202e", 3, state=-1, state_name="error"),
    item("hung", 4, state=None, state_name="unknown", source="psutil", memory=None)
    | {"rpc_error": "DEADLINE_EXCEEDED", "last_state": 1},
    item("new", 5, state=7, state_name="unknown"),
    item("going", 6, shutdown={"phase": "draining", "seconds": 65.0}),
    item("off", 7, state=None, rpc_error="UNAVAILABLE", source="psutil"),
    item("old", 8, state=None, rpc_error="UNIMPLEMENTED", source="psutil"),
    item("loads", 7, state=None, rpc_error="UNAVAILABLE", source="psutil", state_name="starting"),
    item("early", 9, state=None, source=None, process=None),
    ended=12,
)


def test_table_sorts_by_memory_and_marks_trouble() -> None:
    """Memory has units, unknown memory is `?`, and `!` marks an error or no answer."""
    lines = text_of(backends_view(SOME, None, 200), 200).splitlines()
    assert " ".join(lines[1].split()) == "large 480 ready 480.0 MiB 48.0 150.0 1h1m grpc"
    by_name = {line.split()[0]: line for line in lines if line.strip()}
    assert lines[10] == by_name["hung"]
    assert "! no answer" in by_name["hung"]
    assert "?" in by_name["hung"]
    assert "psutil: DEADLINE_EXCEEDED" in by_name["hung"]
    assert r"[red]bad[/red] :smile: \u202e" in by_name["[red]bad[/red]"]
    assert "! error" in by_name["[red]bad[/red]"]
    assert "! unreachable" in by_name["off"]
    assert " starting " in by_name["loads"]
    assert "!" not in by_name["loads"]
    assert "draining 1m5s" in by_name["going"]
    assert "unknown (7)" in by_name["new"]
    assert "no status" in by_name["old"]
    assert "not read yet" in by_name["early"]
    assert "10 backends, 526.0 MiB of 1000.0 MiB; 1 error, 1 no answer, 1 unreachable" in "\n".join(
        lines
    )
    assert by_name[r"gone\x1b"].rstrip().endswith(r"was killed\x1b[2J")
    assert "and 2 before" in lines[-1]


def test_models_without_a_backend_fit_any_width() -> None:
    """Failed models come first; a cluster adds the node; a long list is cut."""
    models = [
        {"model": f"m{number:02}", "state": "stopped", "can_start": True, "node": "a"}
        for number in range(21)
    ]
    models.append({"model": "z", "state": "failed", "detail": "no \x1b memory", "node": "b"})
    models.append({"model": "y", "state": "new", "node": "b"})
    listed = msgspec.convert({"backends": [], "ended": [], "models": models}, ClusterBackendsAnswer)
    text = text_of(backends_view(listed, None, 100), 100)
    assert "No model is loaded; 23 models without a backend." in text
    table = rows(text[text.index("NO BACKEND") :])
    assert table[0] == ["NO BACKEND", "NODE", "STATE", "START", "DETAIL"]
    assert table[1] == ["z", "b", "failed", "no", r"no \x1b memory"]
    assert table[2] == ["m00", "a", "stopped", "yes"]
    assert "and 3 more: --json shows them" in text
    narrow = text_of(backends_view(listed, None, 30), 30)
    assert "failed" in narrow
    assert "DETAIL" not in narrow


def test_processes_left_behind_are_shown() -> None:
    """Each with its memory, in the list and in the details; names are escaped."""
    processes = [
        {"pid": 7, "name": "vllm::\x1b", "bytes": 3 * MIB},
        {"pid": 8, "name": None, "bytes": None},
    ]
    end = {"model": "gone", "pid": 9, "cause": "killed", "created_at": "2026-01-02T03:00:00Z"}
    end["ended_at"] = "2026-01-02T03:04:05Z"
    ended = [{**end, "left_behind": each} for each in (processes, [], None)]
    listed = msgspec.convert({"backends": [], "ended": ended}, ClusterBackendsAnswer)
    for view in (backends_view(listed, None, 200), details_view(listed, "gone", 200)):
        text = text_of(view, 200)
        assert text.count("has ended, and left behind") == 1
        assert r"gone (PID 9) has ended, and left behind: 7 vllm::\x1b (3.0 MiB), 8 ? (?)" in text
        assert "To end what is left behind: monitor-plugin stop --pid 9 gone\n" in text
    assert "No model is loaded; 2 processes left behind." in summarize(listed)
    many = [{"pid": pid, "name": "worker", "bytes": MIB} for pid in range(100)]
    ended = [{**end, "model": "a b", "left_behind": many}]
    listed = msgspec.convert({"backends": [], "ended": ended}, ClusterBackendsAnswer)
    text = text_of(backends_view(listed, None, 1000), 1000)
    assert "7 worker (1.0 MiB), 92 more\n" in text
    assert "monitor-plugin stop --pid 9 MODEL\n" in text
    twice = msgspec.convert({"backends": [], "ended": ended * 2}, ClusterBackendsAnswer)
    assert "stop --pid PID MODEL\n" in text_of(backends_view(twice, None, 1000), 1000)


def test_address_of_another_process_is_a_condition() -> None:
    """Also where the column SOURCE, which names the process, does not fit."""
    fields: dict[str, Any] = {"state": None, "rpc_error": "UNAVAILABLE", "source": "psutil"}
    fields["address_owner"] = {"pid": 4711, "name": "python3"}
    listed = answer(item("m", 1, **fields))
    for width in (60, 90, 200):
        text = text_of(backends_view(listed, None, width), width)
        assert "! address taken" in text
        assert "1 backend, 1.0 MiB of 1000.0 MiB; 1 address taken\n" in text
        assert ("4711" in text) == (width > 60)


def test_load_is_shown_where_it_is_known() -> None:
    """The wide table has a column for each figure, and the details a line for each known one."""
    load = {"requests_running": 2, "requests_waiting": 3, "protocol": "vllm\x1b"}
    load |= {"tokens_per_second": 41.52, "kv_cache_percent": 62.5}
    some = item("some", 2, requests_running=0, kv_cache_percent=0.0)
    listed = answer(item("all", 3, **load), some, item("none", 1))
    text = text_of(backends_view(listed, None, 200, wide=True), 200)
    table = [line.split() for line in text.splitlines()[:4]]
    # The memory before these columns has a unit.
    places = [table[0].index(title) for title in ("REQS", "TOK/S", "KV%", "PROTOCOL")]
    assert [[line[place + 1] for place in places] for line in table[1:]] == [
        ["2+3", "41.5", "62.5", r"vllm\x1b"],
        ["0+?", "?", "0.0", "?"],
        ["?", "?", "?", "?"],
    ]
    assert "REQS" not in text_of(backends_view(listed, None, 200), 200)
    for width in (1, 20, 60, 80):
        text_of(backends_view(listed, None, width, wide=True), width)

    def details(fields: dict[str, Any]) -> str:
        return text_of(details_view(answer(fields), "m", 200), 200)

    lines = [line.split(maxsplit=1) for line in details(item("m", 1, **load)).splitlines()]
    for name, words in (
        ("protocol", r"vllm\x1b"),
        ("requests", "2 running, 3 waiting"),
        ("tokens", "41.5 per second"),
    ):
        assert [words] == [line[1].rstrip() for line in lines if line[:1] == [name]]
    assert "KV cache  62.5 % in use" in details(item("m", 1, **load))
    assert "requests  0 running " in details(some)
    for words in ("requests", "tokens", "KV cache", "protocol"):
        assert words not in details(item("m", 1))


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("UNAVAILABLE", "! unreachable"),
        ("UNAUTHENTICATED", "! no access"),
        ("INTERNAL", "! bad answer"),
        ("UNIMPLEMENTED", "no status"),
    ],
)
def test_missing_status_is_explained(code: str, word: str) -> None:
    """The state is a word for the code, and the source has the sentence, escaped."""
    fields: dict[str, Any] = {"state": None, "rpc_error": code, "source": "psutil"}
    fields["status_error"] = "it speaks HTTP,\x1b not gRPC"
    listed = answer(item("m", 1, **fields))
    why = rf"psutil: {code}, it speaks HTTP,\x1b not gRPC"
    for view in (backends_view(listed, None, 200), details_view(listed, "m", 200)):
        text = text_of(view, 200)
        assert f"{word} " in text
        assert why in text


@pytest.mark.parametrize(("zombies", "text"), [(1, "ready, 1 zombie"), (20, "ready, 20 zombies")])
def test_zombies_are_shown_beside_the_state(zombies: int, text: str) -> None:
    """In the table and in the details; a backend without zombies shows none."""
    process = {"tree": {"processes": 2, "zombies": zombies}}
    listed = answer(item("m", 1, process=process), item("other", 2))
    table = text_of(backends_view(listed, None, 200), 200)
    assert table.count("zombie") == 1
    assert f" {text} " in table
    details = text_of(details_view(listed, "m", 200), 200)
    assert f"{text}\n" in "\n".join(line.rstrip() for line in details.splitlines())


def test_refused_registrations_are_shown_below_the_backends() -> None:
    """With every character that is not printable escaped; ten of them, and how many more."""
    refused = [
        {"model": "m\u202e ", "pid": 7, "address": "\x1b[2J", "reason": "no \0 is allowed"},
        *({"model": f"m{n}", "pid": n, "address": "a", "reason": "no"} for n in range(10)),
    ]
    listed = {"backends": [], "ended": [], "machine": None, "refused": refused}
    text = text_of(backends_view(msgspec.convert(listed, ClusterBackendsAnswer), None, 100), 100)
    lines = [line.split() for line in text.splitlines()]
    assert lines[2] == ["REFUSED", "PID", "ADDRESS", "REASON"]
    assert lines[3] == [r"m\u202e\x20", "7", r"\x1b[2J", "no", r"\x00", "is", "allowed"]
    assert lines[12] == ["m8", "8", "a", "no"]
    assert lines[13] == ["and", "1", "more:", "--json", "shows", "them"]
    refused[0]["node"] = "far"
    answer = msgspec.convert(listed, ClusterBackendsAnswer)
    assert " 7 on far " in text_of(backends_view(answer, None, 100), 100)
    refused[0]["reason"] = "the reason is long " * 10
    answer = msgspec.convert(listed, ClusterBackendsAnswer)
    text = text_of(backends_view(answer, None, 60), 60)
    assert "No model is loaded; 11 refused." in text
    assert "REFUSED" in text
    assert r"m\u202e\x20" in text
    for width in (1, 10, 40):
        text_of(backends_view(answer, None, width), width)
        text_of(details_view(answer, "m", width), width)


def test_answer_of_another_version_is_shown() -> None:
    """Missing fields are unknown, and unknown fields are ignored."""
    common = {"model": "m", "pid": 5, "created_at": "2026-01-02T03:04:05Z", "of_tomorrow": 1}
    backend = {**common, "uptime_seconds": 1.0, "shutdown": {"phase": "resting"}}
    end = {**common, "cause": "eaten", "ended_at": "2026-01-02T03:04:05Z"}
    listed: dict[str, Any] = {
        "backends": [backend],
        "ended": [end],
        "machine": None,
        "of_tomorrow": {},
    }
    decoded = msgspec.convert(listed, ClusterBackendsAnswer)
    text = text_of(backends_view(decoded, None, 200), 200)
    assert "resting 0s" in text
    assert "not read yet" in text
    assert "eaten" in text
    assert "source unknown" in text_of(details_view(decoded, "m", 200), 200)


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 80, 100])
def test_table_fits_any_width(width: int) -> None:
    """No line is wider than the terminal; the state is shown while there is room for it."""
    text = text_of(backends_view(SOME, None, width), width)
    if width >= 40:
        for words in ("480.0 MiB", "! no answer", "! error"):
            assert words in text
    assert ("SOURCE" in text) == (width >= 100)
    text_of(details_view(SOME, "m", width), width)


def test_empty_list_is_a_sentence() -> None:
    """The sentence is about all models, or about the requested model."""
    assert text_of(backends_view(answer(), None, 80), 80) == "No model is loaded.\n"
    assert text_of(backends_view(answer(), "a\\", 80), 80) == "Model 'a\\\\' is not loaded.\n"


def test_details_show_the_unit_without_unknown_figures() -> None:
    unit = HostUnit(manager="systemd", name="a.service", memory_current=2**20, memory_max=2**30)
    whole = msgspec.structs.replace(unit, memory_peak=2**21, tasks=1, cpu_quota=1.5, restarts=2)
    assert describe_unit(unit) == "a.service (systemd), memory 1.0 MiB of 1.0 GiB"
    assert describe_unit(whole) == (
        "a.service (systemd), memory 1.0 MiB of 1.0 GiB, peak 2.0 MiB, 1 task, 1.5 CPU cores, "
        "2 restarts"
    )
    listed = answer(item("m", 1, unit=msgspec.to_builtins(unit)))
    assert describe_unit(unit) in text_of(details_view(listed, "m", 200), 200)


def test_details_show_all_that_is_known() -> None:
    """Each replica has memory by component, usage of process and tree, and its last state."""
    text = text_of(details_view(SOME, "m", 200), 200)
    for words in (
        "m  10 replicas",
        "480.0 MiB, 48.0 % of the machine's, the backend's word",
        r"x\x1b",
        "weights     1.0 MiB  ####################",
        "3 processes, rss 7 B, cpu 150.0 % of one core",
        "2026-01-02 03:04:05 UTC, 1h1m ago",
        "! no answer, busy before, since ?",
    ):
        assert words in text
    assert "served by" not in text
    one = answer(item("m", 1, served_by=4711))
    text = text_of(details_view(one, "m", 80), 80)
    assert "has ended lately" in text
    assert "127.0.0.1:1, served by its process 4711" in text


@pytest.mark.parametrize(
    ("process", "gpus", "cells"),
    [
        ({"tree": {"processes": 1, "vram": 5 * MIB}}, [], ["5.0 MiB", "?"]),
        ({"tree": {"processes": 1}}, [{"uuid": "a"}, {"ours": 7}], ["?", "?"]),
        ({"tree": {"processes": 1, "vram": MIB}}, [{"ours": MIB}], ["1.0 MiB", "-"]),
        (None, [{"ours": 0}], ["?", "-"]),
        (None, [{"ours": 0, "node": "far"}], ["?", "?"]),
    ],
)
def test_gpu_memory_is_a_column(
    process: dict[str, Any] | None, gpus: list[dict[str, Any]], cells: list[str]
) -> None:
    """The column is there if any backend uses some, or if there is a GPU.

    A backend that uses none has `-`, if it is known which processes use the GPUs; else `?`.
    """
    listed = answer(item("m", 2, process=process), item("other", 1))
    listed = msgspec.structs.replace(listed, gpus=msgspec.convert(gpus, list[NodeGpuItem]))
    lines = [
        line.split("  ") for line in text_of(backends_view(listed, None, 200), 200).split("\n")
    ]
    table = [[cell.strip() for cell in line if cell] for line in lines[:3]]
    place = table[0].index("VRAM")
    assert [line[place] for line in table[1:]] == cells
    assert "VRAM" not in text_of(backends_view(SOME, None, 200), 200)


def with_machines(*machines: dict[str, Any], **fields: Any) -> ClusterBackendsAnswer:
    """An answer of one machine, or of the nodes n0, n1 and so on; its only backend is on n0."""
    backend = item("m", 4096, **fields)
    nodes = []
    if len(machines) > 1:
        backend["node"] = "n0"
        nodes = [{"node": f"n{at}", "machine": each} for at, each in enumerate(machines)]
    listed = {"backends": [backend], "ended": [], "machine": machines[0], "nodes": nodes}
    return msgspec.convert(listed, ClusterBackendsAnswer)


WHOLE = {"memory_total": 47 * 2**29, "cpus": 4}
LIMITED = {**WHOLE, "memory_limit": 8 * 2**30}
OWN = {"memory_limit": 5 * 2**30, "memory_available": 2**30, "cpu_limit": 1.5}


@pytest.mark.parametrize(
    ("listed", "summary", "base"),
    [
        (with_machines(WHOLE), "4.0 GiB of 23.5 GiB;", " 17.0 % of the machine's,"),
        (
            with_machines(LIMITED),
            "4.0 GiB of 8.0 GiB (limit; the machine has 23.5 GiB);",
            " 50.0 % of 8.0 GiB (limit; the machine has 23.5 GiB),",
        ),
        (
            with_machines(LIMITED, limits=OWN),
            "4.0 GiB of 8.0 GiB (limit; the machine has 23.5 GiB);",
            " 80.0 % of 5.0 GiB (limit; the machine has 23.5 GiB),",
        ),
        (
            with_machines(LIMITED, limits={"cpu_limit": 2}),
            "of 8.0 GiB (",
            " 17.0 % of the machine's,",
        ),
        (with_machines(WHOLE, limits=OWN), "4.0 GiB of 23.5 GiB;", "% of 5.0 GiB (limit;"),
        (
            with_machines(WHOLE, LIMITED),
            "4.0 GiB of 31.5 GiB (limits; the machines have 47.0 GiB);",
            "% of the machine's,",
        ),
        (with_machines(LIMITED, WHOLE), "4.0 GiB of 31.5 GiB (limits;", "% of 8.0 GiB (limit;"),
    ],
)
def test_memory_limit_is_shown(listed: ClusterBackendsAnswer, summary: str, base: str) -> None:
    """The limit is the monitor's, the backend's own, or the sum over all nodes."""
    assert summary in text_of(backends_view(listed, None, 200), 200)
    assert base in text_of(details_view(listed, "m", 200), 200)


def test_limits_of_a_backend_are_details() -> None:
    """Unknown figures are left out, and a missing limit is named."""
    text = text_of(details_view(with_machines(WHOLE, limits=OWN), "m", 200), 200)
    assert "limits   memory 5.0 GiB (1.0 GiB available), 1.5 CPU cores  " in f"{text}  "
    own = {"memory_available": 2**30, "memory_pressure": 12.04, "cpu_pressure": 0.0}
    own |= {"cpu_limit": 1.0}
    text = text_of(details_view(with_machines(WHOLE, limits=own), "m", 200), 200)
    limits = "no limit of memory (1.0 GiB available), 1 CPU core"
    assert f"{limits}, memory pressure 12.0 % of the last 10 s" in text
    assert "limits" not in text_of(details_view(with_machines(WHOLE), "m", 200), 200)


def test_pressure_is_shown_where_it_is_known_and_not_zero() -> None:
    """It is below the table, and in the first line of `top`; in a cluster with the node."""
    tight = {**WHOLE, "memory_pressure": 12.34, "cpu_pressure": 0.5}
    words = "memory pressure 12.3 % of the last 10 s"
    listed = with_machines(tight)
    assert f"\n{words}" in text_of(backends_view(listed, None, 200), 200)
    screen = Screen("u", listed, listed.backends, 0, "memory", [], None, None, None)
    assert f"by memory  {words}" in text_of(draw(screen, 200, 24)[0], 200)
    at_rest = {**WHOLE, "memory_pressure": 0.04, "cpu_pressure": 50.0}
    for machine in (WHOLE, at_rest):
        assert "pressure" not in text_of(backends_view(with_machines(machine), None, 200), 200)
    text = text_of(backends_view(with_machines(at_rest, tight), None, 200), 200)
    assert f"\nn1: {words}" in text
    assert "n0: " not in text


def test_kinds_of_memory_are_details() -> None:
    """Their age is shown. An unknown figure is `?`, and never 0."""
    tree: dict[str, Any] = {
        "processes": 1,
        "pss": 500 * MIB,
        "anonymous": 25 * MIB,
        "file": 475 * MIB,
    }
    tree |= {"shared": 0, "peak_rss": 600 * MIB, "memory_age_seconds": 12.0}
    tree["gtt"] = 3 * MIB
    text = text_of(details_view(answer(item("m", 1, process={"tree": tree})), "m", 200), 200)
    kinds = "anonymous 25.0 MiB, file 475.0 MiB (the kernel can drop it), shared 0 B, swap ?"
    assert f"kinds    {kinds}, read 12s ago" in text
    assert "peak rss 600.0 MiB, pss 500.0 MiB, gtt 3.0 MiB" in text
    text = text_of(details_view(answer(item("m", 1)), "m", 200), 200)
    assert "kinds" not in text
    assert "peak" not in text


def test_peak_of_an_ended_backend_is_a_column() -> None:
    """The column is there if the peak of any of them is known."""
    listed = answer(ended=2)
    assert "PEAK" not in text_of(backends_view(listed, None, 200), 200)
    ended = [msgspec.structs.replace(listed.ended[0], peak_rss=7 * MIB), listed.ended[1]]
    listed = msgspec.structs.replace(listed, ended=ended)
    for view in (backends_view(listed, None, 200), details_view(listed, "gone", 200)):
        lines = text_of(view, 200).splitlines()
        (head,) = (line for line in lines if line.startswith("ENDED"))
        assert "PEAK RSS" in head
        after = lines[lines.index(head) + 1 :]
        assert "  7.0 MiB  " in after[0]
        assert "  ?  " in after[1]


def events() -> list[EventItem]:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    return [
        EventItem(8, "left_behind", at, "m", 5, pids=[7, 8]),
        EventItem(9, "address_owner", at, "m", 5, address_owner=ProcessName(7, "python3")),
        EventItem(10, "address_owner", at, "m", 5),
        EventItem(11, "oom_kill", at, "m", 5),
        EventItem(1, "registered", at, "m\x1b", 5),
        EventItem(2, "state_changed", at, "m", 5, previous_name="ready", current_name="busy"),
        EventItem(3, "shutdown_phase", at, "m", 5, phase="draining"),
        EventItem(4, "ended", at, "m", 5, cause="killed", description="was killed by SIGKILL"),
        EventItem(5, "shutdown_finished", at, "m", 5, outcome="failed", seconds=3.0),
        EventItem(6, "of_another_version"),
        EventItem(7, "member_ended", at, "m", 5, description="was killed by SIGSEGV"),
        EventItem(8, "watchdog", at, "m", 5, action="tell", reason="it was idle for 5 s"),
    ]


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (30, 5), (10, 3), (1, 1), (200, 60)])
@pytest.mark.parametrize("lost", [None, "nobody answers"])
def test_screen_fits_the_terminal(size: tuple[int, int], lost: str | None) -> None:
    """The screen of `top` has no more lines than there are, and shows the selected backend."""
    width, height = size
    many = answer(*(item(f"model {number}", number) for number in range(1, 101)))
    screen = Screen(
        url="http://127.0.0.1:8080",
        answer=many,
        rows=many.backends,
        selected=50,
        sort="memory",
        events=events(),
        lost=lost,
        question="y yes, n no: stop?",
        message="Stopped x.",
    )
    lines = text_of(Group(*draw(screen, width, height)), width).splitlines()
    if height >= 10:
        assert len(lines) <= height
        assert any("model 51" in line for line in lines)
        assert lines[-1].startswith("y yes, n no: stop?")
        assert any(line.startswith("Lost: nobody") for line in lines) == bool(lost)
    if size == (80, 24):
        assert any("shutdown: failed after 3s" in line for line in lines)


def test_screen_shows_events_newest_first() -> None:
    """Each event is a line if there is room."""
    screen = Screen("u", answer(), [], -1, "memory", events(), None, None, None)
    text = text_of(Group(*draw(screen, 80, 24)), 80)
    order = [
        "m (5)  needs attention: it was idle for 5 s",
        "lost a process, which was killed by SIGSEGV",
        "of another version",
        "failed after 3s",
        "was killed by SIGKILL",
        "shutdown: draining",
    ]
    order += ["ready -> busy", r"m\x1b (5)  registered"]
    order += ["lost a process, killed by the kernel for want of memory"]
    order += ["its address is no longer served by another process"]
    order += ["its address is served by 7 (python3)", "left 2 processes behind: 7, 8"]
    positions = [text.index(words) for words in order]
    assert positions == sorted(positions)
