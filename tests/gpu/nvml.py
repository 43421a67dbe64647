"""A stand-in for NVIDIA's driver library, for tests of all that reads NVIDIA's GPUs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST = 3, 4, 9, 15
NOT_AVAILABLE = -1  # an amount of memory

MakeDriver = Callable[..., "Driver"]


@functools.cache
def compiled(source: str, newest: int) -> bytes:
    """Compile a library once for all tests; see `Driver`."""
    compiler = shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "there is no C compiler; .ci/setup installs it"
        pytest.skip("there is no C compiler here")
    options = ("-Wall", "-Werror", "-shared", "-fPIC", f"-DNEWEST={newest}")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library")
        command = [compiler, *options, "-o", str(library), str(Path(__file__).with_name(source))]
        subprocess.run(command, check=True, timeout=60)
        return library.read_bytes()


class Driver:
    """The stand-in, compiled from nvml.c into a new folder. Its results may change at any time.

    Args:
        folder: a folder that does not exist yet.
        newest: the newest version of NVML's calls that it has: 1, 2 or 3.
        has_cuda: whether there is a stand-in for CUDA too, from cuda.c.

    Attributes:
        environment: variables of a process that shall find the stand-in.
    """

    def __init__(self, folder: Path, newest: int = 3, *, has_cuda: bool = False) -> None:
        folder.mkdir()
        sources = {"libnvidia-ml.so.1": "nvml.c"}
        if has_cuda:
            sources["libcuda.so.1"] = "cuda.c"
        for library, source in sources.items():
            (folder / library).write_bytes(compiled(source, newest))
        self._file = folder / "results"
        self._calls = folder / "results.calls"
        self._calls.touch()
        self.environment = {"LD_LIBRARY_PATH": str(folder), "NVML_STAND_IN": str(self._file)}
        self.configure("devices 0 2")

    def configure(self, *lines: str) -> None:
        """Replace all results; nvml.c describes the lines."""
        changed = self._file.with_suffix(".new")
        changed.write_text("".join(f"{line}\n" for line in lines))
        changed.replace(self._file)

    def calls(self, call: str) -> int:
        """Count the calls so far, such as `compute 0`: call and device."""
        return self._calls.read_text().splitlines().count(call)
