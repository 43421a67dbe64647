"""The checks of `GET /readyz?verbose`, in monitors whose machine or host lacks something."""

from __future__ import annotations

import errno
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from falcon import testing

from monitor_plugin import Backend, Gpu, GpuUse, KnownModel, Monitor, Settings, hookimpl
from monitor_plugin.api.doctor import (
    check_clock,
    check_descriptors,
    check_gpus,
    check_memory_limits,
    check_other_users,
    check_swap,
)
from monitor_plugin.gpu.reading import GpuReading

from ..processes.test_process import ROOT
from ..support import Client, Spawner, eventually, load_sleeper

# A monitor in which the kernel refuses system calls, and with a low limit of descriptors.
LIMITED = """
import os, resource, sys
from monitor_plugin import Monitor, Settings
from tests.seccomp import refuse
refuse(REFUSED)
with Monitor(Settings(listen="127.0.0.1:0")) as monitor:
    held = [os.dup(0) for _ in range(100)]
    used = len(os.listdir("/proc/self/fd"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    print(monitor.url, flush=True)
    sys.stdin.readline()
"""


def checks_of(client: Client) -> dict[str, dict[str, Any]]:
    answer = client.request("GET", "/readyz?verbose")
    assert answer.status == 200
    assert answer.json["status"] == "ready"
    for each in answer.json["checks"]:
        assert each.keys() == {"name", "ok", "message", "advice"}
        assert each["ok"] is not False or each["advice"], each
    return {each["name"]: each for each in answer.json["checks"]}


class Host:
    """Has each hook that a check looks for."""

    @hookimpl
    def monitor_stop_backend(self, backend: Backend, timeout_seconds: float) -> None:
        return None

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> None:
        return None

    @hookimpl
    def monitor_list_models(self) -> list[KnownModel]:
        return []

    @hookimpl
    def monitor_read_log(self, model: str, pid: int | None, stream: str, max_bytes: int) -> None:
        return None


def test_checks_follow_the_hooks_of_the_host(make_monitor: Callable[..., Monitor]) -> None:
    """A check of a missing hook has advice; a check of an implemented hook is fine."""
    names = ("stop_hook", "start_hook", "known_models")
    checks = checks_of(Client(make_monitor().url))
    for name in names:
        assert checks[name]["ok"] is False
        assert "monitor_" in checks[name]["advice"]
    assert checks["logs"]["ok"] is None
    checks = checks_of(Client(make_monitor([Host()]).url))
    assert all(checks[name]["ok"] is True for name in (*names, "logs"))


