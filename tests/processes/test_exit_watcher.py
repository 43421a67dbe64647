from __future__ import annotations

import errno
import os
import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import pytest

from monitor_plugin.processes import exit_watcher
from monitor_plugin.processes.exit_watcher import ExitWatcher
from monitor_plugin.processes.process import Process

from ..seccomp import refuse
from ..support import (
    Spawner,
    descriptors,
    eventually,
    logged,
    refuse_descriptors,
    refuse_thread,
    started_since,
)

BOTH = pytest.mark.parametrize("keep_descriptor", [True, False], ids=["pidfd", "polled"])


class ExitRecorder:
    """A watcher, the processes whose ends it reported, and the threads on which it did."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Process] = queue.Queue()
        self.threads: set[str] = set()
        self.watcher = ExitWatcher(self._record)

    def _record(self, process: Process) -> None:
        self.threads.add(threading.current_thread().name)
        self.queue.put(process)

    def next_exit(self) -> Process:
        return self.queue.get(timeout=60)


@pytest.fixture
def recorder() -> Iterator[ExitRecorder]:
    """A watcher that is not started yet; it is closed after the test."""
    recorder = ExitRecorder()
    yield recorder
    recorder.watcher.close()


@pytest.fixture
def open_sleeper(spawner: Spawner) -> Iterator[Callable[[bool], Process]]:
    """Starts and opens sleepers, and closes them after the test."""
    processes: list[Process] = []

    def make(keep_descriptor: bool) -> Process:
        processes.append(Process(spawner.sleeper().pid, keep_descriptor=keep_descriptor))
        return processes[-1]

    yield make
    for process in processes:
        process.close()


OpenSleeper = Callable[[bool], Process]


def _wait_for_earlier_exits(recorder: ExitRecorder, open_sleeper: OpenSleeper) -> None:
    """Wait until the watcher has reported two more ends of each kind, and so all earlier ones."""
    for _ in range(2):
        for keep_descriptor in (True, False):
            marker = open_sleeper(keep_descriptor)
            recorder.watcher.watch(marker)
            marker.send_signal(9)
            assert recorder.next_exit() is marker
            recorder.watcher.unwatch(marker)


@BOTH
def test_an_exit_is_reported(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool
) -> None:
    """The end of a process is reported on the watcher's thread, before it is reaped."""
    recorder.watcher.start()
    process = open_sleeper(keep_descriptor)
    recorder.watcher.watch(process)
    process.send_signal(9)
    assert recorder.next_exit() is process
    assert recorder.threads == {"monitor-watcher"}


@BOTH
def test_an_exit_is_reported_once(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool
) -> None:
    """An end is reported once, though the process is still watched."""
    recorder.watcher.start()
    process = open_sleeper(keep_descriptor)
    recorder.watcher.watch(process)
    process.send_signal(9)
    assert recorder.next_exit() is process
    _wait_for_earlier_exits(recorder, open_sleeper)
    assert recorder.queue.empty()


@BOTH
def test_processes_that_were_added_before_the_start_are_watched(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool
) -> None:
    """Processes may be added before the start, and may end before it."""
    early, late = open_sleeper(keep_descriptor), open_sleeper(keep_descriptor)
    recorder.watcher.watch(early)
    recorder.watcher.watch(late)
    early.send_signal(9)
    eventually(early.ended)
    recorder.watcher.start()
    assert recorder.next_exit() is early
    late.send_signal(9)
    assert recorder.next_exit() is late


@BOTH
def test_an_exit_before_watching_is_reported(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool
) -> None:
    """An end before the process was added is not missed."""
    recorder.watcher.start()
    process = open_sleeper(keep_descriptor)
    process.send_signal(9)
    eventually(process.ended)
    recorder.watcher.watch(process)
    assert recorder.next_exit() is process


@BOTH
def test_a_running_process_is_not_reported(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool
) -> None:
    """A process that runs or is stopped (SIGSTOP) is not reported."""
    recorder.watcher.start()
    running, stopped = open_sleeper(keep_descriptor), open_sleeper(keep_descriptor)
    stopped.send_signal(19)
    recorder.watcher.watch(running)
    recorder.watcher.watch(stopped)
    _wait_for_earlier_exits(recorder, open_sleeper)
    assert recorder.queue.empty()


