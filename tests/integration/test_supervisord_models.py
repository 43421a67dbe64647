"""Models of the real supervisord: what it says of them, their starts and their logs.

The monitor is in this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest

from monitor_plugin import Backend, KnownModel, LogTail, Monitor, StartFailed
from monitor_plugin.hosts.discovery import parse_rule
from monitor_plugin.hosts.supervisord.adapter import Adapter

from ..support import eventually, free_port
from .supervisord_host import Host, program, sleeper

pytestmark = pytest.mark.slow

DEAF = "import signal, sys, time; signal.signal(15, 1); open(sys.argv[1], 'w'); time.sleep(9999)"
# Writes 10 MiB a second for two seconds: numbered records, which are no text.
FLOOD = r"""
import os, time
for block in range(20):
    records = range(block * 16384, (block + 1) * 16384)
    data = b"".join(b"%08d" % each + b"\0\xff\x1b\r" * 13 + b"...\n" for each in records)
    while data:
        data = data[os.write(2, data) :]
    time.sleep(0.1)
time.sleep(100000)
"""
FLOOD_BYTES = 20 << 20
STATES = {
    "RUNNING": "running",
    "STARTING": "starting",
    "STOPPED": "stopped",
    "STOPPING": "stopped",
    "BACKOFF": "waiting",
    "EXITED": "exited",
    "FATAL": "failed",
}
SLEEPS = "exec sleep 100000"
WRITES = r"printf 'out\0\377\033[1m\r\n'; printf 'err\0\376\n' >&2; " + SLEEPS
OUT, ERR = b"out\0\xff\x1b[1m\r\n", b"err\0\xfe\n"


def sections(folder: Path) -> str:
    """Return the sections of programs; each test has programs of its own."""

    def shell(name: str, script: str, *lines: str) -> str:
        """Return the section of a shell that runs a script, and has `--addr` in its arguments."""
        (folder / f"{name}.sh").write_text(script)
        return program(name, f"sh {folder}/{name}.sh --addr 127.0.0.1:{free_port()}", *lines)

    def address() -> str:
        return f"--addr 127.0.0.1:{free_port()}"

    manual, once, quick = "autostart=false", "autorestart=false", "startsecs=1"
    failing = (manual, quick, "startretries=0")
    (folder / "text").write_text("no program")
    (folder / "deaf.py").write_text(DEAF)
    (folder / "flood.py").write_text(FLOOD)
    return "\n".join(
        [
            shell("never", SLEEPS, manual),
            program("ruled", "sleep 100000", manual),
            program("many", "sleep 100000", manual, "numprocs=2", "process_name=%(process_num)d"),
            sleeper("unseen", manual),
            sleeper("seen"),
            program("other", "sleep 100000"),
            shell("ended", "exit 3", once),
            shell("dies", "echo last words >&2; exit 3", *failing),
            shell("retries", "exit 3", quick, "startretries=1000"),
            shell("mended", f"test -e {folder}/mended && {SLEEPS}", *failing),
            program("missing", f"/none/at/all {address()}", manual),
            program("text", f"{folder}/text {address()}", manual),
            program(
                "deaf",
                f"{sys.executable} -S {folder}/deaf.py {folder}/deaf {address()}",
                "stopwaitsecs=2",
            ),
            program(
                "flood",
                f"{sys.executable} -S {folder}/flood.py {address()}",
                *(manual, "stderr_logfile_maxbytes=5MB"),
            ),
            "[group:pair]\nprograms=left,right\n",
            shell("left", SLEEPS, manual),
            shell("right", "exit 3", *failing),
            shell("binary", WRITES),
            shell(
                "talks",
                f"echo I am $$; until test -e {folder}/go; do sleep 0.1; done; echo more; {SLEEPS}",
            ),
            shell("merged", WRITES, "redirect_stderr=true"),
            shell("half", WRITES, "stderr_logfile=NONE"),
            shell("device", WRITES, "stdout_logfile=/dev/stdout", "stdout_logfile_maxbytes=0"),
            shell(
                "relative",
                f"printf 'häh\\n'; printf '\\377' >&2; {SLEEPS}",
                "stdout_logfile=relative.log",
                "stderr_logfile=binary.log",
            ),
        ]
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A supervisord without the monitor."""
    folder = tmp_path_factory.mktemp("supervisord")
    host = Host(folder, sections(folder), monitored=False).start()
    host.info("never")  # once it answers
    yield host
    host.close()