def test_checks_of_logs_follow_the_files_of_backends(
    monitor: Monitor, client: Client, spawner: Spawner, tmp_path: Path
) -> None:
    """A backend that writes to a file has a log, one that writes to a pipe has none."""
    with (tmp_path / "log").open("w") as file:
        one = spawner.process("sleep", "1000", stdout=subprocess.DEVNULL, stderr=file)
    monitor.hook.monitor_backend_spawned(model="secret name", pid=one.pid, address="127.0.0.1:1")
    assert checks_of(client)["logs"]["ok"] is True
    other = spawner.process("sleep", "1000", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    monitor.hook.monitor_backend_spawned(model="other", pid=other.pid, address="127.0.0.1:2")
    check = checks_of(client)["logs"]
    assert check["ok"] is False
    assert "1 of 2 backends" in check["message"]
    assert "secret name" not in client.request("GET", "/readyz?verbose").body.decode()


def test_refused_system_calls_and_few_descriptors_are_reported(spawner: Spawner) -> None:
    """The monitor runs in a process with a seccomp filter and a low limit of descriptors."""
    refused = {"pidfd_send_signal": errno.EPERM, "PIDFD_GET_INFO": errno.EPERM}
    process = spawner.python(
        LIMITED.replace("REFUSED", repr(refused)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout
    checks = checks_of(Client(process.stdout.readline().strip()))
    assert checks["process_handles"]["ok"] is False
    assert "pidfd_send_signal (Operation not permitted)" in checks["process_handles"]["message"]
    assert "seccomp" in checks["process_handles"]["advice"]
    assert checks["exit_codes"]["ok"] is False
    assert checks["descriptors"]["ok"] is False
    assert "ulimit -n" in checks["descriptors"]["advice"]
    process.communicate("\n", timeout=60)


def test_plain_answer_has_no_checks(
    make_monitor: Callable[..., Monitor], tmp_path: Path, spawner: Spawner
) -> None:
    """The plain answer is public and the same as ever; the checks need a reader's token."""
    (tmp_path / "tokens").write_text("read:grafana:r3ad\nadmin:ops:4dmin\n")
    monitor = make_monitor(token_file=str(tmp_path / "tokens"))
    client = Client(monitor.url)
    plain = ("", "?", "?other=1", "?verbose=false", "?verbose=0", "?%ff", "?a=1&a=2")
    for query in plain:
        answer = client.request("GET", f"/readyz{query}")
        assert (answer.status, answer.body) == (200, b'{"status":"ready"}'), query
    for query in (
        "?verbose",
        "?verbose=",
        "?verbose=true",
        "?verbose=1",
        "?x&verbose",
        "?verb%6fse",
    ):
        assert client.request("GET", f"/readyz{query}").status == 401, query
        for token in ("r3ad", "4dmin"):
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.request("GET", f"/readyz{query}", None, headers)
            assert answer.status == 200
            assert answer.json["checks"], query


def test_pss_that_cannot_be_read_is_reported(
    monitor: Monitor, client: Client, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the monitor may read the PSS of its own process, and not that of a backend."""
    load_sleeper(monitor, spawner)
    (record,) = monitor._services.registry.records()
    eventually(lambda: record.tree_memory is not None)
    assert checks_of(client)["shared_memory"]["ok"] is True
    assert record.tree_memory
    monitor._services.memory_reader.close()
    record.tree_memory = record.tree_memory._replace(pss=None)
    check = checks_of(client)["shared_memory"]
    assert check["ok"] is False
    assert "1 of 1 backends" in check["message"]


def test_kernel_is_unknown_before_the_start() -> None:
    """The application of a host's own server may be asked before; the answer is a 503."""
    monitor = Monitor(Settings(listen=None, gpu="off"))
    client = testing.TestClient(monitor.app, headers={"Host": "localhost"})
    answer = client.simulate_get("/readyz", query_string="verbose")
    assert answer.status_code == 503
    oks = {each["name"]: each["ok"] for each in answer.json["checks"]}
    assert oks["process_handles"] is oks["exit_codes"] is oks["shared_memory"] is None
    monitor.close()


def test_other_users_check_repeats_what_is_unseen() -> None:
    """The message is the text of the field `unseen`."""
    assert check_other_users(None).ok is True
    check = check_other_users("the backs of mirrors")
    assert (check.ok, check.message) == (False, "the backs of mirrors")


@pytest.mark.parametrize(
    ("now", "step", "offset", "words"),
    [
        (0.0, 0.0, 0.0, "shows the year 1970"),
        (1.8e9, 3600.0, 0.0, "was set forward by 3600 s"),
        (1.8e9, -90.0, 0.0, "was set back by 90 s"),
        (1.8e9, 0.01, 86400.0, "is 86400 s ahead of the kernel's"),
        (1.8e9, 0.01, -86400.0, "is 86400 s behind the kernel's"),
        (1.8e9, 0.01, 0.9, None),
        (1.8e9, 0.01, None, None),
    ],
)
def test_wrong_clock_is_reported(
    now: float, step: float, offset: float | None, words: str | None
) -> None:
    """A year before this program, a step while the monitor runs, and a clock of its own."""
    check = check_clock(now, step, offset)
    assert check.ok is (words is None)
    assert words is None or words in check.message


@pytest.mark.parametrize(
    ("used", "soft", "hard", "backends", "ok"),
    [
        (10, 1024, 4096, 1, True),
        (900, 1024, 1024, 1, False),
        (10, 64, 4096, 1, False),
        (10, 1024, 4096, 10_000_000, False),
        (10, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1, True),
        (None, 1024, 1024, 1, None),
    ],
)
def test_descriptors_are_compared_with_their_limit(
    used: int | None, soft: int, hard: int, backends: int, ok: bool | None
) -> None:
    """Too many that are open, a low limit, and more backends than pidfds."""
    check = check_descriptors(used, soft, hard, backends)
    assert check.ok is ok
    assert bool(check.advice) == (ok is False)
    assert check.advice is None or soft >= hard or "4096" in check.advice


def test_gpus_that_cannot_be_read_are_reported() -> None:
    """A device file without a GPU, a device without users, and a driver that does not answer."""
    now = time.monotonic()
    seen = Gpu(component="vram:nvidia0", vendor="nvidia", uses=[GpuUse(1, 2)])
    for setting, has_device, reading, ok in (
        ("auto", False, GpuReading(taken_at=now), True),
        ("auto", True, GpuReading(taken_at=now), False),
        ("nvidia", False, GpuReading(taken_at=now), False),
        ("drm", False, GpuReading(taken_at=now), False),
        ("off", True, GpuReading(taken_at=now), True),
        ("auto", True, GpuReading(), None),
        ("auto", True, GpuReading([seen], now), True),
        ("auto", True, GpuReading([seen], now - 1000), False),
        ("auto", True, GpuReading([Gpu(component="a", vendor="nvidia")], now), False),
    ):
        check = check_gpus(setting, has_device, reading)
        assert check.ok is ok, check
        assert check.advice or ok is not False


def test_memory_controller_is_found_in_both_versions(tmp_path: Path) -> None:
    """Version 1, version 2, its root group, and a container that sees none."""
    assert check_memory_limits([]).ok is False
    assert check_memory_limits([str(tmp_path)]).ok is False
    for name, text in (
        ("memory.limit_in_bytes", "1"),
        ("memory.max", "max"),
        ("cgroup.controllers", "cpu memory pids"),
    ):
        (tmp_path / name).write_text(text)
        assert check_memory_limits([str(tmp_path)]).ok is True
        (tmp_path / name).unlink()
    (tmp_path / "cgroup.controllers").write_text("cpu pids")
    assert check_memory_limits([str(tmp_path)]).ok is False


def test_swap_accounting_matters_where_there_is_swap(tmp_path: Path) -> None:
    """No swap is fine; with swap the group's own file shows whether swap is counted."""
    swaps, folder = tmp_path / "swaps", tmp_path / "group"
    folder.mkdir()
    assert check_swap([str(folder)], str(swaps)).ok is None
    swaps.write_text("Filename Type Size Used Priority\n")
    assert check_swap([str(folder)], str(swaps)).ok is True
    with swaps.open("a") as file:
        file.write("/dev/sda2 partition 1024 0 -2\n")
    assert check_swap([str(folder)], str(swaps)).ok is None
    (folder / "memory.max").write_text("max")
    assert check_swap([str(folder)], str(swaps)).ok is False
    (folder / "memory.swap.max").write_text("max")
    assert check_swap([str(folder)], str(swaps)).ok is True
