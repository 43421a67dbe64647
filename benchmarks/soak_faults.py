"""The host of the soak, which makes every fault, and says to the truth what it did."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
from apart import MonitorApart
from soak_client import Answer, Client, shutdown_request
from soak_truth import ByGrpc, ByProcess, Expected, NotLoaded, Truth

T = TypeVar("T")

STATUS_SECONDS = 1.0
DRAIN_SECONDS = 2.0
STOP_SECONDS = 2.0
SETTINGS = {
    "status_timeout_seconds": STATUS_SECONDS,
    "drain_timeout_seconds": DRAIN_SECONDS,
    "stop_timeout_seconds": STOP_SECONDS,
    "respawn_watch_seconds": 0.1,
}
READING_SECONDS = STATUS_SECONDS + 0.5
# Drain, `Free`, SIGTERM's time and SIGKILL's, and the watch for a respawn.
SHUTDOWN_SECONDS = DRAIN_SECONDS + STATUS_SECONDS + 2 * STOP_SECONDS + 0.1 + 0.5
_BOUND_SECONDS = 30.0

WAYS = ("kill", "term", "shutdown", "shutdown", "force", "twice", "leave")
DEMO_MIB = (20, 400)
LIGHT_MIB = (0, 20)


@dataclass
class Backend:
    """A backend that runs: what is true of it, and while it ends, and how SIGTERM ends it."""

    model: str
    process: asyncio.subprocess.Process
    address: str
    right: tuple[Expected, ...]
    dying: tuple[Expected, ...]
    by_term: str
    tree: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Its PID."""
        return self.process.pid