@BOTH
@pytest.mark.parametrize("started", [True, False], ids=["started", "not started"])
def test_the_exit_of_an_unwatched_process_is_not_reported(
    recorder: ExitRecorder, open_sleeper: OpenSleeper, keep_descriptor: bool, started: bool
) -> None:
    """Its end is not reported. `unwatch` may be called twice."""
    if started:
        recorder.watcher.start()
    process = open_sleeper(keep_descriptor)
    recorder.watcher.watch(process)
    recorder.watcher.unwatch(process)
    recorder.watcher.unwatch(process)
    if not started:
        recorder.watcher.start()
    process.send_signal(9)
    eventually(process.ended)
    _wait_for_earlier_exits(recorder, open_sleeper)
    assert recorder.queue.empty()


def test_a_reused_pidfd_number_is_watched_again(
    recorder: ExitRecorder, open_sleeper: OpenSleeper
) -> None:
    """Each end is reported with the process that has the number now."""
    recorder.watcher.start()
    numbers = []
    for pid in [open_sleeper(False).pid for _ in range(5)]:
        with Process(pid) as process:
            numbers.append(process.pidfd)
            recorder.watcher.watch(process)
            process.send_signal(9)
            assert recorder.next_exit() is process
            recorder.watcher.unwatch(process)
    assert len(set(numbers)) < 5


def test_one_thread_watches_many_processes(
    recorder: ExitRecorder, open_sleeper: OpenSleeper
) -> None:
    """No end is missed or reported twice."""
    before = threading.enumerate()
    recorder.watcher.start()
    processes = [open_sleeper(number % 2 == 0) for number in range(40)]
    for process in processes:
        recorder.watcher.watch(process)
    assert started_since(before) == ["monitor-watcher"]
    for process in processes:
        process.send_signal(9)
    ended = [recorder.next_exit() for _ in processes]
    assert {process.pid for process in ended} == {process.pid for process in processes}
    assert recorder.queue.empty()


def test_watched_pidfds_are_counted(recorder: ExitRecorder, open_sleeper: OpenSleeper) -> None:
    """Processes without a pidfd are not counted."""
    watcher = recorder.watcher
    one, other, polled = open_sleeper(True), open_sleeper(True), open_sleeper(False)
    assert watcher.pidfd_count() == 0
    for process in (one, other, polled):
        watcher.watch(process)
    assert watcher.pidfd_count() == 2
    watcher.start()
    watcher.unwatch(one)
    watcher.unwatch(polled)
    assert watcher.pidfd_count() == 1


def test_closing_leaves_neither_threads_nor_descriptors(open_sleeper: OpenSleeper) -> None:
    """After `close`, which may be called twice, the thread and its descriptors are gone."""
    processes = [open_sleeper(True), open_sleeper(False)]
    before, threads = descriptors(), threading.enumerate()
    recorder = ExitRecorder()
    for process in processes:
        recorder.watcher.watch(process)
    recorder.watcher.start()
    assert started_since(threads) == ["monitor-watcher"]
    recorder.watcher.close()
    recorder.watcher.close()
    assert started_since(threads) == []
    eventually(lambda: not descriptors() - before)
    for process in processes:
        process.send_signal(9)
        eventually(process.ended)
    assert recorder.queue.empty()
    for process in processes:
        recorder.watcher.unwatch(process)


def test_a_watcher_that_was_never_started_can_be_closed(open_sleeper: OpenSleeper) -> None:
    """It has no thread to end."""
    watcher = ExitWatcher(lambda process: None)
    watcher.watch(open_sleeper(True))
    watcher.close()


