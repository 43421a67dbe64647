"""Commands to circus, with answers that a real circus gives too rarely."""

from __future__ import annotations

from typing import Any

import pytest

from monitor_plugin.hosts.circus.client import CircusError, Watchers, WatcherState
from monitor_plugin.hosts.discovery import Program

KEYS = ("cmd", "args", "numprocesses", "respawn")
STREAM_KEYS = ("stdout_stream_conf", "stderr_stream_conf")
BUSY = {"status": "error", "reason": "arbiter is already running watcher_stop command", "errno": 5}
NOT_FOUND = {"status": "error", "reason": "program x not found", "errno": 3}
OK = {"status": "ok"}
ACTIVE = {"status": "active"}
STOPPING = {"status": "stopping"}
STOPPED = {"status": "stopped"}


class Circus:
    """Answers each command from its list, whose last answer is repeated; None means no answer."""

    def __init__(self, **answers: list[dict[str, Any] | None]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, seconds: float, command: str, **properties: Any) -> dict[str, Any]:
        self.asked.append((command, properties))
        left = self.answers[command]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer is None:
            raise CircusError("no answer")
        return answer


def test_watcher_stop_waits_until_circus_has_stopped_it() -> None:
    """The stop is sent once, with `match` set so that the name is not a pattern."""
    circus = Circus(stop=[OK], status=[STOPPING, STOPPING, STOPPED])
    assert Watchers(circus).stop("x", 30)
    assert [each for each in circus.asked if each[0] == "stop"] == [
        ("stop", {"name": "x", "match": "simple"})
    ]


def test_watcher_stop_is_repeated_while_circus_is_busy() -> None:
    """Before circus accepts the stop, a stopped watcher may be restarting."""
    circus = Circus(stop=[BUSY, BUSY, OK], status=[STOPPED])
    assert Watchers(circus).stop("x", 30)
    assert [each[0] for each in circus.asked].count("stop") == 3


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ({"stop": [OK], "status": [STOPPING]}, False),
        ({"stop": [BUSY], "status": [STOPPING]}, False),
        ({"stop": [NOT_FOUND], "status": [OK]}, True),
        ({"stop": [OK], "status": [STOPPING, NOT_FOUND]}, True),
        ({"stop": [OK], "status": [NOT_FOUND]}, True),
        ({"stop": [OK], "status": [ACTIVE, None]}, False),
        ({"stop": [OK], "status": [ACTIVE, None, STOPPED]}, True),
        ({"stop": [None, OK], "status": [None, ACTIVE, ACTIVE, STOPPED]}, True),
        ({"stop": [BUSY], "status": [ACTIVE]}, "arbiter is already running watcher_stop command"),
        ({"stop": [OK], "status": [ACTIVE]}, "circus took the stop, and yet the watcher is active"),
        ({"stop": [None], "status": [None]}, "no answer"),
        ({"stop": [None], "status": [ACTIVE]}, "no answer"),
        ({"stop": [{"status": "error", "reason": "odd", "errno": 5}], "status": [OK]}, "odd"),
    ],
)
def test_watcher_stop_ends_within_its_timeout(
    answers: dict[str, list[dict[str, Any] | None]], outcome: bool | str
) -> None:
    """The result says that circus is stopping the watcher, that it is stopped, or why it is not."""
    watchers = Watchers(Circus(**answers))
    # Only these stops wait for the whole time; the others need some answers, however slow.
    seconds = 0.3 if outcome in (False, "no answer", BUSY["reason"]) else 30
    if isinstance(outcome, str):
        with pytest.raises(CircusError, match=outcome):
            watchers.stop("x", seconds)
    else:
        assert watchers.stop("x", seconds) is outcome


def test_closing_ends_the_wait_for_a_watcher() -> None:
    """A monitor that closes does not wait for circus."""
    watchers = Watchers(Circus(stop=[OK], status=[STOPPING]))
    watchers.closing.set()
    assert not watchers.stop("x", 1000)


def test_watcher_start_waits_until_a_stop_has_ended() -> None:
    """The start is sent once, with `match` set so that the name is not a pattern."""
    circus = Circus(start=[OK], status=[STOPPING, STOPPING, STOPPED, ACTIVE])
    Watchers(circus).start("x", 30)
    assert [each for each in circus.asked if each[0] == "start"] == [
        ("start", {"name": "x", "match": "simple"})
    ]


def test_watcher_that_runs_is_not_started() -> None:
    """A watcher is not started either if circus or another client is starting it."""
    for status in (ACTIVE, {"status": "starting"}):
        Watchers(Circus(status=[status])).start("x", 30)
    circus = Circus(start=[BUSY, None, BUSY], status=[STOPPED, STOPPED, STOPPED, ACTIVE])
    Watchers(circus).start("x", 30)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"status": [NOT_FOUND]}, "program x not found"),
        ({"status": [STOPPING]}, "circus is still stopping it"),
        ({"status": [None]}, "no answer"),
        ({"status": [STOPPED], "start": [BUSY]}, "arbiter is already running"),
        ({"status": [STOPPED], "start": [NOT_FOUND]}, "program x not found"),
        ({"status": [STOPPED, STOPPING, STOPPED], "start": [OK]}, "could not start a process"),
    ],
)
def test_watcher_start_fails_with_the_reason(
    answers: dict[str, list[dict[str, Any] | None]], error: str
) -> None:
    """The reason is that of the last answer, when the time is over or circus has given up."""
    # Only these starts fail before the time is over, after some answers, however slow.
    seconds = 30 if error in ("program x not found", "could not start a process") else 0.3
    with pytest.raises(CircusError, match=error):
        Watchers(Circus(**answers)).start("x", seconds)