class Case:
    """A monitor whose adapter knows the host's programs."""

    def __init__(self, host: Host, make_monitor: Callable[..., Monitor]) -> None:
        self.host = host
        rules = ["ruled=by/rule@127.0.0.1:1", "many:*=many", "pair:*=pair"]
        self.adapter = Adapter(host.supervisord, [parse_rule(each) for each in rules])
        self.monitor = make_monitor([self.adapter])

    def models(self) -> dict[str, KnownModel]:
        """List the known models by name, as a poll that begins now finds them."""
        self.adapter.monitor_start_model("no such model", 30)  # it asks supervisord first
        return {each.model: each for each in self.adapter.monitor_list_models()}

    def model_when(self, model: str, state: str) -> KnownModel:
        """Return a model once it has that state."""

        def find() -> list[KnownModel]:
            return [
                each
                for each in self.models().values()
                if (each.model, each.state) == (model, state)
            ]

        return eventually(find)[0]

    def start(self, model: str, seconds: float = 60) -> bool | None:
        return self.adapter.monitor_start_model(model, seconds)

    def backends(self, model: str) -> list[Backend]:
        return [each for each in self.monitor.backends() if each.model == model]


@pytest.fixture
def case(host: Host, make_monitor: Callable[..., Monitor]) -> Case:
    return Case(host, make_monitor)


def test_every_program_that_is_a_model_is_listed_once(case: Case) -> None:
    """Without a process it is known by a rule, by `--addr` or because it was a backend before.

    The states agree with `supervisorctl status` also while they change.
    """
    eventually(lambda: case.host.state("ended") == "EXITED")
    case.models()  # finds the backend `seen`
    case.host.control("stop", "seen")

    def agree() -> dict[str, KnownModel]:
        models, status = case.models(), {}
        for line in case.host.control("status").splitlines():
            name, state = line.split()[:2]
            status[{"ruled": "by/rule"}.get(name, name)] = STATES[state]
        assert models.keys() - {"many", "pair"} == {name for name in status if ":" not in name} - {
            "unseen",
            "other",
        }
        told = {name: each.state for name, each in models.items() if name in status}
        return models if told == {name: status[name] for name in told} else {}

    models = eventually(agree)
    assert models["never"] == KnownModel("never", "stopped", "Not started", True)
    assert models["by/rule"] == KnownModel("by/rule", "stopped", "Not started", True)
    assert models["many"] == KnownModel("many", "stopped", "many:0: Not started", True)
    assert models["seen"].state == "stopped"
    assert models["ended"].state == "exited"
    assert "Bad exit code 3" in str(models["ended"].detail)
    assert models["binary"] == KnownModel("binary", "running", None, True)
    assert all(each.can_start for each in models.values())
    retries = case.model_when("retries", "waiting")
    assert "Exited too quickly" in str(retries.detail)


def test_added_and_removed_programs_are_seen(case: Case) -> None:
    """`update` reports no event to the listener."""
    assert case.start("added") is None
    old = case.host.configuration.read_text()
    added = program("added", f"sleep 1000 --addr 127.0.0.1:{free_port()}", "autostart=false")
    case.host.configuration.write_text(old + added)
    assert "added: added process group" in case.host.control("update")
    assert case.models()["added"].state == "stopped"
    case.host.configuration.write_text(old)
    case.host.control("update")
    assert "added" not in case.models()
    assert case.start("added") is None


def test_model_is_started_from_every_state(case: Case) -> None:
    """STOPPED, FATAL, EXITED, and what the monitor has stopped; a program that runs goes on."""
    assert case.start("never") is True
    assert case.host.state("never") == "RUNNING"
    pid = case.host.pid("never")
    assert case.start("never") is True
    assert case.host.pid("never") == pid
    eventually(lambda: case.backends("never"))
    case.monitor.shutdown("never")
    assert case.models()["never"].state == "stopped"
    assert case.start("never") is True
    assert case.host.pid("never") != pid
    assert case.start("mended") is True
    case.model_when("mended", "failed")
    (case.host.folder / "mended").touch()
    assert case.start("mended") is True
    assert case.models()["mended"].state in ("starting", "running")
    assert case.start("many") is True
    assert [case.host.state(f"many:{number}") for number in (0, 1)] == ["RUNNING"] * 2
    eventually(lambda: case.host.state("ended") == "EXITED")
    assert case.start("ended") is True
    assert case.start("retries") is True  # supervisord starts it again


def test_model_that_ends_at_once_fails_with_the_reason_of_supervisord(case: Case) -> None:
    """The start ends once supervisord has given up, and the log of the process is readable."""
    with pytest.raises(StartFailed) as caught:
        case.monitor.start_model("dies", 60)
    assert "Exited too quickly" in caught.value.reason
    assert case.host.state("dies") == "FATAL"
    assert case.models()["dies"].state == "failed"
    tail = case.adapter.monitor_read_log("dies", None, "stderr", 100)
    assert tail == LogTail(b"last words\n", 11)


