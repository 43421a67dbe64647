"""`top`: its keys, and the program on a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import live
from monitor_plugin.cli.live import Top
from monitor_plugin.cli.queries import fetch_backends, fetch_events
from monitor_plugin.cli.terminal import open_terminal, split_keys
from monitor_plugin.client import Client

from ..support import Spawner, eventually, free_port, is_running, load_sleeper, refuse_thread
from ..terminals import Terminal


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("mq", ["m", "q"]),
        ("\x1b[A\x1bOBx", ["up", "down", "x"]),
        ("\x1b", ["escape"]),
        ("\x1b[1;5Cq\x1b[1~\x1b[F", ["q", "home", "end"]),
        ("\x1b[200", []),
    ],
)
def test_input_is_split_into_keys(text: str, keys: list[str]) -> None:
    """Arrow keys have two sequences; unknown sequences are left out."""
    assert split_keys(text) == keys


def test_terminal_is_restored() -> None:
    """Modes and handlers are restored after an error; keys, signals and `wake` end a wait."""
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), open_terminal(terminal) as opened:  # noqa: PT012
        assert termios.tcgetattr(terminal) != before
        assert opened.wait(0.01) == []
        os.write(controller, b"c\x1b[B")
        assert opened.wait(60) == ["c", "down"]
        threading.Timer(0.05, opened.wake).start()
        assert opened.wait(60) == []
        for _ in range(100_000):  # more than the pipe takes
            opened.wake()
        assert opened.ended_by is None
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(lambda: opened.wait(0.01) == [] and opened.ended_by == signal.SIGTERM)
        raise RuntimeError
    assert termios.tcgetattr(terminal) == before
    assert signal.getsignal(signal.SIGTERM) is handler
    os.close(controller)
    os.close(terminal)


@pytest.fixture
def load(monitor: Monitor, spawner: Spawner) -> Callable[[str], subprocess.Popen[str]]:
    """Registers a process that sleeps."""
    return partial(load_sleeper, monitor, spawner)


Load = Callable[[str], "subprocess.Popen[str]"]


MakeTop = Callable[..., Top]


@pytest.fixture
def make_top() -> Iterator[MakeTop]:
    """Makes a `Top` that follows a monitor, or another URL, until the test ends."""
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def end() -> None:
        if ended.is_set() and threading.current_thread() in threads:
            raise InterruptedError  # the next server on that port must get no requests

    def follow(top: Top) -> None:
        with contextlib.suppress(InterruptedError):
            top.follow()

    def make(monitor: Monitor, url: str | None = None) -> Top:
        answer = fetch_backends(Client(monitor.url))[0]
        top = Top(Client(url or monitor.url), answer, "name", 0.2, end)
        threads.append(threading.Thread(target=follow, args=(top,)))
        threads[-1].start()
        return top

    yield make
    ended.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_top_goes_on_after_an_unexpected_error(
    monitor: Monitor, make_top: MakeTop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen shows the error until the monitor answers again."""
    fails = threading.Event()
    fails.set()

    def fail_or_fetch(*arguments: Any, **options: Any) -> Any:
        if fails.is_set():
            raise ValueError("unexpected")
        return fetch_events(*arguments, **options)

    monkeypatch.setattr(live, "fetch_events", fail_or_fetch)
    top = make_top(monitor)
    eventually(lambda: top.screen().lost == "unexpected error: ValueError('unexpected')")
    fails.clear()
    eventually(lambda: top.screen().lost is None)


def selected(top: Top) -> str:
    screen = top.screen()
    return screen.rows[screen.selected].model


