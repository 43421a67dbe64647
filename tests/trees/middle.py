"""Leads a process group without a session, as supervisord's programs do: root, middle, `sleep`.

Prints the PID of the process in the middle, and goes on when that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess

os.setpgid(0, 0)
middle = subprocess.Popen(["sh", "-c", "sleep 1000 & echo working; wait"], stdout=subprocess.PIPE)
assert middle.stdout
middle.stdout.readline()
print("ready", middle.pid, flush=True)
middle.wait()
while True:
    signal.pause()
