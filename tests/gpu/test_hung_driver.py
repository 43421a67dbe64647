"""A monitor process whose driver hangs in a call, with the stand-in for NVIDIA's library."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from ..support import Client, Spawner, eventually
from .nvml import MakeDriver

MONITOR = """
import sys, subprocess, monitor_plugin
backend = subprocess.Popen(["sleep", "1000"])
settings = monitor_plugin.Settings(
    listen="127.0.0.1:0", sweep_interval_seconds=0.2, status_timeout_seconds=0.2
)
with monitor_plugin.Monitor(settings) as monitor:
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address="127.0.0.1:1")
    print(backend.pid, monitor.url, flush=True)
    sys.stdin.read()
backend.kill()
"""
DEVICE = ("devices 0 1", "uuid 0 GPU-7", "memory 0 1000 600 0")


def test_hung_driver_delays_neither_answers_nor_the_end_of_the_monitor(
    make_driver: MakeDriver, spawner: Spawner
) -> None:
    """The last figures stay, with their age, and `gpu` is `auto`."""
    driver = make_driver()
    driver.configure(*DEVICE)
    process = spawner.process(
        *(sys.executable, "-c", MONITOR),
        stdin=subprocess.PIPE,
        env={**os.environ, **driver.environment},
    )
    assert process.stdin
    assert process.stdout
    pid, url = process.stdout.readline().split()
    client = Client(url)
    driver.configure(*DEVICE, f"compute 0 {pid} 100")

    def get() -> Any:
        return client.request("GET", "/gpus").json["gpus"][0]

    eventually(lambda: get()["ours"] == 100)
    driver.configure(*DEVICE, f"compute 0 {pid} 200", "hangs compute 0 1000")
    eventually(lambda: get()["age_seconds"] > 1.5)
    calls = driver.calls("compute 0")
    began = time.monotonic()
    for path in ("/gpus", "/backends", "/metrics", "/backend/monitor?model=m") * 10:
        assert client.request("GET", path).status == 200
    assert time.monotonic() - began < 30  # 40 answers, each 1 s longer if it waited for the driver
    assert get()["ours"] == 100
    assert driver.calls("compute 0") == calls
    process.stdin.close()
    process.wait(timeout=30)
    assert process.returncode == 0