def test_closing_ends_the_wait_for_a_start() -> None:
    """A monitor that closes does not wait for circus."""
    watchers = Watchers(Circus(status=[STOPPING]))
    watchers.closing.set()
    with pytest.raises(CircusError, match="still stopping"):
        watchers.start("x", 1000)


@pytest.mark.parametrize(
    ("conf", "logs"),
    [
        ({"filename": "/x.log", "max_bytes": "9"}, {"stderr": "/x.log"}),
        ({}, {}),
        (None, {}),
        ({"filename": None}, {}),
        ({"filename": "/dev/stderr"}, {}),
    ],
)
def test_logs_are_the_files_of_the_streams(
    conf: dict[str, object] | None, logs: dict[str, str]
) -> None:
    """Nothing else is asked for than what is needed, as other options may have secrets."""
    options = {"cmd": "x", "args": "", "stdout_stream_conf": {}, "stderr_stream_conf": conf}
    circus = Circus(
        status=[{"statuses": {"a": "active"}}], list=[{"pids": [4]}], get=[{"options": options}]
    )
    (state,) = Watchers(circus).states()
    assert state.logs == logs
    assert circus.asked[2] == ("get", {"name": "a", "keys": KEYS + STREAM_KEYS})


def test_streams_that_circus_cannot_encode_hide_nothing_else() -> None:
    """Such streams are objects of a program that embeds circus."""
    error = {"status": "error", "reason": "X is not JSON serializable", "errno": 5}
    circus = Circus(
        status=[{"statuses": {"a": "active"}}],
        list=[{"pids": [4]}],
        get=[error, {"options": {"cmd": "sleep 9", "args": None}}],
    )
    (state,) = Watchers(circus).states()
    assert (state.programs[0].command, state.logs) == (["sleep", "9"], {})
    assert circus.asked[3] == ("get", {"name": "a", "keys": KEYS})


def test_states_lists_the_processes_of_all_watchers() -> None:
    """Names differ not only by case. A watcher that was removed, or is stopping, has no process."""
    statuses = {"gone": "active", "A": "active", "a": "active", "b": "stopping", "c": "stopped"}
    options = {"cmd": "sleep 9", "args": None, "numprocesses": 2, "respawn": True}
    circus = Circus(
        status=[{"statuses": statuses}],
        list=[NOT_FOUND, {"pids": [4, 5]}, {"pids": []}],
        get=[NOT_FOUND, NOT_FOUND, {"options": options}],
    )
    command = ["sleep", "9"]
    states = Watchers(circus).states()
    assert states == [
        WatcherState("gone", "active", [Program("gone", "gone", 0, [])], None, None, {}),
        WatcherState(
            *("a", "active", [Program("a", "a", 4, command), Program("a", "a", 5, command)]),
            *(2, True, {}),
        ),
        WatcherState("b", "stopping", [Program("b", "b", 0, command)], 2, True, {}),
        WatcherState("c", "stopped", [Program("c", "c", 0, command)], 2, True, {}),
    ]
    assert [each.runs for each in states] == [False, True, False, False]
    names = [name for name, _ in circus.asked]
    assert names == ["status", "list", "get", "get", "list", "get", "get", "list", "get"]


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        (("serve --addr :1", None), [["serve", "--addr", ":1"]] * 2),
        (("serve", "--addr :1"), [["serve", "--addr", ":1"]] * 2),
        (("serve", ["--addr", "a b"]), [["serve", "--addr", "a b"]] * 2),
        (
            ("serve $(circus.wid)", "((CIRCUS.WID))"),
            [["serve", "1", "1"], ["serve", "$(circus.wid)", "((CIRCUS.WID))"]],
        ),
        (("serve $(circus.sockets.web)", None), [["serve", "$(circus.sockets.web)"]] * 2),
        (("serve 'it", None), [[], []]),
        (None, [[], []]),
    ],
)
def test_processes_have_the_command_lines_of_the_configuration(
    options: tuple[str, object] | None, commands: list[list[str]]
) -> None:
    """The number of a process is put in, if circus knows it; other variables stay."""
    named = dict(zip(("cmd", "args"), options, strict=True)) if options else None
    circus = Circus(
        status=[{"statuses": {"a": "active"}}],
        list=[{"pids": [4, 5]}],
        get=[{"options": named} if named else NOT_FOUND],
        stats=[{"info": {"4": {"wid": 1}, "5": "No such process (stopped?)"}}],
    )
    (state,) = Watchers(circus).states()
    assert [each.command for each in state.programs] == commands