class Host:
    """Spawns, registers and ends backends, each in a session of its own.

    Args:
        monitor: told of them.
        truth: told what is right.
        chance: decides.
    """

    def __init__(self, monitor: MonitorApart, truth: Truth, chance: random.Random) -> None:
        self.monitor = monitor
        self.truth = truth
        self.chance = chance
        self.client = Client(monitor.port)
        self.ends: list[tuple[str, int, Collection[str], float | None]] = []
        self.left_early = 0
        self.turned_away = 0
        self._processes: list[asyncio.subprocess.Process] = []
        self._starting = asyncio.Semaphore(1)  # an interpreter's start takes a core for a second
        self._markers = 0

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        """Start a process; all are ended at the end."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    async def line(self, process: asyncio.subprocess.Process) -> str:
        """Read a line of what it says."""
        assert process.stdout
        return (await asyncio.wait_for(process.stdout.readline(), _BOUND_SECONDS)).decode().strip()

    async def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            # Where a process has the PID of one that was waited for, it is another one.
            if process.returncode is None or not psutil.pid_exists(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            await process.wait()

    async def light(self, model: str, address: str, right: Expected) -> Backend:
        """Start and register a process that does nothing, for whom others answer at the address."""
        process = await self.start("sleep", "1000")
        while psutil.Process(process.pid).name() != "sleep":  # not yet, before it calls exec
            await asyncio.sleep(0.001)
        dying = (right, ByProcess((), LIGHT_MIB)) if isinstance(right, ByProcess) else (right,)
        by_term = f"was killed by {signal.SIGTERM.name}"
        backend = Backend(model, process, address, (right,), dying, by_term)
        await self.register(backend)
        return backend

    async def demo(self, model: str, *switches: str, address: str = "127.0.0.1:0") -> Backend:
        """Start a demo backend with a marker of its own: the sizes that it reports."""
        self._markers += 1
        sizes = {"weights": 1 + self._markers % 7, "kv_cache": 1 + self._markers // 7 % 7}
        async with self._starting:
            process = await self.start(
                *(sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent"),
                *("--addr", address, "--weights-mib", str(sizes["weights"])),
                *("--kv-cache-mib", str(sizes["kv_cache"]), *switches),
            )
            address = (await self.line(process)).removeprefix("serving on ")
        marker = {name: size * 1024**2 for name, size in sizes.items()}
        right = ByGrpc(marker, (1, 2))
        dying = (right, ByGrpc({}), ByProcess((), DEMO_MIB))
        return Backend(model, process, address, (right,), dying, "exited with code 0")

    async def register(self, backend: Backend) -> None:
        """Tell the monitor of a backend, from when on it must be answered for."""
        before = self.truth.allowed(backend.model)
        self.truth.now(backend.model, *before, *backend.right)
        fault = await self.tell(self.monitor.spawned, backend.model, backend.pid, backend.address)
        if fault:
            self.truth.wrong.append(f"{backend.model} was not registered: {fault}")
        backend.tree = [backend.pid, *self._children(backend.pid)]
        self.truth.now(backend.model, *backend.right)

    @staticmethod
    def _children(pid: int) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(pid).children(recursive=True)]
        return []

    async def tell(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call the monitor as a host."""
        return await asyncio.wait_for(asyncio.to_thread(call, *arguments), _BOUND_SECONDS)

    async def signal(self, backend: Backend, number: int) -> None:
        """Signal a backend."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(backend.pid, number)

    async def end(self, backend: Backend, way: str, then: Sequence[Expected] = ()) -> None:
        """End a backend; `then` is right of its model after it, else that it is not loaded."""
        words = {"kill": "was killed by SIGKILL", "term": backend.by_term}
        word = words.get(way, "was stopped by a shutdown")
        gone = (*then, NotLoaded(backend.pid, (word, "ended")))
        before = self.truth.allowed(backend.model)
        self.truth.now(backend.model, *before, *backend.dying, *gone)
        killed_at = None
        if way in words:
            killed_at = time.time() if way == "kill" else None
            os.kill(backend.pid, signal.SIGKILL if way == "kill" else signal.SIGTERM)
        elif way == "leave":
            await self._shut_down_and_leave(backend)
        else:
            await self._shut_down(backend, way)
        await self.ended(backend, word, killed_at, then)

    async def ended(
        self,
        backend: Backend,
        word: str,
        killed_at: float | None,
        then: Sequence[Expected] = (),
    ) -> None:
        """Wait until a backend has ended, and say so to the truth and, it may be, the monitor."""
        try:
            code = await asyncio.wait_for(backend.process.wait(), _BOUND_SECONDS)
        except asyncio.TimeoutError:
            self.truth.wrong.append(f"{backend.model}: {backend.pid} did not end: {word}")
            backend.process.kill()
            code = await backend.process.wait()
        self.truth.now(backend.model, *(then or (NotLoaded(backend.pid, (word, "ended")),)))
        causes = {"was killed": "killed", "was stopped": "shutdown", "exited with": "exited"}
        cause = causes[" ".join(word.split()[:2])]
        self.ends.append((backend.model, backend.pid, (cause, "unknown"), killed_at))
        for delay in self.chance.choice(((), (0.0,), (0.3,), (0.0, 0.2))):  # never, late, twice
            await asyncio.sleep(delay)
            await self.tell(self.monitor.exited, backend.model, backend.pid, code)
            if not then:
                self.truth.now(backend.model, NotLoaded(backend.pid, (word,)))

    async def _shut_down(self, backend: Backend, way: str) -> None:
        force = way == "force"
        calls: list[Awaitable[Answer]] = []
        async with Client(self.monitor.port) as one, Client(self.monitor.port) as two:
            calls.append(one.shutdown(backend.model, force))
            if way == "twice":
                calls.append(two.shutdown(backend.model, self.chance.random() < 0.5))
            answers = await asyncio.gather(*calls)
        left = [pid for pid in backend.tree if _is_running(pid)]
        if all(answer.kind == "too_many_shutdowns" for answer in answers):
            if left != backend.tree:
                self.truth.wrong.append(f"{backend.model}: {answers}, but not {left} run")
            self.turned_away += 1
            await asyncio.sleep(0.2)
            await self._shut_down(backend, way)
            return
        answers = [answer for answer in answers if answer.kind != "too_many_shutdowns"]
        for answer in answers:
            self.truth.took("shutdown", answer, SHUTDOWN_SECONDS)
            late = (
                way == "twice" and answer.kind == "model_not_loaded"
            )  # came after the other's end
            if left or not (answer.kind == "stopped" or (late and answer is not answers[0])):
                self.truth.wrong.append(f"{backend.model}: {way}: {answer}; running: {left}")

    async def _shut_down_and_leave(self, backend: Backend) -> None:
        client = Client(self.monitor.port)
        after = self.chance.choice((0.0, 0.01, 0.05, 0.3))
        await client.send_and_leave(*shutdown_request(backend.model), after)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(backend.process.wait(), SHUTDOWN_SECONDS)
            deadline = time.monotonic() + 2 * STOP_SECONDS  # the rest of its tree goes too
            while any(_is_running(pid) for pid in backend.tree):
                if time.monotonic() > deadline:
                    self.truth.wrong.append(f"{backend.model}: a stop was ended half-way")
                    return
                await asyncio.sleep(0.02)
            return
        self.left_early += 1  # before it was begun: then nothing at all may be stopped
        if not all(_is_running(pid) for pid in backend.tree):
            self.truth.wrong.append(f"{backend.model}: a stop was ended half-way")
        await self._shut_down(backend, "shutdown")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
