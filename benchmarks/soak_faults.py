"""The soak's host: it causes faults, and records which answers are right after each."""

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

import light_backend
import psutil
from monitor_process import MonitorProcess
from soak_client import Answer, Client, shutdown_request
from soak_expectations import (
    Expectations,
    Expected,
    ExpectedNotLoaded,
    ExpectedSample,
    ExpectedStatus,
)

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
# The sum of: drain, `Free`, the waits after SIGTERM and after SIGKILL, the watch for a respawn.
SHUTDOWN_SECONDS = DRAIN_SECONDS + STATUS_SECONDS + 2 * STOP_SECONDS + 0.1 + 0.5
_BOUND_SECONDS = 30.0

WAYS = ("kill", "term", "shutdown", "shutdown", "force", "twice", "leave")
DEMO_MIB = (20, 400)
LIGHT_MIB = (0, 20)


@dataclass
class Backend:
    """A running backend.

    Attributes:
        right: the right answers while it runs.
        dying: the right answers while it ends.
        by_term: the words in which the monitor reports its end by SIGTERM.
        tree: the PIDs of its process and descendants.
    """

    model: str
    process: asyncio.subprocess.Process
    address: str
    right: tuple[Expected, ...]
    dying: tuple[Expected, ...]
    by_term: str
    tree: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The PID of the backend."""
        return self.process.pid


class Host:
    """Spawns, registers and ends backends, each in a session of its own.

    Args:
        monitor: the monitor whose hooks are called.
        expectations: records the right answers.
        random: makes the random choices.

    Attributes:
        exits: model, PID, possible causes, and the time of a kill (Unix time) or None.
        abandoned_shutdowns: shutdowns that did not begin because their client disconnected.
        rejected_shutdowns: shutdowns that were refused because too many ran.
    """

    def __init__(
        self, monitor: MonitorProcess, expectations: Expectations, random: random.Random
    ) -> None:
        self.monitor = monitor
        self.expectations = expectations
        self.random = random
        self.exits: list[tuple[str, int, Collection[str], float | None]] = []
        self.abandoned_shutdowns = 0
        self.rejected_shutdowns = 0
        self._processes: list[asyncio.subprocess.Process] = []
        self._starting = asyncio.Semaphore(1)  # each start of Python takes a core for a second
        self._markers = 0

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        """Start a process, which `close` ends."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    async def line(self, process: asyncio.subprocess.Process) -> str:
        """Read a line of a process's standard output."""
        assert process.stdout
        return (await asyncio.wait_for(process.stdout.readline(), _BOUND_SECONDS)).decode().strip()

    async def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            # After a process was waited for, another process may have its PID.
            if process.returncode is None or not psutil.pid_exists(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            await process.wait()

    async def light(self, model: str, address: str, right: Expected, *switches: str) -> Backend:
        """Start and register a light backend at an address."""
        process = await self.start(*light_backend.COMMAND, "--addr", address, *switches)
        await self.line(process)
        return await self._register_light(model, process, address, right)

    async def idle(self, model: str, right: Expected) -> Backend:
        """Start and register a process that does not serve."""
        process = await self.start("sleep", "1000")
        while psutil.Process(process.pid).name() != "sleep":  # until it has called exec
            await asyncio.sleep(0.001)
        return await self._register_light(model, process, "127.0.0.1:1", right)

    async def _register_light(
        self, model: str, process: asyncio.subprocess.Process, address: str, right: Expected
    ) -> Backend:
        dying = (right, ExpectedSample((), LIGHT_MIB))
        by_term = f"was killed by {signal.SIGTERM.name}"
        backend = Backend(model, process, address, (right,), dying, by_term)
        await self.register(backend)
        return backend

    async def demo(self, model: str, *switches: str, address: str = "127.0.0.1:0") -> Backend:
        """Start a demo backend, which is recognized by the memory sizes that it reports."""
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
        right = ExpectedStatus(marker, (1, 2))
        dying = (right, ExpectedStatus({}), ExpectedSample((), DEMO_MIB))
        return Backend(model, process, address, (right,), dying, "exited with code 0")

    async def register(self, backend: Backend) -> None:
        """Register a backend. Its readings are expected from now on."""
        before = self.expectations.allowed(backend.model)
        self.expectations.expect(backend.model, *before, *backend.right)
        error = await self.call(self.monitor.spawned, backend.model, backend.pid, backend.address)
        if error:
            self.expectations.wrong.append(f"{backend.model} was not registered: {error}")
        backend.tree = [backend.pid, *self._children(backend.pid)]
        self.expectations.expect(backend.model, *backend.right)

    @staticmethod
    def _children(pid: int) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(pid).children(recursive=True)]
        return []

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function on a thread; return its result within the time limit."""
        return await asyncio.wait_for(asyncio.to_thread(function, *arguments), _BOUND_SECONDS)

    async def signal(self, backend: Backend, number: int) -> None:
        """Send a signal to a backend."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(backend.pid, number)

    async def end(self, backend: Backend, way: str, then: Sequence[Expected] = ()) -> None:
        """End a backend.

        Args:
            backend: which one.
            way: one of `WAYS`.
            then: the right answers afterwards; none: the model is not loaded.
        """
        descriptions = {"kill": "was killed by SIGKILL", "term": backend.by_term}
        description = descriptions.get(way, "was stopped by a shutdown")
        gone = (*then, ExpectedNotLoaded(backend.pid, (description, "ended")))
        before = self.expectations.allowed(backend.model)
        self.expectations.expect(backend.model, *before, *backend.dying, *gone)
        killed_at = None
        if way in descriptions:
            killed_at = time.time() if way == "kill" else None
            os.kill(backend.pid, signal.SIGKILL if way == "kill" else signal.SIGTERM)
        elif way == "leave":
            await self._shut_down_and_leave(backend)
        else:
            await self._shut_down(backend, way)
        await self.ended(backend, description, killed_at, then)

    async def ended(
        self,
        backend: Backend,
        description: str,
        killed_at: float | None,
        then: Sequence[Expected] = (),
    ) -> None:
        """Wait until a backend has ended, record it, and report it to the monitor or not."""
        try:
            code = await asyncio.wait_for(backend.process.wait(), _BOUND_SECONDS)
        except asyncio.TimeoutError:
            self.expectations.wrong.append(
                f"{backend.model}: {backend.pid} did not end: {description}"
            )
            backend.process.kill()
            code = await backend.process.wait()
        self.expectations.expect(
            backend.model, *(then or (ExpectedNotLoaded(backend.pid, (description, "ended")),))
        )
        causes = {"was killed": "killed", "was stopped": "shutdown", "exited with": "exited"}
        cause = causes[" ".join(description.split()[:2])]
        self.exits.append((backend.model, backend.pid, (cause, "unknown"), killed_at))
        # Reports the end never, at once, late, or twice.
        for delay in self.random.choice(((), (0.0,), (0.3,), (0.0, 0.2))):
            await asyncio.sleep(delay)
            await self.call(self.monitor.exited, backend.model, backend.pid, code)
            if not then:
                self.expectations.expect(
                    backend.model, ExpectedNotLoaded(backend.pid, (description,))
                )

    async def _shut_down(self, backend: Backend, way: str) -> None:
        force = way == "force"
        calls: list[Awaitable[Answer]] = []
        async with Client(self.monitor.port) as one, Client(self.monitor.port) as two:
            calls.append(one.shutdown(backend.model, force))
            if way == "twice":
                calls.append(two.shutdown(backend.model, self.random.random() < 0.5))
            answers = await asyncio.gather(*calls)
        left = [pid for pid in backend.tree if _is_running(pid)]
        if all(answer.kind == "too_many_shutdowns" for answer in answers):
            if left != backend.tree:
                self.expectations.wrong.append(f"{backend.model}: {answers}, but only {left} run")
            self.rejected_shutdowns += 1
            await asyncio.sleep(0.2)
            await self._shut_down(backend, way)
            return
        answers = [answer for answer in answers if answer.kind != "too_many_shutdowns"]
        for answer in answers:
            self.expectations.check_duration("shutdown", answer, SHUTDOWN_SECONDS)
            # The second of two shutdowns may begin after the first has ended.
            second = way == "twice" and answer is not answers[0]
            right = answer.kind == "stopped" or (second and answer.kind == "model_not_loaded")
            if left or not right:
                self.expectations.wrong.append(f"{backend.model}: {way}: {answer}; running: {left}")

    async def _shut_down_and_leave(self, backend: Backend) -> None:
        client = Client(self.monitor.port)
        after = self.random.choice((0.0, 0.01, 0.05, 0.3))
        await client.send_and_leave(*shutdown_request(backend.model), after)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(backend.process.wait(), SHUTDOWN_SECONDS)
            deadline = time.monotonic() + 2 * STOP_SECONDS  # for the rest of its tree
            while any(_is_running(pid) for pid in backend.tree):
                if time.monotonic() > deadline:
                    self.expectations.wrong.append(f"{backend.model}: a stop was not completed")
                    return
                await asyncio.sleep(0.02)
            return
        self.abandoned_shutdowns += 1  # the shutdown did not begin, so every process must still run
        if not all(_is_running(pid) for pid in backend.tree):
            self.expectations.wrong.append(f"{backend.model}: a stop was not completed")
        await self._shut_down(backend, "shutdown")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
