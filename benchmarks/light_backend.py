"""A backend that starts in some 20 ms and takes some 10 MiB: it speaks gRPC without a gRPC library.

    python -S -E benchmarks/light_backend.py [--addr HOST:PORT | --addr unix:PATH]
                                             [--huge | --sends HEX] [--ignore-sigterm]
    python -S -E benchmarks/light_backend.py --count COUNT [--children N] [--holds MIB]
                                             [--no-status]

Without `--count`, serves in its own process and prints `serving on ADDRESS`. With it, forks COUNT
backends, each of which leads a session, prints the PID and the address of each on a line, and kills
them all when its standard input is closed.

Each call is answered by `StatusResponse`: READY, and the port as the memory, `{"port": PORT}`, or
`{"port": 1}` at a unix socket. With `--no-status` each call is answered by UNIMPLEMENTED.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import struct
import sys
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `threading` take longer to import than all the rest
    from typing import NoReturn

COMMAND = [sys.executable, "-S", "-E", __file__]  # -S -E: without site-packages it starts sooner

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_PREFACE_BYTES = 24
# HPACK: `:status: 200` is entry 8 of the static table, and the name `content-type` entry 31.
_HEAD = b"\x88\x0f\x10\x10application/grpc"
_OK = b"\x00\x0bgrpc-status\x010"
_UNIMPLEMENTED = b"\x00\x0bgrpc-status\x0212"
_HUGE_BYTES = 5 * 1024 * 1024  # gRPC's limit is 4 MiB
# As many descriptors as a small Python model server has.
_DESCRIPTORS = 20


def varint(number: int) -> bytes:
    """Encode a number of a protobuf message."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))


def status_response(port: int) -> bytes:
    """Encode the `StatusResponse` of a backend at this port: see `proto/backend.proto`."""
    amount = varint(port)
    component = b"\x0a\x04port\x10" + amount
    memory = b"\x08" + amount + b"\x12" + varint(len(component)) + component
    return b"\x08\x02\x12" + varint(len(memory)) + memory


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answer(connection: socket.socket, options: argparse.Namespace) -> None:
    """Answer each call on a connection until the client closes it.

    Args:
        connection: closed at the end.
        options: those of the command line: what is answered.
    """
    with connection, contextlib.suppress(OSError, EOFError):
        tcp = connection.family == socket.AF_INET
        if tcp:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.sends is None:
            answer_calls(connection, reply(connection.getsockname()[1] if tcp else 1, options))
        connection.sendall(options.sends)
        while connection.recv(4096) and not options.sends:
            pass


def reply(port: int, options: argparse.Namespace) -> list[tuple[int, int, bytes]]:
    """Return the frames that answer a call: kind, flags and payload of each."""
    last = _END_HEADERS | _END_STREAM
    if options.no_status:
        return [(_HEADERS, last, _HEAD + _UNIMPLEMENTED)]
    message = status_response(port)
    length = _HUGE_BYTES if options.huge else len(message)
    body = struct.pack(">BI", 0, length) + message
    return [(_HEADERS, _END_HEADERS, _HEAD), (_DATA, 0, body), (_HEADERS, last, _OK)]


def answer_calls(connection: socket.socket, frames: list[tuple[int, int, bytes]]) -> NoReturn:
    """Answer each call with these frames.

    Raises:
        EOFError: the client closed the connection.
    """
    received = connection.makefile("rb")

    def read(count: int) -> bytes:
        data = received.read(count)
        if len(data) < count:
            raise EOFError
        return data

    read(_PREFACE_BYTES)
    connection.sendall(frame(_SETTINGS, 0, 0))
    while True:
        high, low, kind, flags, stream = struct.unpack(">BHBBI", read(9))
        payload = read(high << 16 | low)
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            connection.sendall(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        if kind == _DATA and payload:  # gives the client back what it may send
            connection.sendall(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
        if kind == _DATA and flags & _END_STREAM:
            connection.sendall(b"".join(frame(*each[:2], stream, each[2]) for each in frames))


def fork_idle(children: int) -> None:
    """Fork child processes that wait for a signal."""
    for _ in range(children):
        if not os.fork():
            while True:
                signal.pause()


def open_listener(address: str) -> tuple[socket.socket, str]:
    """Listen at `HOST:PORT` or `unix:PATH`; port 0 is any free port. Return the exact address.

    The socket of an earlier process at the same path is replaced, as gRPC does.
    """
    host, _, port = address.rpartition(":")
    if host == "unix":
        with contextlib.suppress(FileNotFoundError):
            os.unlink(port)  # noqa: PTH108 - `pathlib` takes long to import
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(port)
        listener.listen(128)
        return listener, address
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(128)
    return listener, f"{host}:{listener.getsockname()[1]}"


def serve(listener: socket.socket, options: argparse.Namespace) -> None:
    """Accept connections until a signal ends the process."""
    while True:
        start_new_thread(answer, (listener.accept()[0], options))


def start_backend(options: argparse.Namespace) -> tuple[int, str]:
    """Fork a backend; return its PID and its address."""
    received, sent = os.pipe()
    if pid := os.fork():
        os.close(sent)
        with open(received) as file:
            return pid, file.readline().strip()
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for _ in range(_DESCRIPTORS):
        os.open(os.devnull, os.O_RDONLY)
    held = bytearray(b"x") * (options.holds * 1024 * 1024)
    fork_idle(options.children)
    listener, address = open_listener(options.addr)
    os.write(sent, f"{address}\n".encode())
    os.close(sent)
    serve(listener, options)
    raise AssertionError(f"a server with {len(held)} bytes ends by a signal only")


def main() -> None:
    """Serve, or fork backends that do."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--addr", default="127.0.0.1:0")
    parser.add_argument("--no-status", action="store_true", help="answer with UNIMPLEMENTED")
    parser.add_argument("--huge", action="store_true", help="answer with too large a message")
    parser.add_argument("--sends", type=bytes.fromhex, help="send these bytes, and no answer")
    parser.add_argument("--ignore-sigterm", action="store_true", help="go on after SIGTERM")
    parser.add_argument("--count", type=int, help="fork so many backends")
    parser.add_argument("--children", type=int, default=0, help="idle children of each of them")
    parser.add_argument("--holds", type=int, default=0, help="MiB of memory of each of them")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.count is None:
        listener, address = open_listener(options.addr)
        print(f"serving on {address}", flush=True)
        serve(listener, options)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so the kernel reaps the backends
    pids = []
    try:
        for _ in range(options.count):
            pid, address = start_backend(options)
            pids.append(pid)
            print(pid, address, flush=True)
        sys.stdin.read()
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
