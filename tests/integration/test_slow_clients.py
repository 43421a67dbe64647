"""A crowd of slow clients, as real connections, keeps no healthy client from its answer."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import threading
import time
from types import TracebackType

import pytest

from ..support import Client, Spawner, eventually

SERVE = """
import logging, os, resource, sys
limit, pid = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
logging.basicConfig(level=logging.WARNING)
from monitor_plugin import Monitor, Settings
with Monitor(Settings(listen="127.0.0.1:0")) as monitor:
    monitor.hook.monitor_backend_spawned(model="m", pid=pid, address="127.0.0.1:9")
    print(monitor.url, flush=True)
    for _ in sys.stdin:
        sockets = 0
        for each in os.listdir("/proc/self/fd"):
            try:
                sockets += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
            except OSError:
                pass
        print(sockets, flush=True)
"""
CROWD = 500
HEAD = b"POST /backend/monitor HTTP/1.1\r\nHost: 127.0.0.1\r\n"
ASK = b"GET /backend/monitor?model=m HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
# What each kind of slow client sends at once, and what it sends byte by byte.
KINDS = [
    (b"", b""),  # idle from the start
    (b"", HEAD + b"X-Long: " + b"x" * 10_000),
    (HEAD + b"Content-Length: 10000\r\n\r\n", b"x" * 10_000),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 2_000),
    (ASK * 20, b""),  # never reads the answers
    (ASK, b""),  # idle after its first answer
]


class Crowd:
    """Slow clients, each of which comes again when it is turned out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: dict[int, tuple[socket.socket, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.turned_out = 0
        self.rounds = 0

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for connection, _ in self._connections.values():
            connection.close()

    def _come(self, number: int) -> None:
        if number in self._connections:
            self._connections.pop(number)[0].close()
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        with contextlib.suppress(OSError):  # turned out at once
            connection.sendall(KINDS[number % len(KINDS)][0])
        connection.setblocking(False)
        self._connections[number] = connection, 0

    def _run(self) -> None:
        while not self._stop.is_set():
            for number in range(CROWD):
                if number not in self._connections or self._is_out(number):
                    self._come(number)
                if self._stop.is_set():
                    return
            self.rounds += 1
            time.sleep(0.05)

    def _is_out(self, number: int) -> bool:
        connection, sent = self._connections[number]
        slowly = KINDS[number % len(KINDS)][1]
        try:
            if slowly:
                connection.send(slowly[sent : sent + 1])
                self._connections[number] = connection, sent + 1
            elif number % len(KINDS) != 4 and connection.recv(65536) == b"":
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            self.turned_out += 1
            return True
        return False


@pytest.mark.parametrize("limit", [256, 1024])
def test_slow_clients_do_not_delay_others(
    limit: int, spawner: Spawner, capsys: pytest.CaptureFixture[str]
) -> None:
    """500 clients idle, trickle or do not read, and reconnect when evicted; no other waits."""
    sleeper = spawner.sleeper()
    server = spawner.python(
        *(SERVE, str(limit), str(sleeper.pid)), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    client = Client(server.stdout.readline().strip())

    def sockets_open() -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        print(file=server.stdin, flush=True)
        return int(server.stdout.readline())

    def ask() -> float:
        begun = time.monotonic()
        while True:
            # One that says nothing for a moment, as it gets no turn, may be turned out with others.
            with contextlib.suppress(ConnectionError):
                assert client.monitor("m").status == 200
                break
        return time.monotonic() - begun

    ask()
    alone = [ask() for _ in range(50)]
    sockets = sockets_open()
    with Crowd(client.port) as crowd:
        eventually(lambda: crowd.rounds >= 3)
        crowded: list[float] = []
        while crowd.rounds < 20 or len(crowded) < 50:
            crowded.append(ask())
        most = sockets_open() - sockets
    assert most <= min(500, limit // 2)
    assert crowd.turned_out >= (CROWD if limit == 256 else 0)
    with capsys.disabled():
        print(
            f"\n  of {limit} descriptors: alone {statistics.median(alone) * 1000:.1f} ms, beside "
            f"{CROWD} slow clients {statistics.median(crowded) * 1000:.1f} ms, at most "
            f"{max(crowded) * 1000:.0f} ms; {len(crowded)} answers, {crowd.turned_out} turned out"
        )
    assert max(crowded) < 20
    eventually(lambda: sockets_open() <= sockets + 1)
    _, errors = server.communicate(timeout=60)
    assert errors == ""
    assert server.returncode == 0
