"""The benchmarks run; what they measure is not looked at here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .support import Spawner, program

BENCH = Path(__file__).parent.parent / "benchmarks" / "bench.py"


@pytest.mark.slow
@pytest.mark.once
def test_benchmark_runs_all_its_parts(spawner: Spawner, tmp_path: Path) -> None:
    """A tiny run writes every contender, and every figure that has a goal, as JSON."""
    program("wrk")
    found = tmp_path / "bench.json"
    running = spawner.process(sys.executable, str(BENCH), "--tiny", "--json", str(found))
    output = running.communicate(timeout=280)[0]
    assert running.returncode == 0
    assert f"all figures are in {found}" in output
    figures = {each["name"]: each for each in json.loads(found.read_text())}
    contenders = ("the floor", "monitor-plugin", "Status, kept channel", "Status, a channel each")
    others = ("supervisord XML-RPC", "circus stats", "bare Status call")
    for name in (*contenders, *others):
        assert figures[f"gRPC, 1 client: {name}"]["median"] > 0
    assert figures["import of monitor_plugin"]["goal"] == "<= 60"
    assert figures["p99 with 3 restarts a second of without"]["goal"] == "<= 2"
