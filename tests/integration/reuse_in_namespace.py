"""Gives the PIDs of ended processes to other processes, and reports how the package handles that.

Runs as the first process of a PID namespace, where it may choose the PID of the next process. Reads
lines `SCENE HANDLE`, and answers each with a line of JSON: what was observed, or
`{"fault": traceback}`. Ends when its standard input is closed; the kernel then kills all other
processes of the namespace.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from monitor_plugin import Backend, Memory, Monitor, Settings, State, Status, hookimpl
from monitor_plugin.concurrency.periodic import PeriodicTask
from monitor_plugin.processes.exit_watcher import ExitWatcher
from monitor_plugin.processes.members import MemberTable
from monitor_plugin.processes.process import Process
from monitor_plugin.processes.process_table import read_row
from monitor_plugin.processes.process_tree import ProcessTree
from monitor_plugin.processes.sampler import Sampler
from monitor_plugin.processes.tree_memory import read_tree_memory

from ..support import Spawner, eventually, members_of

ADDRESS = "127.0.0.1:1"
SCENE_SECONDS = 30
_TRIES = 200
_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

# /proc shows blocked signals as pending. SIGKILL and SIGSTOP cannot be blocked, but show in the
# state. The amount of memory makes its figures recognizable. The child lives as long, and must not
# be taken for a descendant of the ended process.
_NEWCOMER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
reads, writes = os.pipe()
child = os.fork()
if not child:
    os.close(writes)
    os.read(reads, 1)
    os._exit(0)
memory = bytearray(b"x") * (64 << 20)
print(child, flush=True)
if sys.stdin.readline() == "unblock\\n":
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    print("unblocked", flush=True)
    sys.stdin.readline()
os._exit(7)
"""

# Has a child, and ends and reaps it when it reads a line.
_PARENT = """
import os, signal, sys
child = os.fork()
while not child:
    signal.pause()
print(child, flush=True)
sys.stdin.readline()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print("reaped", flush=True)
sys.stdin.readline()
"""

# Ends at SIGTERM, and has a child that does not.
_PARENT_OF_STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
while not child:
    signal.pause()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print(child, flush=True)
sys.stdin.readline()
"""


class Newcomer:
    """A process that got the PID of an ended one, and its child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._child = int(_line(process))

    def fate(self) -> str:
        """Describe what happened to the process and its child: `unharmed`, or a signal or state."""
        code = self.process.poll()
        if code is not None:
            return f"ended with {code}"
        harm = [f"{pid}: {fate}" for pid in (self.pid, self._child) if (fate := _harm(pid))]
        return "; ".join(harm) or "unharmed"

    def exit(self) -> None:
        """Make it exit with 7, without reaping it."""
        _tell(self.process, "exit")
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def unblock(self) -> None:
        """Make it unblock signals."""
        _tell(self.process, "unblock")
        assert _line(self.process) == "unblocked"


