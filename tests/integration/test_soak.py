"""The soak runs, finds nothing wrong in a short time, and notices when something is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ..support import Spawner, eventually

SOAK = str(Path(__file__).parents[2] / "benchmarks" / "soak.py")

pytestmark = [pytest.mark.slow, pytest.mark.once]


def test_short_soak_finds_nothing_wrong(spawner: Spawner, tmp_path: Path) -> None:
    """With all faults, no answer is wrong, and nothing leaks."""
    written = tmp_path / "found.json"
    soak = spawner.process(sys.executable, SOAK, "--seconds", "6", "--json", str(written))
    output, _ = soak.communicate(timeout=280)
    found = json.loads(written.read_text())
    # Its bounds in time are for a quiet machine, and are not judged here.
    assert found["wrong"] == []
    assert output.endswith("wrong answers: 0; leaks: 0\n")
    assert found["exits"] > 10
    assert found["latencies"]["monitor grpc"]["count"] > 10


def test_interrupted_soak_leaves_no_process(spawner: Spawner) -> None:
    """Ctrl-C ends the soak, and all processes that it started."""
    soak = spawner.process(sys.executable, SOAK, "--seconds", "60", stderr=subprocess.STDOUT)
    process = psutil.Process(soak.pid)
    eventually(lambda: len(process.children(recursive=True)) > 10)
    started = process.children(recursive=True)
    soak.send_signal(signal.SIGINT)
    output, _ = soak.communicate(timeout=60)
    # asyncio may say before that somebody else has reaped a child.
    assert (soak.returncode, output.splitlines()[-1]) == (130, "interrupted")
    eventually(lambda: not any(each.is_running() for each in started))
