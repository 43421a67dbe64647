from __future__ import annotations

import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin.processes.exit_watcher import ExitWatcher
from monitor_plugin.processes.process import Process

from ..support import Spawner, descriptors, eventually, started_since

BOTH = pytest.mark.parametrize("keep_descriptor", [True, False], ids=["pidfd", "polled"])


class Noticed:
    """A watcher, the processes whose ends it reported, and the threads on which it did."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Process] = queue.Queue()
        self.threads: set[str] = set()
        self.watcher = ExitWatcher(self._notice)

    def _notice(self, process: Process) -> None:
        self.threads.add(threading.current_thread().name)
        self.queue.put(process)

    def next(self) -> Process:
        return self.queue.get(timeout=60)


@pytest.fixture
def noticed() -> Iterator[Noticed]:
    """A watcher that is not started yet; it is closed after the test."""
    noticed = Noticed()
    yield noticed
    noticed.watcher.close()


@pytest.fixture
def opened(spawner: Spawner) -> Iterator[Callable[[bool], Process]]:
    """Starts and opens sleepers, and closes them after the test."""
    processes: list[Process] = []

    def make(keep_descriptor: bool) -> Process:
        processes.append(Process(spawner.sleeper().pid, keep_descriptor=keep_descriptor))
        return processes[-1]

    yield make
    for process in processes:
        process.close()


Opened = Callable[[bool], Process]


def _settle(noticed: Noticed, opened: Opened) -> None:
    """Wait until the watcher has reported two more ends of each kind, and so all earlier ones."""
    for _ in range(2):
        for keep_descriptor in (True, False):
            marker = opened(keep_descriptor)
            noticed.watcher.watch(marker)
            marker.send_signal(9)
            assert noticed.next() is marker
            noticed.watcher.unwatch(marker)


@BOTH
def test_an_end_is_noticed(noticed: Noticed, opened: Opened, keep_descriptor: bool) -> None:
    """The end of a process is reported on the watcher's thread, before it is reaped."""
    noticed.watcher.start()
    process = opened(keep_descriptor)
    noticed.watcher.watch(process)
    process.send_signal(9)
    assert noticed.next() is process
    assert noticed.threads == {"monitor-watcher"}


@BOTH
def test_an_end_is_noticed_once(noticed: Noticed, opened: Opened, keep_descriptor: bool) -> None:
    """An end is reported once, though the process is still watched."""
    noticed.watcher.start()
    process = opened(keep_descriptor)
    noticed.watcher.watch(process)
    process.send_signal(9)
    assert noticed.next() is process
    _settle(noticed, opened)
    assert noticed.queue.empty()


@BOTH
def test_processes_that_were_added_before_the_start_are_watched(
    noticed: Noticed, opened: Opened, keep_descriptor: bool
) -> None:
    """Processes may be added before the start, and may end before it."""
    early, late = opened(keep_descriptor), opened(keep_descriptor)
    noticed.watcher.watch(early)
    noticed.watcher.watch(late)
    early.send_signal(9)
    eventually(early.ended)
    noticed.watcher.start()
    assert noticed.next() is early
    late.send_signal(9)
    assert noticed.next() is late


@BOTH
def test_a_process_that_has_ended_already_is_noticed(
    noticed: Noticed, opened: Opened, keep_descriptor: bool
) -> None:
    """An end before the process was added is not missed."""
    noticed.watcher.start()
    process = opened(keep_descriptor)
    process.send_signal(9)
    eventually(process.ended)
    noticed.watcher.watch(process)
    assert noticed.next() is process


@BOTH
def test_a_process_that_runs_is_left_alone(
    noticed: Noticed, opened: Opened, keep_descriptor: bool
) -> None:
    """A process that runs or is stopped (SIGSTOP) is not reported."""
    noticed.watcher.start()
    running, stopped = opened(keep_descriptor), opened(keep_descriptor)
    stopped.send_signal(19)
    noticed.watcher.watch(running)
    noticed.watcher.watch(stopped)
    _settle(noticed, opened)
    assert noticed.queue.empty()


@BOTH
@pytest.mark.parametrize("started", [True, False], ids=["started", "not started"])
def test_a_process_that_is_unwatched_is_not_noticed(
    noticed: Noticed, opened: Opened, keep_descriptor: bool, started: bool
) -> None:
    """Its end is not reported. `unwatch` may be called twice."""
    if started:
        noticed.watcher.start()
    process = opened(keep_descriptor)
    noticed.watcher.watch(process)
    noticed.watcher.unwatch(process)
    noticed.watcher.unwatch(process)
    if not started:
        noticed.watcher.start()
    process.send_signal(9)
    eventually(process.ended)
    _settle(noticed, opened)
    assert noticed.queue.empty()


