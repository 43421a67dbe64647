"""The soak's actors. Each owns one model, or one kind of misbehaving client, until the end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine

from soak_client import Client, shutdown_request
from soak_expectations import ExpectedNotLoaded, ExpectedSample, ExpectedStatus
from soak_faults import (
    DEMO_MIB,
    LIGHT_MIB,
    READING_SECONDS,
    SHUTDOWN_SECONDS,
    STATUS_SECONDS,
    WAYS,
    Host,
)

from monitor_plugin.demo.ports import free_port

LIGHT_BACKENDS = 8
# After SIGSTOP and SIGCONT, both a status and a sample are right for this long.
_CHANGE_SECONDS = 0.5
_NOBODY = "nobody's model"

# Switches of the demo backend, and the right answers of a backend with these switches. None: its
# status, as without switches.
_BAD = (
    (("--no-status",), (ExpectedSample(("UNIMPLEMENTED",), DEMO_MIB),)),
    (("--hang-status",), (ExpectedSample(("DEADLINE_EXCEEDED",), DEMO_MIB),)),
    (("--status-seconds", "0.4"), None),
    (
        ("--status-seconds", "1.6"),
        (ExpectedSample(("DEADLINE_EXCEEDED",), DEMO_MIB), ExpectedStatus(None)),
    ),
    (("--no-memory",), (ExpectedStatus({}),)),
    (("--ignore-sigterm", "--fork-workers", "2"), None),
    (("--fork-workers", "3"), None),
    (("--busy-seconds", "1.5"), None),
    (("--crash-after", "1.5"), None),
)


class Actors:
    """All actors. Each runs until the time is over, and ends the backends that it started.

    Args:
        host: the host.
        until: when the time is over (monotonic).
    """

    def __init__(self, host: Host, until: float) -> None:
        self._host = host
        self._expectations = host.expectations
        self._random = host.random
        self._until = until
        self._ports = [free_port() for _ in range(LIGHT_BACKENDS)]

    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._until

    def all(self) -> list[Coroutine[None, None, None]]:
        """Return a coroutine for each actor."""
        self._expectations.expect(_NOBODY, ExpectedNotLoaded(None))
        http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
        mute = {
            "http": ("--sends", http.hex()),
            "garbage": ("--sends", os.urandom(200).hex()),
            "ssh": ("--sends", b"SSH-2.0-OpenSSH_9.2\r\n".hex()),
            "silent": ("--sends", ""),
            "huge": ("--huge",),
            "closed": (),
        }
        return [
            *(self._steady(f"steady {number}") for number in range(2)),
            *(self._churn(f"org/churn {port}", port) for port in self._ports[:-2]),
            self._replicas("replicas", self._ports[-2:]),
            self._pauses("pauses"),
            *(self._misbehaves(f"bad {number}") for number in range(2)),
            *(self._no_grpc(name, *switches) for name, switches in mute.items()),
            self._rude(),
            self._mistaken(),
            *(self._reads() for _ in range(8)),
        ]

    async def _nap(self, least: float, most: float) -> None:
        await asyncio.sleep(self._random.uniform(least, most))

    def _new(self, model: str) -> None:
        self._expectations.expect(model, ExpectedNotLoaded(None))

    async def _reads(self) -> None:
        """A steady client, which requests readings of all models in turn on one connection."""
        async with Client(self._host.monitor.port) as client:
            while not self.over():
                for model in self._expectations.models:
                    answer = await client.monitor(model)
                    self._expectations.check(model, answer, READING_SECONDS)
                    await self._nap(0.0, 0.02)

    async def _steady(self, model: str) -> None:
        """A backend that stays healthy."""
        self._new(model)
        backend = await self._host.demo(model)
        await self._host.register(backend)
        await asyncio.sleep(max(0.0, self._until - time.monotonic()))
        await self._host.end(backend, "shutdown")

    async def _churn(self, model: str, port: int) -> None:
        """A backend that restarts at the same address, after each way to end."""
        self._new(model)
        while not self.over():
            right = ExpectedStatus({"port": port})
            backend = await self._host.light(model, f"127.0.0.1:{port}", right)
            await self._nap(0.0, 1.5)
            await self._host.end(backend, self._random.choice(WAYS))
            await self._nap(0.0, 0.3)

    async def _replicas(self, model: str, ports: list[int]) -> None:
        """Two replicas of one model; one ends before the other."""
        self._new(model)
        rights = [ExpectedStatus({"port": port}) for port in ports]
        together = ExpectedStatus({"port": sum(ports)})
        while not self.over():
            first, second = [
                await self._host.light(model, f"127.0.0.1:{port}", right)
                for port, right in zip(ports, (rights[0], together), strict=True)
            ]
            await self._nap(0.0, 1.0)
            if self._random.random() < 0.5:
                await self._host.end(second, "kill", then=[rights[0]])
                await self._nap(0.0, 0.5)
            else:
                await self._host.end(first, "kill", then=[rights[1]])
                first = second
                await self._nap(0.0, 0.5)
            await self._host.end(first, self._random.choice(WAYS))

    async def _pauses(self, model: str) -> None:
        """A backend that is suspended and resumed, and sometimes ended while suspended."""
        self._new(model)
        backend = await self._host.demo(model)
        while True:
            await self._host.register(backend)
            while self._random.random() < 0.8 and not self.over():
                hung = ExpectedSample(("DEADLINE_EXCEEDED",), DEMO_MIB)
                self._expectations.expect(model, *backend.right, hung)
                await self._host.signal(backend, signal.SIGSTOP)
                await asyncio.sleep(_CHANGE_SECONDS)
                self._expectations.expect(model, hung)
                await self._nap(0.0, 3.0)
                if self._random.random() < 0.2:
                    break
                self._expectations.expect(model, hung, *backend.right)
                await self._host.signal(backend, signal.SIGCONT)
                await self._recovers(model)
                self._expectations.expect(model, *backend.right)
                await self._nap(0.0, 1.0)
            way = self._random.choice([way for way in WAYS if way != "term"])
            await self._host.end(backend, way)
            if self.over():
                return
            backend = await self._host.demo(model, address=backend.address)

    async def _recovers(self, model: str) -> None:
        since = time.monotonic()
        async with Client(self._host.monitor.port) as client:
            while (answer := await client.monitor(model)).kind != "grpc":
                if time.monotonic() > since + 10 * _CHANGE_SECONDS:
                    self._expectations.wrong.append(f"{model} does not recover: {answer}")
                    return
                await asyncio.sleep(0.01)
        recovered = answer._replace(sent_at=since)
        self._expectations.check_duration("recovery", recovered, _CHANGE_SECONDS)

    async def _misbehaves(self, model: str) -> None:
        """Demo backends that misbehave, each in another way."""
        self._new(model)
        faults = list(_BAD)
        while not self.over():
            self._random.shuffle(faults)
            for switches, right in faults:
                if self.over():
                    return
                backend = await self._host.demo(model, *switches)
                backend.right = right or backend.right
                backend.dying += backend.right
                crashes = "--crash-after" in switches
                if crashes:
                    ended = ExpectedNotLoaded(backend.pid, ("exited with code 3", "ended"))
                    backend.right += (ended, ExpectedSample((), DEMO_MIB))
                await self._host.register(backend)
                if crashes:
                    await self._host.ended(backend, "exited with code 3", None)
                    continue
                await self._nap(1.0, 3.0)
                ways = [way for way in WAYS if way != "term" or "--ignore-sigterm" not in switches]
                await self._host.end(backend, self._random.choice(ways))

    async def _no_grpc(self, model: str, *switches: str) -> None:
        """Light backends that give no valid answer; without switches, idle processes."""
        self._new(model)
        codes = {"huge": ["RESOURCE_EXHAUSTED"], "silent": ["DEADLINE_EXCEEDED", "UNAVAILABLE"]}
        right = ExpectedSample(codes.get(model, ["UNAVAILABLE"]), LIGHT_MIB)
        address = f"127.0.0.1:{free_port()}"
        while not self.over():
            if switches:
                backend = await self._host.light(model, address, right, *switches)
            else:
                backend = await self._host.idle(model, right)
            await self._nap(0.5, 5.0)
            await self._host.end(backend, self._random.choice(WAYS))

    async def _rude(self) -> None:
        """Clients that send half a request, disconnect early, or name an unknown model."""
        request = ("GET", "/backend/monitor?model=bad%200", b"")
        while not self.over():
            await self._nap(0.0, 0.3)
            await Client(self._host.monitor.port).send_and_leave(*request, after=0.0)
            _, writer = await asyncio.open_connection("127.0.0.1", self._host.monitor.port)
            writer.write(b"POST /backend/shutdown HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            await self._nap(0.0, 0.1)
            writer.transport.abort()
            await Client(self._host.monitor.port).send_and_leave(
                *shutdown_request(_NOBODY), after=0.0
            )
            async with Client(self._host.monitor.port) as client:
                answer = await client.shutdown(_NOBODY)
            self._expectations.check_duration("refusal", answer, SHUTDOWN_SECONDS)
            if answer.kind != "too_many_shutdowns" and not ExpectedNotLoaded(None).matches(answer):
                self._expectations.wrong.append(f"a shutdown of {_NOBODY}: {answer}")

    async def _mistaken(self) -> None:
        """A host that reports wrong facts, which must change nothing."""
        model = "mistaken"
        self._new(model)
        port = self._ports[0]
        first = await self._host.start("sleep", "0")
        await first.wait()
        backend = await self._host.demo(model)
        await self._host.register(backend)
        monitor = self._host.monitor
        while not self.over():
            await self._nap(0.0, STATUS_SECONDS)
            for args in ((model, backend.pid), ("steady 0", backend.pid), (model, first.pid)):
                await self._host.call(monitor.exited, *args, self._random.choice((None, 0, -9)))
            for pid, address in ((first.pid, f"127.0.0.1:{port}"), (1, backend.address)):
                if await self._host.call(monitor.spawned, model, pid, address) is None:
                    self._expectations.wrong.append(
                        f"{model}: PID {pid} at {address} was registered"
                    )
        await self._host.end(backend, "shutdown")
