"""Serves one request in a worker, and on SIGTERM ends after that request.

    python draining.py NAME SECONDS

NAME is that of an abstract unix socket. The worker has the default SIGTERM, which ends it at once.
The answer to the request is `done`.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

is_ending = False


def end(number: int, frame: object) -> None:
    global is_ending
    is_ending = True


def answer(connection: socket.socket) -> None:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write("work\n")
    worker.stdin.flush()
    print("working", flush=True)
    connection.sendall(worker.stdout.readline().encode())


name, seconds = sys.argv[1:]
worker = subprocess.Popen(
    ["sh", "-c", f"while read line; do sleep {seconds}; echo done; done"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
)
signal.signal(signal.SIGTERM, end)
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"\0{name}")
listener.listen()
listener.settimeout(0.1)
print("ready", flush=True)
while not is_ending:
    try:
        connected, _ = listener.accept()
    except TimeoutError:
        continue
    with connected:
        answer(connected)