def test_a_pidfd_number_that_is_used_again_is_watched_again(
    noticed: Noticed, opened: Opened
) -> None:
    """Each end is reported with the process that has the number now."""
    noticed.watcher.start()
    numbers = []
    for pid in [opened(False).pid for _ in range(5)]:
        with Process(pid) as process:
            numbers.append(process.pidfd)
            noticed.watcher.watch(process)
            process.send_signal(9)
            assert noticed.next() is process
            noticed.watcher.unwatch(process)
    assert len(set(numbers)) < 5


def test_one_thread_watches_many_processes(noticed: Noticed, opened: Opened) -> None:
    """No end is missed or reported twice."""
    before = threading.enumerate()
    noticed.watcher.start()
    processes = [opened(number % 2 == 0) for number in range(40)]
    for process in processes:
        noticed.watcher.watch(process)
    assert started_since(before) == ["monitor-watcher"]
    for process in processes:
        process.send_signal(9)
    ended = [noticed.next() for _ in processes]
    assert {process.pid for process in ended} == {process.pid for process in processes}
    assert noticed.queue.empty()


def test_watched_pidfds_are_counted(noticed: Noticed, opened: Opened) -> None:
    """Processes without a pidfd are not counted."""
    watcher = noticed.watcher
    one, other, polled = opened(True), opened(True), opened(False)
    assert watcher.pidfd_count() == 0
    for process in (one, other, polled):
        watcher.watch(process)
    assert watcher.pidfd_count() == 2
    watcher.start()
    watcher.unwatch(one)
    watcher.unwatch(polled)
    assert watcher.pidfd_count() == 1


def test_closing_leaves_neither_threads_nor_descriptors(opened: Opened) -> None:
    """After `close`, which may be called twice, the thread and its descriptors are gone."""
    processes = [opened(True), opened(False)]
    before, threads = descriptors(), threading.enumerate()
    noticed = Noticed()
    for process in processes:
        noticed.watcher.watch(process)
    noticed.watcher.start()
    assert started_since(threads) == ["monitor-watcher"]
    noticed.watcher.close()
    noticed.watcher.close()
    assert started_since(threads) == []
    eventually(lambda: not descriptors() - before)
    for process in processes:
        process.send_signal(9)
        eventually(process.ended)
    assert noticed.queue.empty()
    for process in processes:
        noticed.watcher.unwatch(process)


def test_a_watcher_that_was_never_started_can_be_closed(opened: Opened) -> None:
    """It has no thread to end."""
    watcher = ExitWatcher(lambda process: None)
    watcher.watch(opened(True))
    watcher.close()


def test_threads_may_watch_and_unwatch_at_the_same_time(noticed: Noticed, opened: Opened) -> None:
    """No end is lost, and no process stays watched."""
    noticed.watcher.start()
    last = opened(True)
    processes = [[opened(True), opened(False)] for _ in range(4)]

    def come_and_go(mine: list[Process]) -> None:
        for _ in range(200):
            for process in mine:
                noticed.watcher.watch(process)
            for process in mine:
                noticed.watcher.unwatch(process)

    threads = [threading.Thread(target=come_and_go, args=(mine,)) for mine in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    noticed.watcher.watch(last)
    last.send_signal(9)
    assert noticed.next() is last
    assert noticed.queue.empty()
    assert noticed.watcher.pidfd_count() == 1


@BOTH
def test_an_error_with_one_end_hides_no_other(
    opened: Opened, keep_descriptor: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, and the next end is reported."""
    first, second = opened(keep_descriptor), opened(keep_descriptor)
    noticed: queue.Queue[Process] = queue.Queue()

    def notice(process: Process) -> None:
        if process is first:
            raise OSError("no more descriptors")
        noticed.put(process)

    watcher = ExitWatcher(notice)
    watcher.start()
    try:
        for process in (first, second):
            watcher.watch(process)
        first.send_signal(signal.SIGKILL)
        eventually(lambda: f"the end of process {first.pid}" in caplog.text)
        second.send_signal(signal.SIGKILL)
        assert noticed.get(timeout=60) is second
    finally:
        watcher.close()


def test_a_pidfd_number_that_is_used_again_reports_no_false_end(
    noticed: Noticed, opened: Opened, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's pidfd may get the number after `epoll` has reported it."""
    make_epoll = select.epoll
    pid = spawner.sleeper().pid
    first = opened(True)
    later: list[Process] = []

    def reuse(ready: list[tuple[int, int]]) -> None:
        """Reuse the number between the kernel's answer and its handling, as a thread may."""
        if not later and first.pidfd in dict(ready):
            number = first.pidfd
            noticed.watcher.unwatch(first)
            first.close()
            later.append(Process(pid))
            assert later[0].pidfd == number
            noticed.watcher.watch(later[0])

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
    noticed.watcher.watch(first)
    noticed.watcher.start()
    first.send_signal(9)
    eventually(lambda: later)
    _settle(noticed, opened)  # fails if the wrong process was reported
    with later[0] as process:
        process.send_signal(9)
        assert noticed.next() is process
        noticed.watcher.unwatch(process)