@pytest.mark.parametrize(
    ("name", "said"), [("missing", "NO_FILE: can't find command '/none/at/all'"),
                       ("text", "NOT_EXECUTABLE: command at")]
)  # fmt: skip
def test_program_that_cannot_be_started_is_an_error(name: str, said: str, case: Case) -> None:
    """The reason is that of supervisord."""
    case.models()
    with pytest.raises(StartFailed) as caught:
        case.start(name)
    assert f"program '{name}:{name}': " in caught.value.reason
    assert said in caught.value.reason


def test_start_waits_for_a_stop(case: Case, make_monitor: Callable[..., Monitor]) -> None:
    """supervisord itself would ignore a start of a program that it is stopping."""
    other = Case(case.host, make_monitor)
    case.models()
    eventually((case.host.folder / "deaf").exists)  # it ignores SIGTERM now
    pid = case.host.pid("deaf")
    case.host.supervisord.call("stopProcess", "deaf", False)
    stopping = KnownModel("deaf", "stopped", "supervisord is stopping it", True)
    assert case.models()["deaf"] == stopping
    with pytest.raises(StartFailed, match="still stopping program 'deaf:deaf'"):
        case.start("deaf", 0)
    with futures.ThreadPoolExecutor(2) as pool:
        starting = pool.submit(case.start, "deaf")
        closed = pool.submit(other.start, "deaf")
        other.monitor.close()
        assert "the monitor was closed" in str(closed.exception(30))
        assert case.host.state("deaf") == "STOPPING"
        assert starting.result(60) is True
    assert case.host.state("deaf") == "RUNNING"
    assert case.host.pid("deaf") != pid


def test_state_that_an_operator_should_see_first_is_that_of_the_model(case: Case) -> None:
    """One program of the model has failed, and another program runs."""
    assert case.models()["pair"].state == "stopped"
    assert case.start("pair") is True
    pair = case.model_when("pair", "failed")
    assert str(pair.detail).startswith("pair:right: Exited too quickly")
    assert case.host.state("pair:left") == "RUNNING"


def test_logs_are_read_as_bytes(case: Case) -> None:
    """XML-RPC cannot carry all bytes, so that supervisord is asked only for other logs.

    With `redirect_stderr` both streams have the same log.
    """
    case.models()

    def read(model: str, stream: str = "stdout", *, size: int = 1000) -> object:
        tail = case.adapter.monitor_read_log(model, None, stream, size)
        return (tail.data, tail.end) if isinstance(tail, LogTail) else tail

    eventually(lambda: read("binary") == (OUT, len(OUT)))
    eventually(lambda: read("binary", "stderr") == (ERR, len(ERR)))
    assert read("binary", size=3) == (OUT[-3:], len(OUT))
    both = OUT + ERR
    eventually(lambda: read("merged") == (both, len(both)))
    assert read("merged", "stderr") == (both, len(both))
    eventually(lambda: read("half") == (OUT, len(OUT)))
    assert read("half", "stderr") is None
    assert read("device") is None
    assert read("no such model") is None
    # The monitor does not know supervisord's folder.
    eventually(lambda: read("relative") == "häh\n".encode())
    assert read("relative", size=3) == b"h\n"  # not a part of a character
    assert read("relative", "stderr") is None


def test_log_that_is_rotated_at_ten_megabytes_a_second_is_followed(case: Case) -> None:
    """Nothing is missing, and nothing comes twice."""
    case.start("flood")
    followed = b""
    while len(followed) < FLOOD_BYTES:
        tail = case.adapter.monitor_read_log("flood", None, "stderr", FLOOD_BYTES)
        assert isinstance(tail, LogTail)
        assert tail.end - len(followed) <= len(tail.data)
        followed += tail.data[len(tail.data) - (tail.end - len(followed)) :]
        time.sleep(0.2)
    records = [followed[start : start + 8] for start in range(0, FLOOD_BYTES, 64)]
    assert records == [b"%08d" % number for number in range(FLOOD_BYTES // 64)]
    assert Path(case.host.info("flood")["stderr_logfile"] + ".1").exists()


def test_log_of_an_ended_process_ends_with_its_last_words(case: Case) -> None:
    """The next process of its program writes to the same log. A process of no program has none."""
    case.models()
    (backend,) = eventually(lambda: case.backends("talks"))
    words = f"I am {backend.pid}\n".encode()

    def read(pid: int | None) -> bytes:
        tail = case.adapter.monitor_read_log("talks", pid, "stdout", 999)
        return tail.data if isinstance(tail, LogTail) else b""

    eventually(lambda: read(backend.pid) == words)
    os.kill(backend.pid, signal.SIGKILL)
    eventually(lambda: case.host.info("talks")["pid"] not in (0, backend.pid))
    case.models()
    (case.host.folder / "go").touch()
    eventually(lambda: read(None).endswith(b"more\n"))
    assert read(backend.pid).startswith(words)
    assert b"more" not in read(backend.pid)
    assert case.adapter.monitor_read_log("talks", os.getpid(), "stdout", 99) is None
