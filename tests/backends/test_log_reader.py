"""Logs of backends: from hooks, and from the files that they write to."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import (
    KnownModel,
    LogTail,
    LogUnavailable,
    ModelNotLoaded,
    Monitor,
    PidNotHeld,
    hookimpl,
)
from monitor_plugin.backends.log_reader import Log, LogReader, _make_log, _Positions, _Process
from monitor_plugin.domain.logs import MAX_LOG_BYTES

from ..support import Spawner, eventually, register


class Host:
    """A host that keeps the logs of its models, as far as a test gives it some."""

    def __init__(self) -> None:
        self.logs: dict[str, bytes | LogTail] = {}
        self.calls: list[tuple[str, int | None, str]] = []

    @hookimpl
    def monitor_list_models(self) -> list[KnownModel]:
        return [KnownModel("known", "failed")]

    @hookimpl
    def monitor_read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> bytes | LogTail | None:
        self.calls.append((model, pid, stream))
        log = self.logs.get(stream)
        if isinstance(log, LogTail):
            return LogTail(log.data[-max_bytes:], log.end)
        return None if log is None else log[-max_bytes:]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def monitor(make_monitor: Callable[..., Monitor], host: Host) -> Monitor:
    return make_monitor(plugins=[host])


@pytest.fixture
def reader(monitor: Monitor) -> LogReader:
    return monitor._services.log_reader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def process(monitor: Monitor, spawner: Spawner, log: Path) -> subprocess.Popen[str]:
    """A registered backend whose standard error is the file `log`, to which the test writes."""
    with log.open("ab") as file:
        process = spawner.process("sleep", "1000", stderr=file)
    register(monitor, process.pid)
    return process


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def end(monitor: Monitor, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    eventually(lambda: not monitor.backends())


def test_file_is_followed_to_the_end_of_the_process(
    reader: LogReader, monitor: Monitor, process: subprocess.Popen[str], log: Path
) -> None:
    """No byte is missing or read twice."""
    write(log, b"one\n")
    first = reader.read("m", None, "stderr", 100)
    assert first == Log(process.pid, "file", "one\n", 0, 4, False)
    assert reader.read("m", None, "stderr", 100, first.next).text == ""
    write(log, b"two\n")
    second = reader.read("m", process.pid, "stderr", 100, first.next)
    assert second == Log(process.pid, "file", "two\n", 4, 8, False)
    write(log, b"three\n")
    end(monitor, process)
    third = reader.read("m", None, "stderr", 100, second.next)
    assert third == Log(process.pid, "file", "three\n", 8, 14, False)


def test_gap_is_told(reader: LogReader, process: subprocess.Popen[str], log: Path) -> None:
    """More bytes than wanted were written, or the file was truncated."""
    write(log, b"0123456789")
    assert reader.read("m", None, "stderr", 4, 2) == Log(process.pid, "file", "6789", 6, 10, True)
    log.write_bytes(b"new")
    assert reader.read("m", None, "stderr", 4, 10) == Log(process.pid, "file", "new", 0, 3, True)


def test_bytes_of_one_character_are_read_together(
    reader: LogReader, monitor: Monitor, process: subprocess.Popen[str], log: Path
) -> None:
    """An incomplete character is left for the next request; at the end nothing follows it."""
    snowman = "\N{SNOWMAN}".encode()
    write(log, snowman + snowman[:2])
    first = reader.read("m", None, "stderr", 100)
    assert (first.text, first.next) == ("\N{SNOWMAN}", 3)
    write(log, snowman[2:] + b"\xff\0" + snowman[:1])
    second = reader.read("m", None, "stderr", 100, first.next)
    assert (second.text, second.next) == ("\N{SNOWMAN}\\xff\0", 8)
    cut = reader.read("m", None, "stderr", 5)
    assert (cut.text, cut.start, cut.next) == ("\\xff\0", 6, 8)
    end(monitor, process)
    third = reader.read("m", None, "stderr", 100, second.next)
    assert (third.text, third.next) == ("\\xe2", 9)


@given(st.text(max_size=40), st.lists(st.integers(0, 12), max_size=6), st.integers(12, 30))
def test_parts_of_a_followed_text_make_the_text(
    text: str, sizes: list[int], max_bytes: int
) -> None:
    """No character is split, wherever the process pauses, in a file and in a hook's results."""
    data = text.encode(errors="surrogatepass")
    written = position = 0
    shown = ""
    for size in [*sizes, *([12] * 20)]:
        written = min(len(data), written + size)
        has_ended = written == len(data)
        tail = LogTail(data[:written][-max_bytes:], written)
        if written - position > max_bytes:
            break
        found = _make_log(_Process(1, None, has_ended), "host", tail, position)
        assert not found.gap
        shown += found.text
        position = found.next
    else:
        assert shown == data.decode(errors="backslashreplace")


