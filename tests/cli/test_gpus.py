"""`gpus`: the command, and its tables of devices and of the holders of their memory."""

from __future__ import annotations

import contextlib
import getpass
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitor_plugin import Monitor
from monitor_plugin.api.schemas import ClusterGpusAnswer, GpuNodeItem, NodeGpuItem
from monitor_plugin.cli import main
from monitor_plugin.cli.views.gpus import gpus_view

from ..gpus import GpuFile, make_gpu
from ..support import Spawner, eventually, load_sleeper
from .support import rows, text_of

GIB = 2**30
WHOLE = {
    "index": 0,
    "uuid": "GPU-a",
    "name": "A100\x1b[2J",
    "vendor": "nvidia",
    "component": "vram:nvidia0",
    "total": 80 * GIB,
    "used": 12 * GIB,
    "free": 68 * GIB,
    "ours": 8 * GIB,
    "others": 3 * GIB,
    "unexplained": GIB,
    "utilization_percent": 37.4,
    "temperature_celsius": 61,
    "power_watts": 251.3,
    "models": [{"model": "org/a \u202e", "pid": 4711, "memory": 8 * GIB}],
    "processes": [
        {"pid": 99, "name": "python3\x1b", "user": "alice", "memory": 3 * GIB},
        {"pid": 98},
    ],
}
INSTANCE = {
    "uuid": "MIG-b",
    "component": "vram:nvidia0:mig1",
    "parent": "GPU-a",
    "total": 10 * GIB,
}
APU = {
    "component": "vram:amdgpu:0000:03:00.0",
    "vendor": "amd",
    "total": 16 * GIB,
    "gtt_total": 60 * GIB,
    "gtt_used": 20 * GIB,
    "models": [{"model": "llama", "pid": 5, "memory": GIB, "gtt": 20 * GIB}],
    "note": "not all processes may be read:\x1b run as root",
    "age_seconds": 33.0,
}


def view(*gpus: dict[str, Any], width: int = 250) -> str:
    answer = ClusterGpusAnswer(gpus=msgspec.convert(gpus, list[NodeGpuItem]))
    return text_of(gpus_view(answer, width), width)


def test_devices_are_listed_with_their_figures() -> None:
    """A MIG instance follows its GPU. Unknown figures are `?`. Notes and old ages are printed."""
    lines = rows(view(INSTANCE, APU, WHOLE))
    assert lines[0] == [
        *("GPU", "USED", "TOTAL", "FREE", "OURS", "OTHERS", "UNEXPLAINED", "GTT", "UTIL", "TEMP"),
        *("POWER", "NAME", "PART OF", "UUID"),
    ]
    assert lines[1][:7] == [
        *("amdgpu:0000:03:00.0", "?", "16.0 GiB", "?", "?", "?", "?"),
    ]
    assert lines[1][7] == "20.0 GiB of 60.0 GiB"
    assert lines[2] == [
        *("nvidia0", "12.0 GiB", "80.0 GiB", "68.0 GiB", "8.0 GiB", "3.0 GiB", "1.0 GiB", "-"),
        *("37 %", "61 °C", "251 W", r"A100\x1b[2J", "-", "GPU-a"),
    ]
    assert lines[3][:3] == ["nvidia0:mig1", "?", "10.0 GiB"]
    assert lines[3][-2:] == ["GPU-a", "MIG-b"]
    assert "PART OF" not in view(WHOLE)
    assert [r"amdgpu:0000:03:00.0: not all processes may be read:\x1b run as root"] in lines
    assert ["amdgpu:0000:03:00.0: read 33s ago"] in lines


def test_holders_of_memory_are_named() -> None:
    """Models by name, other processes by PID, name and user; the largest of a GPU first."""
    lines = rows(view(WHOLE))
    start = lines.index(["MODEL", "PID", "PROCESS", "USER", "MEMORY", "ON GPU"])
    assert lines[start + 1 : start + 4] == [
        [r"org/a \u202e", "4711", "-", "-", "8.0 GiB", "nvidia0"],
        ["-", "99", r"python3\x1b", "alice", "3.0 GiB", "nvidia0"],
        ["-", "98", "?", "?", "?", "nvidia0"],
    ]
    assert ["llama", "5", "-", "-", "1.0 GiB", "20.0 GiB", "amdgpu:0000:03:00.0"] in rows(view(APU))


def test_nodes_of_a_cluster_are_columns() -> None:
    """Devices of two nodes may have the same names."""
    text = view({**WHOLE, "node": "a"}, {**INSTANCE, "node": "b"}, {**APU, "node": "b"})
    lines = rows(text)
    assert lines[1][:2] == ["nvidia0", "a"]
    assert lines[2][:2] == ["nvidia0:mig1", "b"]
    assert [line[-2:] for line in lines if line[:2] == ["llama", "5"]] == [
        ["b", "amdgpu:0000:03:00.0"]
    ]
    assert "amdgpu:0000:03:00.0 on b: not all" in text


