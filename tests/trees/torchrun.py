"""Starts ranks that lead sessions, with a worker each, as torchrun does; rank 0 is the command.

    python torchrun.py COMMAND...

On SIGTERM it ends its ranks by SIGTERM, and waits for them.
"""

from __future__ import annotations

import signal
import subprocess
import sys

WORKERS = "sleep 1000 & echo working; wait"


def end(number: int, frame: object) -> None:
    for each in ranks:
        each.terminate()
    for each in ranks:
        each.wait()
    sys.exit()


ranks = [
    subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    for command in (sys.argv[1:], ["sh", "-c", WORKERS], ["sh", "-c", WORKERS])
]
signal.signal(signal.SIGTERM, end)
for rank in ranks:
    assert rank.stdout
    assert rank.stdout.readline()
print("ready", flush=True)
while True:
    signal.pause()
