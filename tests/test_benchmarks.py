"""The benchmarks run; what they measure is not looked at here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from .gpu.nvml import MakeDriver
from .support import Spawner, program

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BENCH = BENCHMARKS / "bench.py"


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


@pytest.mark.once
@pytest.mark.parametrize("has_gpu", [True, False])
def test_gpu_check_runs_with_and_without_a_gpu(
    has_gpu: bool, make_driver: MakeDriver, spawner: Spawner
) -> None:
    """On the stand-in for NVIDIA's driver, which frees memory a second late, all promises hold."""
    driver = make_driver(has_cuda=True)
    gpu = ("name 0 GPU", f"memory 0 {2**36} -1 {2**28}", "lingers 0 1") if has_gpu else ()
    driver.configure(f"devices 0 {int(has_gpu)}", *gpu)
    script = str(BENCHMARKS / "gpu_check.py")
    environment = {**os.environ, **driver.environment}
    running = spawner.process(sys.executable, script, "--mib", "100", env=environment)
    output = running.communicate(timeout=280)[0]
    assert running.returncode == 0, output
    assert "BROKEN" not in output
    last = "all promises are kept" if has_gpu else "no GPU of NVIDIA can be read here"
    assert last in output.splitlines()[-1]