def test_threads_may_watch_and_unwatch_at_the_same_time(
    recorder: ExitRecorder, open_sleeper: OpenSleeper
) -> None:
    """No end is lost, and no process stays watched."""
    recorder.watcher.start()
    last = open_sleeper(True)
    processes = [[open_sleeper(True), open_sleeper(False)] for _ in range(4)]

    def come_and_go(mine: list[Process]) -> None:
        for _ in range(200):
            for process in mine:
                recorder.watcher.watch(process)
            for process in mine:
                recorder.watcher.unwatch(process)

    threads = [threading.Thread(target=come_and_go, args=(mine,)) for mine in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    recorder.watcher.watch(last)
    last.send_signal(9)
    assert recorder.next_exit() is last
    assert recorder.queue.empty()
    assert recorder.watcher.pidfd_count() == 1


ERRORS = pytest.mark.parametrize(
    "error", [psutil.AccessDenied(1), OSError("no more descriptors"), ValueError("unexpected")]
)


@BOTH
@ERRORS
def test_an_error_in_on_exit_hides_no_exit(
    open_sleeper: OpenSleeper,
    keep_descriptor: bool,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error is logged once; other exits are reported, and that exit is reported again."""
    first, second = open_sleeper(keep_descriptor), open_sleeper(keep_descriptor)
    reported: queue.Queue[Process] = queue.Queue()
    tries: list[Process] = []
    may_succeed = threading.Event()

    def on_exit(process: Process) -> None:
        if process is first:
            tries.append(process)
            if not may_succeed.is_set():
                raise error
        reported.put(process)

    watcher = ExitWatcher(on_exit)
    watcher.start()
    try:
        for process in (first, second):
            watcher.watch(process)
        first.send_signal(signal.SIGKILL)
        eventually(lambda: len(tries) > 2)
        second.send_signal(signal.SIGKILL)
        assert reported.get(timeout=60) is second
        may_succeed.set()
        assert reported.get(timeout=60) is first
        assert logged(caplog) == [f"the exit of process {first.pid} could not be handled"]
        watcher.unwatch(first)
    finally:
        watcher.close()
    assert reported.empty()


@BOTH
@ERRORS
def test_an_error_in_a_check_hides_no_exit(
    recorder: ExitRecorder,
    open_sleeper: OpenSleeper,
    keep_descriptor: bool,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is unknown whether the process has ended, so it is checked again until that is known."""
    first, second = open_sleeper(keep_descriptor), open_sleeper(keep_descriptor)
    ended, tries = first.ended, []
    may_succeed = threading.Event()

    def fail_or_check() -> bool:
        tries.append(first)
        if not may_succeed.is_set():
            raise error
        return ended()

    monkeypatch.setattr(first, "ended", fail_or_check)
    recorder.watcher.start()
    for process in (first, second):
        recorder.watcher.watch(process)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: len(tries) > 2)
    second.send_signal(signal.SIGKILL)
    assert recorder.next_exit() is second
    may_succeed.set()
    assert recorder.next_exit() is first
    assert logged(caplog) == [f"the exit of process {first.pid} could not be handled"]


def test_a_process_that_is_no_longer_watched_is_not_checked_again(
    open_sleeper: OpenSleeper, caplog: pytest.LogCaptureFixture
) -> None:
    """An error after `unwatch`, which the handler of the exit calls, is logged and final."""
    process, marker = open_sleeper(True), open_sleeper(False)
    reported: queue.Queue[Process] = queue.Queue()

    def unwatch_and_fail(process: Process) -> None:
        watcher.unwatch(process)
        reported.put(process)
        raise ValueError("unexpected")

    watcher = ExitWatcher(unwatch_and_fail)
    watcher.start()
    try:
        for each in (process, marker):
            watcher.watch(each)
            each.send_signal(signal.SIGKILL)
            assert reported.get(timeout=60) is each
        expected = [
            f"the exit of process {each.pid} could not be handled" for each in (process, marker)
        ]
        eventually(lambda: logged(caplog) == expected)
        assert not watcher._failing
        assert not watcher._polled
    finally:
        watcher.close()
    assert reported.empty()


def test_an_error_in_the_wait_is_survived(
    recorder: ExitRecorder,
    open_sleeper: OpenSleeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error is logged, and the thread waits again."""
    monkeypatch.setattr(exit_watcher, "_RETRY_SECONDS", 0.01)
    wait, errors = ExitWatcher._wait, [OSError("unexpected")]

    def fail_once(self: ExitWatcher, epoll: select.epoll, wakeup: int) -> list[Process]:
        if errors:
            raise errors.pop()
        return wait(self, epoll, wakeup)

    monkeypatch.setattr(ExitWatcher, "_wait", fail_once)
    recorder.watcher.start()
    process = open_sleeper(True)
    recorder.watcher.watch(process)
    process.send_signal(signal.SIGKILL)
    assert recorder.next_exit() is process
    assert logged(caplog) == ["the wait for exits failed; waiting again"]


def test_a_reused_pidfd_number_reports_no_false_exit(
    recorder: ExitRecorder,
    open_sleeper: OpenSleeper,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process's pidfd may get the number after `epoll` has reported it."""
    make_epoll = select.epoll
    pid = spawner.sleeper().pid
    first = open_sleeper(True)
    later: list[Process] = []

    def reuse(ready: list[tuple[int, int]]) -> None:
        """Reuse the number between the kernel's answer and its handling, as a thread may."""
        if not later and first.pidfd in dict(ready):
            number = first.pidfd
            recorder.watcher.unwatch(first)
            first.close()
            later.append(Process(pid))
            assert later[0].pidfd == number
            recorder.watcher.watch(later[0])

    class ReusingEpoll:
        """A real epoll object; `reuse` is called after each answer."""

        def __init__(self) -> None:
            self._epoll = make_epoll()

        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            ready = self._epoll.poll(timeout)
            reuse(ready)
            return ready

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    monkeypatch.setattr(select, "epoll", ReusingEpoll)
    recorder.watcher.watch(first)
    recorder.watcher.start()
    first.send_signal(9)
    eventually(lambda: later)
    _wait_for_earlier_exits(recorder, open_sleeper)  # fails if the wrong process was reported
    with later[0] as process:
        process.send_signal(9)
        assert recorder.next_exit() is process
        recorder.watcher.unwatch(process)


def test_exits_are_polled_where_epoll_accepts_no_pidfd(
    recorder: ExitRecorder, open_sleeper: OpenSleeper
) -> None:
    """The thread may wait without a timeout when a process is added. Others go on as before."""
    accepted, refused, unwatched = open_sleeper(True), open_sleeper(True), open_sleeper(True)
    recorder.watcher.start()
    recorder.watcher.watch(accepted)

    def watch_and_unwatch() -> None:
        refuse({"epoll_ctl": errno.ENOSPC})  # to this thread alone
        recorder.watcher.watch(refused)
        recorder.watcher.watch(unwatched)
        recorder.watcher.unwatch(unwatched)

    thread = threading.Thread(target=watch_and_unwatch)
    thread.start()
    thread.join()
    for process in (accepted, refused, unwatched):
        process.send_signal(signal.SIGKILL)
    assert {recorder.next_exit(), recorder.next_exit()} == {accepted, refused}
    _wait_for_earlier_exits(recorder, open_sleeper)


@pytest.mark.parametrize(
    "refuse",
    [
        partial(refuse_descriptors, target=os, name="pipe"),
        partial(refuse_descriptors, target=select, name="epoll"),
        partial(refuse_thread, name="monitor-watcher"),
    ],
    ids=["pipe", "epoll", "thread"],
)
def test_watcher_starts_again_after_a_start_that_failed(
    refuse: Callable[[pytest.MonkeyPatch], None],
    recorder: ExitRecorder,
    open_sleeper: OpenSleeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `close` nothing is left of the failed start, and processes are still watched."""
    process = open_sleeper(True)
    recorder.watcher.watch(process)
    before = descriptors()
    with monkeypatch.context() as patch:
        refuse(patch)
        with pytest.raises((OSError, RuntimeError), match=r"open files|new thread"):
            recorder.watcher.start()
    recorder.watcher.close()
    assert not descriptors() - before
    recorder.watcher.start()
    os.kill(process.pid, signal.SIGKILL)
    assert recorder.next_exit() is process