def test_selection_stays_with_its_backend(monitor: Monitor, load: Load, make_top: MakeTop) -> None:
    """Sorting keeps the selection; keys move it within the list; it moves on after an exit."""
    processes = {name: load(name) for name in ("a", "b", "c")}
    top = make_top(monitor)
    assert selected(top) == "a"
    for keys, expected in (("up", "a"), ("down", "b"), ("end", "c"), ("j", "c"), ("k", "b")):
        top.press([keys])
        assert selected(top) == expected
    for key, sort in (("m", "memory"), ("c", "cpu"), ("u", "uptime"), ("n", "name")):
        top.press([key])
        assert top.screen().sort == sort
        assert selected(top) == "b"
    processes["b"].kill()
    eventually(lambda: len(top.screen().rows) == 2)
    assert selected(top) == "a"
    eventually(lambda: any(event.type == "ended" for event in top.screen().events))
    top.press(["q"])
    assert top.quitting


def test_stop_whose_thread_cannot_start_is_reported(
    monitor: Monitor, load: Load, make_top: MakeTop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question ends, and the screen goes on."""
    process, top = load("a"), make_top(monitor)
    eventually(lambda: top.screen().rows)
    top.press(["s"])
    with monkeypatch.context() as patch:
        refuse_thread(patch)
        top.press(["y"])
    assert top.screen().message == "a was not stopped: can't start new thread"
    assert top.screen().question is None
    assert is_running(process.pid)


def test_stop_key_asks_first(monitor: Monitor, load: Load, make_top: MakeTop) -> None:
    """`n` and keys from before the question stop nothing; `y` stops the named model."""
    first, other = load("a"), load("b")
    top = make_top(monitor)
    top.press(["s", "y"])  # pasted, say
    assert top.screen().question == "y yes, f yes and by force, n no: stop a?"
    for key in ("x", "down", "n"):
        top.press([key])
    assert top.screen().question is None
    assert selected(top) == "a"
    top.press(["s"])
    top.press(["y"])
    eventually(lambda: top.screen().message == "Stopped a.")
    assert [is_running(process.pid) for process in (first, other)] == [False, True]
    eventually(lambda: selected(top) == "b")
    top.press(["s"])
    other.kill()
    eventually(lambda: top.screen().message == "It has ended by itself.")
    assert top.screen().question is None
    top.press(["s", "down", "up"])
    assert top.screen().question is None


def test_silent_monitor_is_reported(monitor: Monitor, load: Load, make_top: MakeTop) -> None:
    """Silence is shown before the request times out."""
    load("m")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        top = make_top(monitor, url)
        assert top.screen().lost is None
        eventually(lambda: (top.screen().lost or "").startswith(f"{url} has said nothing for "))
        assert selected(top) == "m"


def test_stop_key_stops_one_of_several_replicas(
    monitor: Monitor, load: Load, make_top: MakeTop
) -> None:
    """The question names the PID of the replica; the other replicas go on."""
    pids = sorted(load("m").pid for _ in range(2))
    top = make_top(monitor)
    top.press(["end"])
    top.press(["s"])
    assert f"stop m (PID {pids[1]})?" in (top.screen().question or "")
    top.press(["f"])
    eventually(lambda: (top.screen().message or "").startswith("Stopped m"))
    assert [is_running(pid) for pid in pids] == [True, False]


@pytest.fixture
def start(spawner: Spawner) -> Iterator[Callable[..., Terminal]]:
    """Starts `top` on a terminal."""
    terminals = []

    def start(url: str, *arguments: str, **options: int) -> Terminal:
        command = (sys.executable, "-m", "monitor_plugin.cli", "top", "--url", url, *arguments)
        # COLUMNS and LINES may be those of another terminal, or of an earlier size.
        environment = {"COLUMNS": "7", "LINES": "7"}
        terminal = Terminal(spawner, *command, env=environment, **options)
        terminals.append(terminal)
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


def test_top_works_on_a_terminal(
    monitor: Monitor, spawner: Spawner, start: Callable[..., Terminal]
) -> None:
    """Keys sort and stop real backends, at any size."""
    for model, mebibytes in (("small [b]", "1"), ("large", "64")):
        backend = spawner.backend("--weights-mib", mebibytes)
        threading.Thread(target=backend.process.wait, daemon=True).start()
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
    top = start(monitor.url, "--interval", "0.5")
    assert len(top.wait_for("ready")) == 24
    # The screen may show only a part of what is being printed.
    eventually(lambda: [line.split()[:1] for line in top.screen[2:4]] == [["large"], ["small"]])
    eventually(lambda: "65.0 MiB" in top.screen[2])
    eventually(lambda: top.screen[-1].startswith("q quit"))
    top.press("n")
    top.wait_for("by name")
    top.resize(40, 10)
    top.wait_for("sort by memory …")
    assert len(top.screen) == 10
    eventually(lambda: top.screen[3].startswith("small [b]"))
    top.resize(80, 24)
    top.press("\x1b[Bs")
    top.wait_for("n no: stop small [b]?")
    top.press("y")
    top.wait_for("Stopped small [b].")
    eventually(lambda: not any(line.startswith("small") for line in top.screen))
    top.wait_for("shutdown: stopped after")
    top.press("q")
    assert top.ended() == 0
    assert b"\x1b[?1049l" in top.printed  # the screen from before `top` is back
    assert top.printed.rindex(b"\x1b[?25h") > top.printed.rindex(b"\x1b[?25l")


def test_top_outlives_its_monitor(
    make_monitor: Callable[..., Monitor], spawner: Spawner, start: Callable[..., Terminal]
) -> None:
    """A lost monitor is reported, its last answer stays, and `top` goes on when it is back."""
    monitor = make_monitor(listen=f"127.0.0.1:{free_port()}")
    process = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="unix:/x")
    top = start(monitor.url, "--interval", "0.2")
    top.wait_for("starting")
    monitor.close()
    top.wait_for("Lost: no monitor answers")
    eventually(lambda: any(line.startswith("m ") for line in top.screen))
    again = make_monitor(listen=monitor.url.removeprefix("http://"))
    eventually(lambda: "Lost" not in "\n".join(top.screen))
    again.hook.monitor_backend_spawned(model="anew", pid=process.pid, address="unix:/x")
    top.wait_for("anew")
    top.press("\x03")
    assert top.ended() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_restores_the_terminal(
    number: signal.Signals, monitor: Monitor, start: Callable[..., Terminal]
) -> None:
    """The screen and echo are restored, and the exit code is 128 and the signal."""
    top = start(monitor.url)
    top.wait_for("No model is loaded.")
    top.process.send_signal(number)
    assert top.ended() == 128 + number
    assert b"\x1b[?1049l" in top.printed


def test_error_restores_the_terminal(monitor: Monitor, spawner: Spawner) -> None:
    """An unreachable monitor is reported in a line, before anything is drawn."""
    code = """
import sys
from monitor_plugin.cli import live
live.draw = None
from monitor_plugin.cli import main
main(["top", "--url", sys.argv[1]])
"""
    terminal = Terminal(spawner, sys.executable, "-c", code, monitor.url)
    assert terminal.ended() == 1
    assert b"\x1b[?1049l" in terminal.printed
    terminal.wait_for("TypeError")
    terminal.close()
    command = (sys.executable, "-m", "monitor_plugin.cli", "top", "--url", "http://127.0.0.1:1")
    terminal = Terminal(spawner, *command)
    assert terminal.ended() == 3
    assert b"\x1b[" not in terminal.printed
    terminal.close()


def test_stop_asks_on_a_terminal(monitor: Monitor, load: Load, spawner: Spawner) -> None:
    """`n` stops nothing and is 1; Ctrl-C is 130; `y` stops the model."""
    process = load("m")
    command = (sys.executable, "-m", "monitor_plugin.cli", "stop", "m", "--url", monitor.url)
    for answer, code in (("n\r", 1), ("\x03", 130), ("y\r", 0)):
        assert is_running(process.pid)
        terminal = Terminal(spawner, *command)
        terminal.wait_for("Stop model 'm'? [y/N]")
        if answer == "\x03":
            terminal.interrupt()
        else:
            terminal.press(answer)
        assert terminal.ended() == code
        shown = "\n".join(terminal.screen)
        terminal.close()
    assert "m: stopped in" in shown
    assert not is_running(process.pid)
