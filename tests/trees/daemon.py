"""Starts a command by a double fork, as daemons do, and waits.

    python daemon.py [--setsid] COMMAND...

The process in between ends when a line is written to the standard input.
"""

from __future__ import annotations

import os
import signal
import sys

command = sys.argv[1:]
if not (between := os.fork()):
    if command[0] == "--setsid":
        os.setsid()
        command = command[1:]
    if not os.fork():
        os.execvp(command[0], command)
    print("ready", flush=True)
    sys.stdin.readline()
    os._exit(0)
os.waitpid(between, 0)
print("daemonised", flush=True)
while True:
    signal.pause()
