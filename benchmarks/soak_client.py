"""The soak's HTTP client, which uses one persistent connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any, NamedTuple
from urllib.parse import quote

_CALL_SECONDS = 60.0


class Answer(NamedTuple):
    """An answer of the monitor. Its times are monotonic: request sent, answer complete."""

    status: int
    source: str
    rpc_error: str
    body: Any
    sent_at: float
    done_at: float

    @property
    def seconds(self) -> float:
        """The seconds between request and answer."""
        return self.done_at - self.sent_at

    @property
    def kind(self) -> str:
        """The source of a reading, the type of an error, or `stopped`."""
        if self.status == 200:
            return self.source or "stopped"
        return str(self.body.get("error", {}).get("type", self.status))


class Client:
    """Requests readings and shutdowns on one persistent connection.

    Args:
        port: the monitor's port on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._streams:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()

    async def monitor(self, model: str) -> Answer:
        """Request a reading."""
        return await self._call("GET", f"/backend/monitor?model={quote(model)}", b"")

    async def shutdown(self, model: str, force: bool = False) -> Answer:
        """Request a shutdown."""
        return await self._call(*shutdown_request(model, force))

    async def send_and_leave(self, method: str, path: str, body: bytes, after: float) -> None:
        """Send a request, and abort the connection `after` seconds without reading the answer."""
        _, writer = await self._send(method, path, body)
        await asyncio.sleep(after)
        writer.transport.abort()
        self._streams = None

    async def _send(
        self, method: str, path: str, body: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._streams[1].write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return self._streams

    async def _call(self, method: str, path: str, body: bytes) -> Answer:
        sent_at = time.monotonic()
        reader, _ = await self._send(method, path, body)
        return await asyncio.wait_for(self._read_answer(reader, sent_at), _CALL_SECONDS)

    async def _read_answer(self, reader: asyncio.StreamReader, sent_at: float) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
        }
        answer = json.loads(await reader.readexactly(int(fields["content-length"])))
        source, rpc_error = (
            fields.get(f"x-monitor-{name}", "") for name in ("source", "rpc-error")
        )
        return Answer(int(head[0].split()[1]), source, rpc_error, answer, sent_at, time.monotonic())


def shutdown_request(model: str, force: bool = False) -> tuple[str, str, bytes]:
    """Return method, path and body of a shutdown's request."""
    body = {"model": model, **({"force": True} if force else {})}
    return "POST", "/backend/shutdown", json.dumps(body).encode()