def test_hook_comes_first(
    reader: LogReader, host: Host, process: subprocess.Popen[str], log: Path
) -> None:
    """The file is read where the host has no log of the stream."""
    write(log, b"of the file")
    host.logs["stdout"] = LogTail(b"of the host", 1000)
    assert reader.read("m", None, "stdout", 100) == Log(
        process.pid, "host", "of the host", 989, 1000, False
    )
    assert reader.read("m", None, "stdout", 100, 996).text == "host"
    assert reader.read("m", None, "stdout", 100, 1001).gap
    assert reader.read("m", None, "stdout", 4, 989).gap
    assert reader.read("m", None, "stderr", 100).source == "file"
    assert host.calls[-1] == ("m", process.pid, "stderr")


def test_log_of_a_model_that_was_never_registered(reader: LogReader, host: Host) -> None:
    """The process ended too soon, so that only its host knows the log."""
    host.logs["stderr"] = b"no such file\n"
    assert reader.read("known", None, "stderr", 100) == Log(
        None, "host", "no such file\n", 0, 13, False
    )
    assert host.calls == [("known", None, "stderr")]
    assert reader.last_output("known") == "no such file"
    with pytest.raises(LogUnavailable, match="only its host can know the log"):
        reader.read("known", None, "stdout", 100)
    host.logs.clear()
    with pytest.raises(ModelNotLoaded):
        reader.read("unknown", None, "stderr", 100)
    assert reader.last_output("unknown") is None


def test_host_is_asked_for_the_last_process_once_the_backend_has_ended(
    reader: LogReader, host: Host, monitor: Monitor, process: subprocess.Popen[str]
) -> None:
    """The host may have started processes since that ended before their registration."""
    host.logs["stderr"] = b"last words\n"
    end(monitor, process)
    host.calls.clear()
    found = reader.read("m", None, "stderr", 100)
    assert (found.pid, found.text) == (None, "last words\n")
    assert reader.last_output("m") == "last words"
    assert reader.read("m", process.pid, "stderr", 100).pid == process.pid
    assert [pid for _, pid, _ in host.calls] == [None, None, process.pid]


def test_log_that_cannot_be_read_has_a_reason(
    reader: LogReader, monitor: Monitor, process: subprocess.Popen[str]
) -> None:
    """The error says what to do. A PID must be one of the model's."""
    with pytest.raises(LogUnavailable, match=f"standard output of its process {process.pid}: it "
                       "writes to a pipe; let the process write to a file"):  # fmt: skip
        reader.read("m", None, "stdout", 100)
    with pytest.raises(PidNotHeld, match=f"no backend with PID 1; it has {process.pid}"):
        reader.read("m", 1, "stderr", 100)
    with pytest.raises(ModelNotLoaded):
        reader.read("known", 1, "stderr", 100)
    end(monitor, process)
    with pytest.raises(LogUnavailable, match="it has ended"):
        reader.read("m", process.pid, "stdout", 100)


