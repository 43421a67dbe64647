from __future__ import annotations

import signal

import pytest

from monitor_plugin import BackendExit, HostExit
from monitor_plugin.domain.exits import (
    complete_by_host,
    describe_exit,
    describe_exit_and_age,
    make_exit,
)


@pytest.mark.parametrize(
    ("exit_code", "stopped", "oom_certain", "expected"),
    [
        (0, False, None, BackendExit("exited", 0, None, False, 5.0)),
        (3, False, None, BackendExit("exited", 3, None, False, 5.0)),
        (3, False, True, BackendExit("exited", 3, None, False, 5.0)),
        (-15, False, None, BackendExit("killed", None, 15, None, 5.0)),
        (-15, False, True, BackendExit("killed", None, 15, None, 5.0)),
        (-9, False, None, BackendExit("killed", None, 9, None, 5.0)),
        (-9, False, True, BackendExit("oom", None, 9, True, 5.0, True)),
        (-9, False, False, BackendExit("oom", None, 9, True, 5.0, False)),
        (-15, False, False, BackendExit("killed", None, 15, None, 5.0)),
        (None, False, None, BackendExit("unknown", None, None, None, 5.0)),
        (None, False, True, BackendExit("unknown", None, None, None, 5.0)),
        (0, True, None, BackendExit("shutdown", 0, None, None, 5.0)),
        (-15, True, None, BackendExit("shutdown", None, 15, None, 5.0)),
        (-9, True, True, BackendExit("shutdown", None, 9, None, 5.0)),
        (None, True, None, BackendExit("shutdown", None, None, None, 5.0)),
    ],
)
def test_exit_has_one_cause(
    exit_code: int | None, stopped: bool, oom_certain: bool | None, expected: BackendExit
) -> None:
    """A shutdown explains any exit, an OOM kill a SIGKILL; otherwise the exit code counts."""
    assert make_exit(exit_code, stopped, oom_certain, 5.0) == expected


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (make_exit(-9, False, None, 100.0), "was killed by SIGKILL 4 s ago"),
        (make_exit(-signal.SIGSEGV, False, None, 100.0), "was killed by SIGSEGV 4 s ago"),
        (make_exit(-50, False, None, 100.0), "was killed by signal 50 4 s ago"),
        (make_exit(-9, False, True, 100.0), "was killed by the kernel for want of memory 4 s ago"),
        (
            make_exit(-9, False, False, 100.0),
            "was killed by SIGKILL, probably by the kernel for want of memory 4 s ago",
        ),
        (make_exit(0, False, None, 100.0), "exited with code 0 4 s ago"),
        (make_exit(3, False, None, 100.0), "exited with code 3 4 s ago"),
        (make_exit(-15, True, None, 100.0), "was stopped by a shutdown 4 s ago"),
        (make_exit(None, False, None, 100.0), "ended 4 s ago"),
    ],
)
def test_exit_is_described_in_words(exit: BackendExit, words: str) -> None:
    """The words say how the process ended, with the name of the signal, and how long ago."""
    assert describe_exit_and_age(exit, now=104.2) == words


SIGNALED = HostExit(result="signal", signal=11)
OOM = HostExit(result="oom-kill", signal=9, manager="systemd")


@pytest.mark.parametrize(
    ("exit_code", "stopped", "host_exit", "expected"),
    [
        (None, False, OOM, BackendExit("oom", None, 9, True, 5.0, True)),
        (-9, False, OOM, BackendExit("oom", None, 9, True, 5.0, True)),
        (-15, False, OOM, BackendExit("oom", None, 15, True, 5.0, False)),
        (1, False, OOM, BackendExit("exited", 1, None, False, 5.0)),
        (-9, True, OOM, BackendExit("shutdown", None, 9, None, 5.0)),
        (None, True, SIGNALED, BackendExit("shutdown", None, 11, None, 5.0)),
        (None, False, SIGNALED, BackendExit("killed", None, 11, None, 5.0)),
        (-9, False, SIGNALED, BackendExit("killed", None, 9, None, 5.0)),
        (
            *(None, False, HostExit(result="exit-code", exit_code=3)),
            BackendExit("exited", 3, None, False, 5.0),
        ),
        (
            *(None, False, HostExit(result="start-limit-hit")),
            BackendExit("unknown", None, None, None, 5.0),
        ),
    ],
)
def test_host_completes_an_exit(
    exit_code: int | None, stopped: bool, host_exit: HostExit, expected: BackendExit
) -> None:
    """The monitor's own code counts, and a shutdown stays a shutdown."""
    exit = make_exit(exit_code, stopped, None, 5.0)
    completed = complete_by_host(exit, host_exit)
    assert completed == expected
    assert complete_by_host(completed, host_exit) == expected


def test_host_makes_a_probable_kill_for_want_of_memory_certain() -> None:
    completed = complete_by_host(make_exit(-9, False, False, 5.0), OOM)
    assert completed == make_exit(-9, False, True, 5.0)


@pytest.mark.parametrize(
    ("exit_code", "host_exit", "words"),
    [
        (-9, OOM, "was killed by the kernel for want of memory (systemd: oom-kill)"),
        (-15, OOM, "was killed by SIGTERM (systemd: oom-kill)"),
        (-11, SIGNALED, "was killed by SIGSEGV (its host: signal)"),
    ],
)
def test_words_of_the_host_are_added(exit_code: int, host_exit: HostExit, words: str) -> None:
    exit = complete_by_host(make_exit(exit_code, False, None, 5.0), host_exit)
    assert describe_exit(exit, host_exit) == words


def test_age_of_an_exit_is_never_negative() -> None:
    """If the clock was set back, an exit in the future was 0 s ago."""
    assert describe_exit_and_age(make_exit(1, False, None, 100.0), now=50.0) == (
        "exited with code 1 0 s ago"
    )
