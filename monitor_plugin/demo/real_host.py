"""Runs a real host with the demo's three models in the foreground, and prints calls to try.

    python -m monitor_plugin.demo.real_host http://localhost:8080 circusd circus.ini

The monitor of the host must answer at that URL. Ctrl-C ends both processes, as the terminal signals
both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..client import Client
from ..domain.errors import RequestFailed
from .calls import calls
from .host import MODELS

_WARNING_SECONDS = 20.0


def _has_model(url: str, model: str) -> bool:
    try:
        Client(url).get("/backend/monitor", {"model": model}, timeout_seconds=5)
    except RequestFailed as error:
        return error.status == 401  # without a token the monitor names no models
    return True


def main(arguments: Sequence[str]) -> int:
    """Run the host; returns its exit code."""
    url, *command = arguments
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    signal.signal(signal.SIGINT, lambda number, frame: None)
    host = subprocess.Popen(command, env={**os.environ, "PATH": path})
    signal.signal(signal.SIGTERM, lambda number, frame: host.terminate())
    warn_at = time.monotonic() + _WARNING_SECONDS
    while host.poll() is None and not all(_has_model(url, model) for model in MODELS):
        if time.monotonic() > warn_at:
            print(f"No monitor with all models answers at {url} yet; see the log.", flush=True)
            warn_at += _WARNING_SECONDS
        time.sleep(0.2)
    if host.poll() is None:
        print(f"{command[0]} runs {len(MODELS)} models; the monitor answers at {url}. Try:\n")
        for call in calls():
            print(call.curl(url, with_token="MONITOR_TOKEN" in os.environ))
        print("\nCtrl-C ends all of it.", flush=True)
    while host.poll() is None:  # a SIGTERM just before wait() would not end wait()
        time.sleep(0.2)
    return host.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