def test_newest_backend_is_read_by_default(
    reader: LogReader, monitor: Monitor, spawner: Spawner, tmp_path: Path
) -> None:
    """A backend that runs comes before one that has ended; each is read by its PID."""
    processes = []
    for name in ("old", "new"):
        with (tmp_path / name).open("w") as file:
            file.write(name)
            file.flush()
            processes.append(spawner.process("sleep", "1000", stderr=file))
        register(monitor, processes[-1].pid, address=f"unix:/{name}")
    old, new = processes
    assert reader.read("m", None, "stderr", 100).text == "new"
    new.kill()
    new.wait()
    eventually(lambda: len(monitor.backends()) == 1)
    assert reader.read("m", None, "stderr", 100).text == "old"
    assert reader.read("m", new.pid, "stderr", 100).text == "new"
    end(monitor, old)
    assert reader.read("m", None, "stderr", 100).text == "old"  # it has ended last
    assert reader.last_output("m", new.pid) == "new"
    ids = [each.id for each in monitor._services.registry.last_exits()]
    assert reader.last_output("m", after_end_id=ids[0]) == "old"
    assert reader.last_output("m", after_end_id=ids[1]) is None


def test_last_output_is_the_standard_output_if_the_error_is_empty(
    reader: LogReader, host: Host
) -> None:
    host.logs = {"stderr": b" \n", "stdout": b"Loading...\nKilled\n"}
    assert reader.last_output("known") == "Loading...\nKilled"
    host.logs["stderr"] = b"error\n"
    assert reader.last_output("known") == "error"


def test_hook_that_hangs_delays_a_log_by_its_time_limit_only(
    make_monitor: Callable[..., Monitor], spawner: Spawner, log: Path
) -> None:
    """The file is read then, also by the next request, which does not wait."""
    released = threading.Event()

    class Hanging:
        @hookimpl
        def monitor_read_log(self, model: str) -> None:
            released.wait(60)

    monitor = make_monitor(plugins=[Hanging()], hook_timeout_seconds=0.2)
    log.write_text("of the file")
    with log.open("ab") as file:
        process = spawner.process("sleep", "1000", stderr=file)
    register(monitor, process.pid)
    try:
        for _ in range(2):
            assert monitor._services.log_reader.read("m", None, "stderr", 100).source == "file"
    finally:
        released.set()


# The positions of bytes that a hook returns without their end.


def test_log_that_grows_is_followed() -> None:
    """Repeated lines are followed too, as long as the hook returns the whole log."""
    positions = _Positions()
    for count in (0, 1, 3, 4, 500):
        data = b"tick\n" * count
        assert positions.locate("k", data, MAX_LOG_BYTES) == LogTail(data, len(data))


def test_end_of_a_log_is_followed_with_and_without_overlap() -> None:
    """The hook returns a hundred bytes of a long log."""
    log = b"".join(b"line %d\n" % each for each in range(200))
    positions = _Positions()
    first = positions.locate("k", log[:300][-100:], 100)
    assert positions.locate("k", log[:300][-100:], 100) == first
    second = positions.locate("k", log[:360][-100:], 100)
    assert second.end == first.end + 60
    third = positions.locate("k", log[:900][-100:], 100)  # 440 bytes are missing
    assert third.end - 100 > second.end
    whole = positions.locate("k", log[:910], MAX_LOG_BYTES)
    assert whole.end == third.end + 10
    assert whole.end >= 910
    assert positions.locate("other", b"", 100) == LogTail(b"", 0)


def test_log_that_was_cleared_follows_a_gap() -> None:
    positions = _Positions()
    before = positions.locate("k", b"before the restart\n", 100)
    after = positions.locate("k", b"after it\n", 100)
    assert after.end - len(after.data) > before.end


def test_few_positions_are_known() -> None:
    positions = _Positions()
    for each in range(1000):
        positions.locate(each, b"line\n", 100)
    assert len(positions._known) == 64


def test_last_output_of_the_monitors_own_file_is_marked(
    monitor: Monitor, spawner: Spawner, log: Path
) -> None:
    """A backend may inherit the file of its host, whose lines are then among the last ones."""
    write(log, b"line\n" * 2000)
    saved = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        process = spawner.process("sleep", "1000", stderr=None)
        register(monitor, process.pid)
        end(monitor, process)
        text = monitor._services.log_reader.last_output("m") or ""
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert text.splitlines()[:2] == ["[the monitor's own process writes to this file, too]", "line"]
    assert len(text.splitlines()) == 21