def _harm(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "gone"
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    if status["State"][0] in "TZX":
        return status["State"].strip()
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    names = [each.name for each in signal.Signals if pending >> (each - 1) & 1]
    return f"got {', '.join(names)}" if pending else None


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def _python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def _discard(process: subprocess.Popen[str]) -> None:
    """Kill the process group of a session's leader, and reap the leader."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    with process:  # waits, and closes its pipes
        pass


def _wait_for_age(pid: int) -> None:
    """Wait until a process is older than the resolution of creation times, 1/100 s."""
    row = read_row(pid)
    assert row
    born = row.started / os.sysconf("SC_CLK_TCK")
    eventually(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - born >= 0.05)


class Scene:
    """The processes of one scene, which end with the stack.

    Args:
        handle: how the package holds processes: `pidfd`; `polled`, without a pidfd of their own;
            `no-pidfds`, on a system without them; `killed`, with a pidfd by which the kernel
            accepts no signal.
        stack: ends the processes.
    """

    def __init__(self, handle: str, stack: contextlib.ExitStack) -> None:
        self._handle = handle
        self._stack = stack
        self._spawner = Spawner()
        stack.callback(self._spawner.close)
        if handle == "no-pidfds":
            stack.enter_context(pytest.MonkeyPatch.context()).delattr(os, "pidfd_open")
        if handle == "killed":
            refused = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            stack.enter_context(mock.patch.object(signal, "pidfd_send_signal", side_effect=refused))

    def sleeper(self) -> subprocess.Popen[str]:
        return self._spawner.sleeper()

    def parent(self, code: str, **options: Any) -> tuple[subprocess.Popen[str], int]:
        """Start a process that has a child; return the process and the child's PID."""
        parent = self._spawner.process(*_python(code), stdin=subprocess.PIPE, **options)
        return parent, int(_line(parent))

    def open(self, process: subprocess.Popen[str]) -> Process:
        keep_descriptor = self._handle in ("pidfd", "killed")
        opened = Process(process.pid, keep_descriptor=keep_descriptor)
        assert (opened.pidfd is not None) == keep_descriptor
        return self._stack.enter_context(opened)

    def take(self, pid: int) -> Newcomer:
        """Start a newcomer with a free PID; it leads a session."""
        for _ in range(_TRIES):  # another thread or process may get the PID first
            _LAST_PID.write_text(str(pid - 1))
            process = subprocess.Popen(
                _python(_NEWCOMER),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            if process.pid == pid:
                self._stack.callback(_discard, process)
                return Newcomer(process)
            _discard(process)
        raise AssertionError(f"PID {pid} was not given again in {_TRIES} tries")

    def replace(self, old: subprocess.Popen[str]) -> Newcomer:
        """Kill and reap a process, and start a newcomer with its PID at once."""
        _wait_for_age(old.pid)
        old.kill()
        old.wait()
        return self.take(old.pid)

    def monitor(self, *plugins: object, watching: bool = False) -> Monitor:
        """Start a monitor; only a watching one notices exits in the background."""
        if not watching:
            self._stack.enter_context(mock.patch.object(ExitWatcher, "start"))
            self._stack.enter_context(mock.patch.object(PeriodicTask, "start"))
        settings = Settings(
            listen=None,
            drain_timeout_seconds=0.0,
            stop_timeout_seconds=20.0,
            respawn_watch_seconds=0.0,
            hook_timeout_seconds=20.0,  # hooks here start processes
        )
        return self._stack.enter_context(Monitor(settings, plugins))

    def register(self, monitor: Monitor, pid: int) -> None:
        limit = (1, 1) if self._handle == "polled" else resource.getrlimit(resource.RLIMIT_NOFILE)
        with mock.patch("resource.getrlimit", return_value=limit):
            monitor.hook.monitor_backend_spawned(model="m", pid=pid, address=ADDRESS)

    def registered(self, monitor: Monitor) -> subprocess.Popen[str]:
        """Start a process and register it."""
        old = self.sleeper()
        self.register(monitor, old.pid)
        return old


def _outcome(call: Callable[[], object]) -> str:
    """Return the name of the error that is raised, or the representation of the result."""
    try:
        return repr(call())
    except Exception as error:  # the tests check which error it is
        return type(error).__name__


def process(scene: Scene) -> dict[str, Any]:
    opened = scene.open(old := scene.sleeper())
    newcomer = scene.replace(old)
    seen = {
        "ended": opened.ended(),
        "sent": opened.send_signal(signal.SIGTERM),
        "exit_code": opened.exit_code(),
        "fate": newcomer.fate(),
    }
    os.kill(newcomer.pid, signal.SIGTERM)  # checks that `fate` would have reported a signal
    seen["fate_of_one_that_is_signalled"] = newcomer.fate()
    newcomer.exit()
    seen["exit_code_once_the_newcomer_exited"] = opened.exit_code()
    return seen


def sampler(scene: Scene) -> dict[str, Any]:
    sampler = Sampler(scene.open(old := scene.sleeper()))
    newcomer = scene.replace(old)
    return {"sample": _outcome(lambda: sampler.sample(1)), "fate": newcomer.fate()}


def sampler_during_sample(scene: Scene) -> dict[str, Any]:
    opened = scene.open(old := scene.sleeper())
    sampler, newcomers = Sampler(opened), []
    memory_info = opened.psutil_process.memory_info

    def replace_before_memory_is_read() -> Any:
        newcomers.append(scene.replace(old))
        return memory_info()

    with mock.patch.object(opened.psutil_process, "memory_info", replace_before_memory_is_read):
        sample = _outcome(lambda: sampler.sample(1))
    return {"sample": sample, "fates": [each.fate() for each in newcomers]}


def _open_tree(root: subprocess.Popen[str]) -> ProcessTree:
    return ProcessTree(members_of(root.pid), MemberTable())


def tree_root(scene: Scene) -> dict[str, Any]:
    with _open_tree(old := scene.sleeper()) as tree:
        newcomer = scene.replace(old)
        tree.rescan_until_stable()
        members = [member.pid for member in tree.alive()]
        tree.stop(1, threading.Event())
        return {"members": members, "fate": newcomer.fate()}


def tree_member(scene: Scene) -> dict[str, Any]:
    parent, child = scene.parent(_PARENT)
    table, known = MemberTable(), members_of(parent.pid)
    table.track(known)
    with _open_tree(parent) as tree:
        assert [member.pid for member in tree.alive()] == [parent.pid, child]
        assert table.pids(known) == [parent.pid, child]
        _wait_for_age(child)
        _tell(parent, "reap")
        assert _line(parent) == "reaped"
        newcomer = scene.take(child)
        memory = read_tree_memory(known.identities(), known.root)
        tree.rescan_until_stable()
        members = [member.pid for member in tree.alive()]
        tree.stop(20, threading.Event())
        return {
            "memory": memory and memory.pss,
            "members_are_the_root": members == [parent.pid],
            "root": parent.wait(20),
            "fate": newcomer.fate(),
        }


def tree_listed(scene: Scene) -> dict[str, Any]:
    with _open_tree(old := scene.sleeper()) as tree:
        alive = tree.alive
        newcomers: list[Newcomer] = []

        def list_and_replace() -> list[Process]:
            listed = alive()
            if not newcomers:
                newcomers.append(scene.replace(old))
            return listed

        with mock.patch.object(tree, "alive", list_and_replace):
            tree.stop(1, threading.Event())
        return {"fates": [each.fate() for each in newcomers]}


class _GraceHookTree(ProcessTree):
    """A tree that calls a function during the grace period of its stop."""

    def __init__(self, root: subprocess.Popen[str], in_grace: Callable[[], object]) -> None:
        super().__init__(members_of(root.pid), MemberTable())
        self._in_grace: Callable[[], object] | None = in_grace

    def _wait(self, *arguments: Any, **options: Any) -> None:
        in_grace, self._in_grace = self._in_grace, None
        if in_grace:
            in_grace()
        else:
            super()._wait(*arguments, **options)


def tree_grace(scene: Scene) -> dict[str, Any]:
    # It leads no session, because the kernel does not reuse a session's PID while it has members.
    parent, child = scene.parent(_PARENT_OF_STUBBORN, start_new_session=False)
    _wait_for_age(parent.pid)
    newcomers = []

    def reap_and_replace() -> None:
        assert parent.wait(20) == -signal.SIGTERM
        newcomers.append(scene.take(parent.pid))

    with _GraceHookTree(parent, reap_and_replace) as tree:
        assert [member.pid for member in tree.alive()] == [parent.pid, child]
        tree.stop(2, threading.Event())
        return {
            "left": [member.pid for member in tree.alive()],
            "fates": [each.fate() for each in newcomers],
        }


def monitor_calls(scene: Scene, calls: tuple[str, str], watching: bool = True) -> dict[str, Any]:
    monitor = scene.monitor(watching=watching)
    newcomer = scene.replace(scene.registered(monitor))
    outcomes = {call: _outcome(partial(getattr(monitor, call), "m")) for call in calls}
    return {**outcomes, "backends": len(monitor.backends()), "fate": newcomer.fate()}


def monitor_register(scene: Scene, watching: bool = True) -> dict[str, Any]:
    monitor = scene.monitor(watching=watching)
    old = scene.registered(monitor)
    (before,) = monitor.backends()
    newcomer = scene.replace(old)
    scene.register(monitor, newcomer.pid)
    (after,) = monitor.backends()
    reading = monitor.read("m")
    seen = {
        "same_pid": after.pid == before.pid,
        "later_by": after.created_at - before.created_at,
        "read_is_the_newcomer": reading.backend == after,
        "rss": reading.sample and reading.sample.rss,
        "fate": newcomer.fate(),
    }
    newcomer.unblock()
    seen["shutdown"] = _outcome(lambda: monitor.shutdown("m"))
    seen["fate_after_its_own_shutdown"] = newcomer.fate()
    return seen


class _Replacing:
    """A plugin that replaces the backend's process by a newcomer when a certain hook is called."""

    def __init__(self, scene: Scene, hook: str, status: Status | None = None) -> None:
        self._scene = scene
        self._hook = hook
        self._status = status
        self.old: subprocess.Popen[str] | None = None
        self.newcomers: list[Newcomer] = []

    def _called(self, hook: str) -> None:
        if hook == self._hook and self.old and not self.newcomers:
            self.newcomers.append(self._scene.replace(self.old))

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status | None:
        self._called("query_status")
        return self._status

    @hookimpl
    def monitor_memory_components(self, backend: Backend) -> dict[str, int]:
        self._called("memory_components")
        return {}

    @hookimpl
    def monitor_call_metadata(self, backend: Backend) -> dict[str, str]:
        self._called("call_metadata")
        return {}

    @hookimpl
    def monitor_before_shutdown(self, backend: Backend) -> None:
        self._called("before_shutdown")

    @hookimpl
    def monitor_stop_backend(self, backend: Backend) -> None:
        self._called("stop_backend")


def _replace_during(
    scene: Scene, hook: str, act: Callable[[Monitor], object], status: Status | None = None
) -> dict[str, Any]:
    plugin = _Replacing(scene, hook, status)
    monitor = scene.monitor(plugin)
    plugin.old = scene.registered(monitor)
    return {
        "outcome": _outcome(lambda: act(monitor)),
        "backends": len(monitor.backends()),
        "fates": [each.fate() for each in plugin.newcomers],
    }


def _read(monitor: Monitor) -> object:
    return monitor.read("m")


def _shut_down(monitor: Monitor) -> object:
    monitor.shutdown("m")
    return None


_WITH_MEMORY = Status(State.READY, Memory(1))
_WITHOUT_MEMORY = Status(State.READY, None)
_READ_FIRST = ("read", "shutdown")
_SHUTDOWN_FIRST = ("shutdown", "read")

SCENES: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "process": process,
    "sampler": sampler,
    "sampler_during_sample": sampler_during_sample,
    "tree_root": tree_root,
    "tree_member": tree_member,
    "tree_listed": tree_listed,
    "tree_grace": tree_grace,
    "monitor_read": lambda scene: monitor_calls(scene, _READ_FIRST),
    "monitor_shutdown": lambda scene: monitor_calls(scene, _SHUTDOWN_FIRST),
    "monitor_register": monitor_register,
    "unwatched_monitor_read": lambda scene: monitor_calls(scene, _READ_FIRST, watching=False),
    "unwatched_monitor_shutdown": lambda scene: monitor_calls(
        scene, _SHUTDOWN_FIRST, watching=False
    ),
    "unwatched_monitor_register": lambda scene: monitor_register(scene, watching=False),
    "during_query_status": lambda scene: _replace_during(
        scene, "query_status", _read, _WITH_MEMORY
    ),
    "during_memory_components": lambda scene: _replace_during(
        scene, "memory_components", _read, _WITHOUT_MEMORY
    ),
    "during_call_metadata": lambda scene: _replace_during(scene, "call_metadata", _read),
    "during_before_shutdown": lambda scene: _replace_during(scene, "before_shutdown", _shut_down),
    "during_stop_backend": lambda scene: _replace_during(scene, "stop_backend", _shut_down),
}


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """End this process, and with it the namespace, if a scene hangs."""
    faulthandler.dump_traceback_later(SCENE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    assert os.getpid() == 1, "this must run in a new PID namespace"
    _LAST_PID.write_text("1000")  # above the PIDs that the kernel keeps for early daemons
    print("ready", flush=True)
    for line in sys.stdin:
        name, handle = line.split()
        seen: dict[str, Any]
        try:
            with _bounded(), contextlib.ExitStack() as stack:
                seen = SCENES[name](Scene(handle, stack))
        except Exception:  # the test reports any error
            seen = {"fault": traceback.format_exc()}
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
