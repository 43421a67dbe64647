"""`examples/monitor-plugin-hello`, built and installed beside our wheel in a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HELLO = ROOT / "examples" / "monitor-plugin-hello"

CHECK = """
from monitor_plugin import Monitor, Settings
for plugin in Monitor(Settings(listen=None)).plugins():
    print(plugin.name, plugin.source, sorted(hook.name for hook in plugin.hooks))
"""


@pytest.mark.slow
@pytest.mark.once
def test_installed_hook_package_is_loaded(tmp_path: Path) -> None:
    """Its own tests pass, and a monitor loads it by its entry point."""
    for number, source in enumerate((ROOT, HELLO)):
        ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
        copy = tmp_path / f"source{number}"
        shutil.copytree(source, copy, ignore=ignored)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
        build += ["--outdir", str(tmp_path), str(copy)]
        subprocess.run(build, check=True, capture_output=True, timeout=280)
    venv.create(tmp_path / "venv", with_pip=False)  # the pip of the tests installs into it
    python = str(tmp_path / "venv" / "bin" / "python")
    (hello,) = tmp_path.glob("monitor_plugin_hello*.whl")
    (ours,) = tmp_path.glob("monitor_plugin-*.whl")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and "COVERAGE" not in name and not name.startswith("MONITOR_")
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path / "source1" / "tests",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", str(ours), f"{hello}[test]")
    assert "5 passed" in run(python, "-m", "pytest", "-q", "-W", "error")
    hooks = "['monitor_backend_registered', 'monitor_memory_components']"
    assert run(python, "-c", CHECK) == f"hello monitor-plugin-hello 0.1.0 {hooks}\n"
