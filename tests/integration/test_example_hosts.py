"""The examples are hosts: they restart what crashes, and leave alone what was shut down."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ..support import LIGHT_BACKEND, Answer, Client, Spawner, eventually, is_running

# The hosts' processes, not this one, are what is slow.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HOSTS = ["embedded_host.py", "asyncio_host.py", "forking_host.py"]

BACKEND = f"{LIGHT_BACKEND} --addr {{address}}"
# Crashes when it is asked to end, and leaves a child behind.
CRASHES_AT_SIGTERM = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
subprocess.Popen(["sleep", "1000"])
while True:
    time.sleep(0.1)
"""


class Host:
    """An example that runs, and what can be seen of it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        assert process.stdout is not None
        # Backends, which share the pipe, may say something before, and in the same line.
        said = (re.search(r"answers on (http://\S+)\.", line) for line in process.stdout)
        url = next(filter(None, said), None)
        assert url, self.errors()
        self.client = Client(url[1])

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def pid(self, mark: str) -> int | None:
        """Return the PID of the program with this text in its command line, if it runs."""
        host = psutil.Process(self.process.pid)
        for child in host.children():
            with contextlib.suppress(psutil.Error):
                command = child.cmdline()
                if mark in " ".join(command) and command != host.cmdline():  # so it has execed
                    return child.pid
        return None

    def serves(self, model: str) -> bool:
        answer = self.client.monitor(model)
        return answer.status == 200 and answer.headers["X-Monitor-Source"] == "grpc"

    def crash(self, mark: str) -> float:
        """Kill a program, wait until another runs in its place, and return the seconds between."""
        pid = eventually(lambda: self.pid(mark)) or 0
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.pid(mark) not in (None, pid))
        return time.monotonic() - killed_at


@pytest.fixture
def start_host(spawner: Spawner) -> Iterator[Callable[..., Host]]:
    """Starts an example with `MODEL=COMMAND` arguments, and ends it with all its processes."""
    hosts = []
    folder = Path(tempfile.mkdtemp())  # with a short name: unix sockets are in it

    def start(name: str, *programs: str, **environment: str) -> Host:
        (folder / "tmp").mkdir()
        with open(folder / "stderr", "w") as errors:
            process = spawner.process(
                *(sys.executable, str(ROOT / "examples" / name), *programs),
                stderr=errors,
                env={
                    **os.environ,
                    "MONITOR_LISTEN": "127.0.0.1:0",
                    "MONITOR_STATUS_TIMEOUT_SECONDS": "30",
                    "MONITOR_STOP_TIMEOUT_SECONDS": "4",
                    "TMPDIR": str(folder / "tmp"),
                    **environment,
                },
            )
        hosts.append(process)
        return Host(process, folder)

    yield start
    for process in hosts:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
    spawner.close()
    shutil.rmtree(folder)


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS)
def test_crashed_backend_is_restarted_but_a_stopped_one_is_not(
    name: str, start_host: Callable[..., Host]
) -> None:
    """A killed backend is registered again after a delay; one that the monitor stopped is not."""
    host = start_host(name, f"a={BACKEND} --ignore-sigterm", f"b={BACKEND}")
    eventually(lambda: host.serves("a") and host.serves("b"))
    assert host.client.shutdown("a", force=True).json == {"message": "model stopped"}
    delays = [host.crash("light_backend") for _ in range(2)]
    assert delays[0] > 0.5
    assert name == "forking_host.py" or delays[1] > 1
    # By now `a` would have been restarted too.
    assert host.pid("--ignore-sigterm") is None
    assert "was stopped by a shutdown" in host.client.monitor("a").json["error"]["message"]
    eventually(lambda: host.serves("b"))


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS)
def test_backend_that_crashes_during_a_stop_is_not_restarted(
    name: str, start_host: Callable[..., Host]
) -> None:
    """Its children end too."""
    command = shlex.join([sys.executable, "-c", CRASHES_AT_SIGTERM, "{address}"])
    host = start_host(name, f"a={command}", f"b={BACKEND}")
    pid = eventually(lambda: host.pid("SIGTERM"))
    child = eventually(lambda: psutil.Process(pid).children())[0].pid
    eventually(lambda: "sleep" in psutil.Process(child).cmdline())
    eventually(lambda: host.client.monitor("a").status == 200)
    assert host.client.shutdown("a").json == {"message": "model stopped"}
    assert not is_running(child)
    host.crash("light_backend")
    assert host.pid("SIGTERM") is None
    eventually(lambda: f"a: process {pid} ended with -9" in host.errors())


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS[:2])
def test_model_between_two_starts_is_not_loaded(
    name: str, start_host: Callable[..., Host], tmp_path: Path
) -> None:
    """A shutdown of a model that waits for its restart is an error; the model is started again."""
    starts = tmp_path / "starts"
    host = start_host(name, f"a=sh -c 'echo >> {starts}; exit 3' {{address}}")
    eventually(lambda: starts.exists() and len(starts.read_text()) >= 3)  # the next is in 2 s
    eventually(lambda: host.errors().count("ended with 3") >= 3)
    answer = host.client.shutdown("a")
    assert answer.json["error"]["type"] == "model_not_loaded"
    before = len(starts.read_text())
    eventually(lambda: len(starts.read_text()) > before)


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS)
def test_stopped_model_can_be_started_again(name: str, start_host: Callable[..., Host]) -> None:
    """Each host lists its models, starts one that was stopped, and restarts one that runs."""
    host = start_host(name, f"a={BACKEND}", "c=sh -c 'exit 3' {address}")

    def states() -> dict[str, str]:
        models = host.client.request("GET", "/backends").json["models"]
        assert all(each["can_start"] for each in models)
        return {each["model"]: each["state"] for each in models}

    def ask(path: str, model: str) -> Answer:
        return host.client.request("POST", f"/backend/{path}", {"model": model})

    eventually(lambda: host.serves("a") and states() == {"c": "waiting"})
    before = host.pid("light_backend")
    assert ask("load", "a").json == {"loaded": ["a"], "message": "model loaded"}
    assert host.pid("light_backend") == before
    assert host.client.shutdown("a").status == 200
    eventually(lambda: states() == {"a": "stopped", "c": "waiting"})
    assert ask("load", "a").status == 200
    second = host.pid("light_backend")
    assert ask("restart", "a").json == {"loaded": ["a"], "message": "model restarted"}
    assert None not in (before, second)
    assert len({before, second, host.pid("light_backend")}) == 3
    assert "no host" in ask("load", "x").json["message"]
    host.crash("light_backend")


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS)
def test_crash_looping_model_fails_its_start(name: str, start_host: Callable[..., Host]) -> None:
    """The host says `waiting`, so that the start waits until its time limit; it names the end."""
    host = start_host(name, "c=sh -c 'exit 3' {address}", MONITOR_START_TIMEOUT_SECONDS="2")
    answer = host.client.request("POST", "/backend/load", {"model": "c"})
    assert answer.status == 500
    # A process that ends before it is registered is known to the host alone.
    assert re.search(r"says (waiting|running) \(process \d+ ended with 3\)", answer.json["message"])
    assert "within 2 s" in answer.json["message"]


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_host_leaves_nothing_behind(
    name: str, number: signal.Signals, start_host: Callable[..., Host]
) -> None:
    """SIGTERM and Ctrl-C end all backends, also one that ignores signals, and remove all files."""
    command = shlex.join([sys.executable, "-c", CRASHES_AT_SIGTERM, "{address}"])
    deaf = f"trap '' TERM INT; sleep 1000 & sleep 1000 & exec {BACKEND}"
    host = start_host(
        name,
        f"a={shlex.join(['sh', '-c', deaf])}",
        f"b={command}",
        "c=sh -c 'exit 3' {address}",
        "d=/no/such/program {address}",
    )
    eventually(lambda: host.serves("a") and "c: process" in host.errors())
    pid = eventually(lambda: host.pid("SIGTERM"))
    eventually(lambda: psutil.Process(pid).children())
    started = psutil.Process(host.process.pid).children(recursive=True)
    assert len(started) >= 5
    host.process.send_signal(number)
    assert host.process.wait(30) == 0
    eventually(lambda: [each for each in started if is_running(each.pid)] == [])
    assert os.listdir(host.folder / "tmp") == []
    assert "Traceback" not in host.errors()


@pytest.mark.parametrize(
    ("name", "fork_support"),
    [
        ("forking_host.py", None),
        pytest.param("embedded_host.py", None, marks=pytest.mark.once),
        pytest.param("embedded_host.py", "0", marks=pytest.mark.once),
        ("embedded_host.py", "1"),
    ],
)
def test_children_can_be_started_during_readings(
    name: str,
    fork_support: str | None,
    start_host: Callable[..., Host],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of 30 is aborted or hangs, forked by the host or by subprocess."""
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    if fork_support is not None:
        monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", fork_support)
    marks = [f"1000{i:02}" for i in range(10)]
    host = start_host(
        name,
        *(f"backend{i}={BACKEND}" for i in range(2)),
        *(f"{mark}=sh -c 'exec sleep {mark}' {{address}}" for mark in marks),
    )
    eventually(lambda: all(host.serves(f"backend{i}") for i in range(2)))
    ended = threading.Event()
    readings: Counter[str] = Counter()

    def read(model: str) -> None:
        while not ended.is_set():
            answer = host.client.monitor(model)
            readings[answer.headers["X-Monitor-Source"]] += 1

    readers = [threading.Thread(target=read, args=(f"backend{i}",)) for i in range(2)]
    for reader in readers:
        reader.start()
    killed: list[int] = []

    def all_run() -> bool:
        return all(host.client.monitor(mark).status == 200 for mark in marks)

    try:
        for _ in range(3):
            eventually(all_run)
            pids = [pid for pid in map(host.pid, marks) if pid]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed += pids
            eventually(lambda: host.errors().count("ended with") == len(killed))  # noqa: B023
        eventually(all_run)
    finally:
        ended.set()
        for reader in readers:
            reader.join()
    # gRPC may log too: 1.49.1 says of some children that a descriptor was closed.
    ends = re.findall(r"process (\d+) ended with (-?\d+)", host.errors())
    assert len(killed) == 30
    assert Counter(ends) == Counter((str(pid), "-9") for pid in killed)
    assert set(readings) == {"grpc"}
    assert readings["grpc"] > 30


@pytest.mark.once
def test_monitor_does_not_block_the_loop_of_an_asyncio_host(spawner: Spawner) -> None:
    """The loop's longest stall with a hung backend is under 50 ms more than without.

    Three tries, as other load on the machine may stall the loop; one that is blocked fails all.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "asyncio_stall.py"), "--rounds", "3"]
    said = []
    for _ in range(3):
        process = spawner.process(*command, stderr=subprocess.STDOUT)
        said.append(process.communicate(timeout=100)[0])
        if process.returncode == 0:
            return
    pytest.fail("\n".join(said))


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTS[:2])
def test_example_host_is_small(name: str) -> None:
    """It has no more lines than the documents say."""
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 160