@pytest.mark.parametrize("width", [1, 10, 40, 60, 80, 120])
def test_tables_of_gpus_fit_any_width(width: int) -> None:
    """A narrow terminal still shows what is used, and by which model."""
    text = view(WHOLE, INSTANCE, APU, {}, {"parent": "x", "uuid": "x"}, width=width)
    if width >= 40:
        for words in ("nvidia0", "12.0 GiB", "80.0 GiB", "4711"):
            assert words in text


def test_no_gpu_is_a_sentence() -> None:
    """An empty list is no error."""
    assert view() == "The monitor sees no GPU.\n"
    nodes = [GpuNodeItem(node="b", error="node 'b' is\x1b silent"), GpuNodeItem(node="a")]
    text = text_of(gpus_view(ClusterGpusAnswer(gpus=[], nodes=nodes), 80), 80)
    assert text == "The monitor sees no GPU on any node that answers.\nnode 'b' is\\x1b silent\n"


def test_gpus_prints_tables_or_json(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--json` is the answer of /gpus; `ps` and `status` have the memory of the model on GPUs."""
    devices = GpuFile(tmp_path / "gpus.json")
    monitor = make_monitor([devices])
    url = ["--url", monitor.url]
    assert main(["gpus", *url]) == 0
    assert capsys.readouterr().out == "The monitor sees no GPU.\n"
    model, other = load_sleeper(monitor, spawner, "m"), spawner.sleeper()
    devices.write(make_gpu({model.pid: 300 * 2**20, other.pid: 2**20}, used=600 * 2**20))

    def printed(*arguments: str) -> str:
        assert main([*arguments, *url]) == 0
        return capsys.readouterr().out

    eventually(lambda: "test0" in printed("gpus"))
    lines = rows(printed("gpus"))
    assert lines[1][:2] == ["test0", "600.0 MiB"]
    assert ["m", str(model.pid), "-", "-", "300.0 MiB", "test0"] in lines
    user = getpass.getuser()
    assert ["-", str(other.pid), "sleep", user, "1.0 MiB", "test0"] in lines
    listed = json.loads(printed("gpus", "--json"))["gpus"]
    assert [each["unexplained"] for each in listed] == [299 * 2**20]
    eventually(lambda: "300.0 MiB" in printed("ps"))
    assert "VRAM" in printed("ps")
    assert "vram 300.0 MiB" in printed("status", "m")


def test_documented_tables_are_printed() -> None:
    """The page about GPU memory shows what the command prints of three devices."""
    mebibyte = 2**20
    a100 = {"name": "NVIDIA A100-SXM4-40GB", "vendor": "nvidia", "total": 40960 * mebibyte}
    whole = a100 | {
        "component": "vram:nvidia0",
        "index": 0,
        "uuid": "GPU-5a1e8f0c",
        "used": 31130 * mebibyte,
        "free": 9214 * mebibyte,
        "ours": 24576 * mebibyte,
        "others": 5939 * mebibyte,
        "unexplained": 615 * mebibyte,
        "utilization_percent": 87.0,
        "temperature_celsius": 61.0,
        "power_watts": 251.0,
        "models": [{"model": "llama", "pid": 4711, "memory": 24576 * mebibyte}],
        "processes": [{"pid": 977, "name": "python3", "user": "alice", "memory": 5939 * mebibyte}],
    }
    unknown = a100 | {
        "component": "vram:nvidia1",
        "index": 1,
        "uuid": "GPU-c90d3b77",
        "used": 8192 * mebibyte,
        "free": 32152 * mebibyte,
        "utilization_percent": 0.0,
        "temperature_celsius": 34.0,
        "power_watts": 52.0,
        "note": "The driver does not list the processes that use this device: Not Supported.",
    }
    page = Path(__file__).parents[2] / "docs" / "how-to" / "gpu-memory.md"
    shown = page.read_text().partition("$ monitor-plugin gpus\n")[2].partition("```")[0]
    printed = view(whole, unknown, width=10_000)
    assert shown == "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


@contextlib.contextmanager
def serve(status: int, body: bytes) -> Iterator[str]:
    """A server that gives one answer to each GET, in place of a monitor."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_monitor_without_the_route_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An older monitor has no /gpus: the message says so; another server is no monitor."""
    error = {"code": 404, "message": "there is nothing at /gpus", "type": "not_found"}
    for flags in ([], ["--json"]):
        with serve(404, json.dumps({"error": error}).encode()) as url:
            assert main(["gpus", *flags, "--url", url]) == 1
        message = capsys.readouterr().err
        assert f"the monitor at {url} is older than this command and lists no GPUs" in message
        assert "update it" in message
    for status, body in ((404, b"<html>nothing</html>"), (200, b'{"gpus": 5}')):
        with serve(status, body) as url:
            assert main(["gpus", "--url", url]) == 3
    assert "is it one?" in capsys.readouterr().err
