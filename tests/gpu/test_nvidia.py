"""NVIDIA's GPUs by NVML: the real bindings with a stand-in for the driver's library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin.gpu.nvidia import NvidiaProvider

from ..gpus import make_gpu
from ..hooks.support import Watched, watch
from ..support import Spawner, eventually, refuse_descriptors
from .namespaces import in_namespace, spawn_with_pid
from .nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_AVAILABLE,
    NOT_SUPPORTED,
    Driver,
    MakeDriver,
)

MIB = 1024 * 1024
GIB = 1024 * MIB
PID_NAMESPACE = ("--pid", "--fork", "--kill-child")

# Reads the devices for each line of the standard input, and prints them as JSON.
READER = """
import json, logging, sys
import msgspec
from monitor_plugin.gpu.nvidia import NvidiaProvider

logging.basicConfig(format="%(name)s: %(message)s")
provider = NvidiaProvider(**json.loads(sys.argv[1]))
for _ in sys.stdin:
    print(msgspec.json.encode(provider.read()).decode(), flush=True)
provider.close()
"""

# A GPU of which the driver tells everything, as number 0.
COMPLETE = (
    "uuid 0 GPU-7ea2f0c1",
    "name 0 NVIDIA L4",
    f"memory 0 {24 * GIB} {2 * GIB} {512 * MIB}",
    "utilization 0 37",
    "temperature 0 51",
    "power 0 31250",
)


class Reader:
    """A process with a provider. Its library is the stand-in, which it finds when it starts."""

    def __init__(self, process: subprocess.Popen[str], log_path: Path) -> None:
        self._process = process
        self._log_path = log_path

    def read(self) -> list[dict[str, Any]]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log
        found: list[dict[str, Any]] = json.loads(line)
        return found

    def read_one(self) -> dict[str, Any]:
        (gpu,) = self.read()
        return gpu

    def uses(self) -> dict[str, dict[int, int | None] | None]:
        """Return the bytes of each PID by component; None if they are not known."""
        return {
            gpu["component"]: None
            if gpu["uses"] is None
            else {use["pid"]: use["memory"] for use in gpu["uses"]}
            for gpu in self.read()
        }

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def close(self) -> None:
        """Let the provider release the driver, and the process end."""
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0, self.log


StartReader = Callable[..., Reader]


@pytest.fixture
def start(spawner: Spawner, tmp_path: Path) -> StartReader:
    """Starts a reader: `start(driver, retry_seconds=0.3)`; further arguments are the provider's.

    `environment` has more variables, and `by` a command that starts the process.
    """

    def start(
        driver: Driver | None,
        *,
        environment: Mapping[str, str] | None = None,
        by: Sequence[str] = (),
        **options: object,
    ) -> Reader:
        options = {"is_required": True, "retry_seconds": 0.3, **options}
        variables = {**os.environ, **(driver.environment if driver else {}), **(environment or {})}
        log_path = tmp_path / "log"
        with log_path.open("w") as log:
            process = spawner.process(
                *(*by, sys.executable, "-c", READER, json.dumps(options)),
                stdin=subprocess.PIPE,
                stderr=log,
                env=variables,
            )
        return Reader(process, log_path)

    return start


def test_device_has_all_figures(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """Used, free and reserved bytes are the total; each process of any list counts once."""
    pids = [spawner.sleeper().pid for _ in range(3)]
    driver = make_driver()
    driver.configure(
        "devices 0 1",
        *COMPLETE,
        f"compute 0 {pids[0]} {GIB}",
        f"graphics 0 {pids[0]} {NOT_AVAILABLE}",
        f"graphics 0 {pids[1]} {2 * MIB}",
        f"mps 0 {pids[1]} {2 * MIB}",
        f"mps 0 {pids[2]} {NOT_AVAILABLE}",
    )
    reader = start(driver)
    assert reader.read_one() == {
        "component": "vram:nvidia0",
        "vendor": "nvidia",
        "uuid": "GPU-7ea2f0c1",
        "index": 0,
        "name": "NVIDIA L4",
        "parent": None,
        "total": 24 * GIB,
        "used": 2 * GIB,
        "free": 24 * GIB - 2 * GIB - 512 * MIB,
        "gtt_total": None,
        "gtt_used": None,
        "utilization_percent": 37.0,
        "temperature_celsius": 51.0,
        "power_watts": 31.25,
        "uses": [
            {"pid": pids[0], "memory": GIB, "gtt": None},
            {"pid": pids[1], "memory": 2 * MIB, "gtt": None},
            {"pid": pids[2], "memory": None, "gtt": None},
        ],
        "note": None,
        "unread": [],
    }
    reader.close()
    assert reader.log == ""
    assert driver.calls("shutdown 0") == driver.calls("init 0") == 1


@pytest.mark.parametrize("newest", [1, 2])
def test_older_driver_gets_its_versions_of_calls(
    newest: int, make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """The first version has no MIG; before the third, the used bytes include the reserved ones.

    A process that is listed in calls of different versions counts once.
    """
    pids = [spawner.sleeper().pid for _ in range(2)]
    driver = make_driver(newest)
    driver.configure(
        *("devices 0 3", *COMPLETE, f"compute 0 {pids[0]} {5 * MIB}", f"mps 0 {pids[0]} {5 * MIB}"),
        *(f"graphics 0 {pids[1]} {2 * MIB}", f"compute 1 {pids[1]} {NOT_AVAILABLE}"),
        f"fails compute 2 {GPU_IS_LOST}",
    )
    reader = start(driver)
    first, second = reader.read()
    assert first["used"] == 2 * GIB + 512 * MIB
    assert first["free"] == first["total"] - first["used"]
    assert [use["memory"] for use in first["uses"]] == [5 * MIB, 2 * MIB]
    assert second["uses"] == [{"pid": pids[1], "memory": None, "gtt": None}]
    assert "NVIDIA GPU 2 cannot be read, tried again every 0.3 s: GPU is lost" in reader.log


def test_parent_without_mig_calls_has_sums_of_its_instances(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """A use is the sum over MIG instances, and is unknown if that of one instance is unknown."""
    pids = [spawner.sleeper().pid for _ in range(2)]
    driver = make_driver()
    driver.configure(
        *("devices 0 1", f"compute 0 {pids[0]} {2 * MIB} 3", f"compute 0 {pids[0]} {3 * MIB} 4"),
        *(f"compute 0 {pids[1]} {2 * MIB} 3", f"compute 0 {pids[1]} {NOT_AVAILABLE} 4"),
    )
    assert start(driver).uses() == {"vram:nvidia0": {pids[0]: 5 * MIB, pids[1]: None}}


FIGURES: dict[str, dict[str, str | None]] = {
    "memory": {"total": None, "used": None, "free": None},
    "utilization": {"utilization_percent": None},
    "temperature": {"temperature_celsius": None},
    "power": {"power_watts": None},
    "uuid": {"uuid": None},
    "name": {"name": None},
    "graphics": {},
    "mps": {},
    "migmode": {},
    "compute": {
        "uses": None,
        "note": "The driver does not list the processes that use this device: {}.",
    },
}


@pytest.mark.parametrize("call", FIGURES)
def test_unsupported_figure_hides_no_other_figure(
    call: str, make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """The other figures stay, and nothing is logged. The same holds if the user may not read it."""
    driver = make_driver()
    lines = ["devices 0 1", *COMPLETE, f"compute 0 {spawner.sleeper().pid} {GIB}"]
    driver.configure(*lines)
    reader = start(driver)
    complete = reader.read_one()
    for code, text in (NOT_SUPPORTED, "Not Supported"), (NO_PERMISSION, "Insufficient Permissions"):
        fails = [f"fails {call} 0 {code}"]
        if call == "memory":
            fails.append(f"fails memory2 0 {code}")
        driver.configure(*lines, *fails)
        changed = {k: v and v.format(text) for k, v in FIGURES[call].items()}
        assert reader.read_one() == {**complete, **changed}
    assert reader.log == ""


def test_memory_is_known_where_its_newest_call_fails(
    make_driver: MakeDriver, start: StartReader
) -> None:
    """Under WSL2 the second version fails with an unknown error, and the first one works."""
    driver = make_driver()
    driver.configure("devices 0 1", *COMPLETE, "fails memory2 0 999")
    reader = start(driver)
    assert reader.read_one()["used"] == 2 * GIB + 512 * MIB
    assert reader.log == ""


def test_reserved_memory_is_not_used_memory(make_driver: MakeDriver, start: StartReader) -> None:
    """Some drivers include the reserved bytes in the used bytes, as a guide of NVIDIA says."""
    driver = make_driver()
    driver.configure("devices 0 1", f"memory 0 {24 * GIB} {3 * GIB} {GIB} {21 * GIB}")
    gpu = start(driver).read_one()
    assert (gpu["total"], gpu["used"], gpu["free"]) == (24 * GIB, 2 * GIB, 21 * GIB)


@pytest.mark.parametrize("memory", ["0 0 0", f"{NOT_AVAILABLE} 5 0"])
def test_memory_of_0_bytes_or_no_figure_is_not_known(
    memory: str, make_driver: MakeDriver, start: StartReader
) -> None:
    """Some GPUs that share the machine's memory tell zeros, or N/A, which are no figures."""
    driver = make_driver()
    driver.configure("devices 0 1", f"memory 0 {memory}")
    gpu = start(driver).read_one()
    assert [gpu[name] for name in ("total", "used", "free")] == [None] * 3


MIG_INSTANCES = (
    "mig 0 1 100",
    "mig 0 4 101",
    *("uuid 100 MIG-c1", "name 100 NVIDIA A100 MIG 1g.5gb", f"memory 100 {5 * GIB} {GIB} 0"),
    *("uuid 101 MIG-c2", "name 101 NVIDIA A100 MIG 2g.10gb", f"memory 101 {10 * GIB} {MIB} 0"),
)


@pytest.mark.parametrize(
    ("refused", "parent"),
    [
        ((), "GPU-7ea2f0c1"),
        (("memory", "memory2", "compute", "graphics", "mps", "power"), "GPU-7ea2f0c1"),
        (("migmode",), "GPU-7ea2f0c1"),
        (("migmode", "migcount"), "GPU-7ea2f0c1"),
        (("all",), None),
    ],
)
def test_mig_instances_are_devices_instead_of_their_gpu(
    refused: Sequence[str],
    parent: str | None,
    make_driver: MakeDriver,
    start: StartReader,
    spawner: Spawner,
) -> None:
    """They are found even if the driver refuses calls for their GPU, as in a container."""
    pid = spawner.sleeper().pid
    driver = make_driver()
    driver.configure(
        *("devices 0 2", *COMPLETE, *MIG_INSTANCES, f"compute 100 {pid} {GIB}"),
        *(f"compute 0 {pid} {GIB}", f"fails compute 101 {NOT_SUPPORTED}", "uuid 1 GPU-whole"),
        *(f"fails {call} 0 {NO_PERMISSION}" for call in refused),
    )
    reader = start(driver)
    first, second, third = reader.read()
    assert first["component"] == "vram:nvidia0:mig1"
    assert (first["uuid"], first["parent"], first["index"]) == ("MIG-c1", parent, 1)
    assert first["name"] == "NVIDIA A100 MIG 1g.5gb"
    assert (first["total"], first["used"], first["free"]) == (5 * GIB, GIB, 4 * GIB)
    assert first["uses"] == [{"pid": pid, "memory": GIB, "gtt": None}]
    assert first["utilization_percent"] is None
    assert (second["component"], second["uuid"]) == ("vram:nvidia0:mig4", "MIG-c2")
    assert (second["used"], second["uses"]) == (MIB, None)
    assert (third["component"], third["uuid"]) == ("vram:nvidia1", "GPU-whole")
    assert reader.log == ""


def test_failed_mig_instance_hides_no_other_instance(
    make_driver: MakeDriver, start: StartReader
) -> None:
    driver = make_driver()
    driver.configure("devices 0 1", *MIG_INSTANCES, f"fails compute 100 {GPU_IS_LOST}")
    reader = start(driver)
    assert [gpu["uuid"] for gpu in reader.read()] == ["MIG-c2"]
    assert [gpu["uuid"] for gpu in reader.read()] == ["MIG-c2"]
    (line,) = reader.log.splitlines()
    assert "MIG instance 1 of NVIDIA GPU 0 cannot be read" in line


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (("migmode 0 1",), "MIG is enabled, and there is no MIG instance to use."),
        (("migmode 0 0", *MIG_INSTANCES), None),
    ],
)
def test_gpu_without_usable_mig_instances_is_listed_itself(
    lines: Sequence[str], note: str | None, make_driver: MakeDriver, start: StartReader
) -> None:
    driver = make_driver()
    driver.configure("devices 0 1", *COMPLETE, *lines)
    gpu = start(driver).read_one()
    assert (gpu["uuid"], gpu["note"]) == ("GPU-7ea2f0c1", note)


def test_failed_device_is_logged_once_and_found_again(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """Others are read meanwhile. NVML is initialized anew, as the driver may have been reloaded."""
    pid = spawner.sleeper().pid
    driver = make_driver()
    lines = ("devices 0 2", f"compute 0 {pid} {MIB}", f"compute 1 {pid} {2 * MIB}")
    driver.configure(*lines, f"fails compute 0 {GPU_IS_LOST}")
    reader = start(driver)
    assert reader.uses() == {"vram:nvidia1": {pid: 2 * MIB}}
    tries = driver.calls("compute 0")
    eventually(lambda: reader.read() and driver.calls("compute 0") > tries + 1)
    assert reader.log.count("\n") == 1
    assert "NVIDIA GPU 0 cannot be read, tried again every 0.3 s: GPU is lost" in reader.log
    driver.configure(*lines)
    both = {"vram:nvidia0": {pid: MIB}, "vram:nvidia1": {pid: 2 * MIB}}
    eventually(lambda: reader.uses() == both)
    assert driver.calls("init 0") > 1
    assert reader.log.count("\n") == 1
    driver.configure(*lines, f"fails compute 0 {GPU_IS_LOST}")
    assert reader.uses() == {"vram:nvidia1": {pid: 2 * MIB}}
    reader.close()
    assert reader.log.count("\n") == 2
    assert driver.calls("shutdown 0") == driver.calls("init 0")


def test_missing_descriptor_is_no_failure_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next read tries again immediately."""
    provider = NvidiaProvider(is_required=True)
    with monkeypatch.context() as patch:
        refuse_descriptors(patch, provider, "_count")
        with pytest.raises(OSError, match="Too many open files"):
            provider.read()
    monkeypatch.setattr(provider, "_count", lambda: 1)
    monkeypatch.setattr(provider, "_read_gpu", lambda index: [make_gpu({})])
    assert len(provider.read()) == 1


def test_device_that_failed_and_is_gone_is_not_tried_again(
    make_driver: MakeDriver, start: StartReader
) -> None:
    """NVML is not initialized anew for a MIG instance that was destroyed."""
    driver = make_driver()
    driver.configure("devices 0 1", *MIG_INSTANCES, f"fails compute 100 {GPU_IS_LOST}")
    reader = start(driver, retry_seconds=0.01)
    reader.read()
    driver.configure("devices 0 1", *MIG_INSTANCES[1:])
    eventually(lambda: reader.read() and driver.calls("init 0") == 2)
    for _ in range(5):
        time.sleep(0.02)
        reader.read()
    assert driver.calls("init 0") == 2


def test_gpu_that_appears_later_is_logged(start: StartReader, tmp_path: Path) -> None:
    """A driver was installed while the monitor runs, and its library is not found."""
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    options = {"is_required": False, "retry_seconds": 0.01, "device_folder": str(tmp_path)}
    reader = start(None, environment=environment, **options)
    assert (reader.read(), reader.log) == ([], "")
    (tmp_path / "nvidiactl").touch()
    eventually(lambda: reader.read() == [] and reader.log != "")
    assert NO_LIBRARY in reader.log


NOT_INSTALLED = "nvidia-ml-py is not installed: pip install 'monitor-plugin[nvidia]'"
NO_LIBRARY = "NVML Shared Library Not Found"


@pytest.mark.parametrize("is_required", [False, True])
@pytest.mark.parametrize("device_file", [None, "nvidiactl", "nvidia0"])
@pytest.mark.parametrize(("missing", "why"), [("package", NOT_INSTALLED), ("library", NO_LIBRARY)])
def test_machine_without_gpu_or_library_is_logged_only_if_one_is_expected(
    missing: str,
    why: str,
    device_file: str | None,
    is_required: bool,
    start: StartReader,
    tmp_path: Path,
) -> None:
    """One line if the operator has asked for NVIDIA's GPUs, or if the machine has one."""
    devices, folder = tmp_path / "dev", tmp_path / "empty"
    devices.mkdir()
    if device_file:
        (devices / device_file).touch()
    folder.mkdir()
    if missing == "package":
        (folder / "pynvml.py").write_text("raise ImportError('not here')")
        environment = {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    else:
        (folder / "libnvidia-ml.so.1").write_text("no library")
        environment = {"LD_LIBRARY_PATH": str(folder)}
    reader = start(
        None,
        environment=environment,
        is_required=is_required,
        device_folder=str(devices),
        retry_seconds=0.01,
    )
    assert [reader.read() for _ in range(3)] == [[], [], []]
    reader.close()
    line = (
        f"monitor_plugin.gpu.nvidia: NVIDIA's GPUs cannot be read, tried again every 0.01 s: {why}"
    )
    assert reader.log.splitlines() == ([line] if is_required or device_file else [])


@pytest.mark.parametrize("is_required", [False, True])
def test_driver_without_a_gpu_is_logged_only_if_one_is_required(
    is_required: bool, make_driver: MakeDriver, start: StartReader
) -> None:
    driver = make_driver()
    driver.configure("devices 0 0")
    reader = start(driver, is_required=is_required, retry_seconds=0.01)
    inits = 3 if is_required else 1
    eventually(lambda: reader.read() == [] and driver.calls("init 0") == inits)
    assert reader.log.count("the driver lists none\n") == is_required


def test_driver_that_is_loaded_later_is_found(
    make_driver: MakeDriver, start: StartReader, tmp_path: Path
) -> None:
    """A library without a driver is logged in any case: a driver was installed, and is missing."""
    driver = make_driver()
    driver.configure("devices 0 1", f"fails init 0 {DRIVER_NOT_LOADED}")
    reader = start(driver, is_required=False, device_folder=str(tmp_path))
    assert reader.read() == []
    eventually(lambda: reader.read() == [] and driver.calls("init 0") > 1)
    assert reader.log.splitlines() == [
        "monitor_plugin.gpu.nvidia: NVIDIA's GPUs cannot be read, tried again every 0.3 s: "
        "Driver Not Loaded"
    ]
    driver.configure("devices 0 1")
    eventually(lambda: len(reader.read()) == 1)


def test_ended_process_keeps_its_memory_while_the_driver_lists_it(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """The driver lists a process for some seconds after its end."""
    process, other = spawner.sleeper(), spawner.sleeper()
    driver = make_driver()
    of_other = f"compute 0 {other.pid} {MIB}"
    driver.configure("devices 0 1", of_other, f"compute 0 {process.pid} {GIB}")
    reader = start(driver)
    assert reader.uses() == {"vram:nvidia0": {other.pid: MIB, process.pid: GIB}}
    process.kill()
    process.wait()
    assert reader.uses() == {"vram:nvidia0": {other.pid: MIB, process.pid: GIB}}
    driver.configure("devices 0 1", of_other)
    assert reader.uses() == {"vram:nvidia0": {other.pid: MIB}}
    assert reader.log == ""


def test_unknown_pid_ends_attribution_while_it_is_listed(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """This holds for all devices. Other figures stay. The note and the log say what to do."""
    ended = spawner.sleeper()
    ended.kill()
    ended.wait()
    pid = spawner.sleeper().pid
    lines = ("devices 0 2", *COMPLETE, f"compute 0 {pid} {GIB}")
    driver = make_driver()
    driver.configure(*lines)
    reader = start(driver)
    known = {"vram:nvidia0": {pid: GIB}, "vram:nvidia1": {}}
    assert reader.uses() == known
    for _ in range(2):
        driver.configure(*lines, f"compute 1 {ended.pid} {MIB}")
        first, second = reader.read()
        assert (first["used"], first["uses"], second["uses"]) == (2 * GIB, None, None)
        assert first["note"] == second["note"]
        assert f"The driver lists PID {ended.pid}, which no process here has" in first["note"]
        assert "--pid=host" in first["note"]
        driver.configure(*lines)
        assert reader.uses() == known
    assert reader.log == f"monitor_plugin.gpu.nvidia: {first['note']} (logged once)\n"


def test_later_process_with_a_listed_pid_is_not_charged(
    make_driver: MakeDriver, start: StartReader, spawner: Spawner
) -> None:
    """A process that started after the driver listed its PID is not the listed process."""
    first, other = spawner.sleeper(), spawner.sleeper()
    driver = make_driver()
    driver.configure("devices 0 1", f"compute 0 {other.pid} 1", f"compute 0 {first.pid} {GIB}")
    reader = start(driver)
    assert reader.uses() == {"vram:nvidia0": {other.pid: 1, first.pid: GIB}}
    first.kill()
    first.wait()
    spawn_with_pid(spawner, first.pid)
    gpu = reader.read_one()
    assert gpu["uses"] is None
    assert f"The driver listed PID {first.pid} before the process with this PID" in gpu["note"]
    driver.configure("devices 0 1", f"compute 0 {other.pid} 1")
    assert reader.uses() == {"vram:nvidia0": {other.pid: 1}}
    driver.configure("devices 0 1", f"compute 0 {other.pid} 1", f"compute 0 {first.pid} {GIB}")
    assert reader.uses() == {"vram:nvidia0": {other.pid: 1, first.pid: GIB}}


@pytest.mark.parametrize("proc", ["--mount-proc", "--"])
def test_monitor_in_a_pid_namespace_charges_no_process(
    proc: str, make_driver: MakeDriver, start: StartReader
) -> None:
    """The same holds with the machine's procfs. PID 1 exists in both namespaces."""
    driver = make_driver()
    driver.configure("devices 0 2", *COMPLETE, f"compute 0 1 {GIB}")
    reader = start(driver, by=(*in_namespace(*PID_NAMESPACE), proc))
    first, second = reader.read()
    assert (first["used"], first["uses"], second["uses"]) == (2 * GIB, None, None)
    assert first["note"] == second["note"]
    assert "--pid=host" in first["note"]
    assert reader.log == f"monitor_plugin.gpu.nvidia: {first['note']} (logged once)\n"


def gpus_of(watched: Watched) -> list[dict[str, Any]]:
    """Return the devices of `GET /gpus`."""
    found: list[dict[str, Any]] = watched.client.request("GET", "/gpus").json["gpus"]
    return found


def test_monitor_charges_models_on_mig_instances_of_a_refused_gpu(
    make_driver: MakeDriver, spawner: Spawner, tmp_path: Path
) -> None:
    """The sums agree: the used memory is `ours` + `others` + `unexplained`."""
    pids = [spawner.sleeper().pid for _ in range(2)]
    driver = make_driver()
    driver.configure(
        *("devices 0 1", *MIG_INSTANCES, f"fails all 0 {NO_PERMISSION}"),
        *(f"compute 100 {pids[0]} {600 * MIB}", f"compute 100 {pids[1]} {400 * MIB}"),
    )
    watched = watch(spawner, tmp_path, None, {"m": pids[0]}, **driver.environment)
    assert watched.breakdown() == {"vram:nvidia0:mig1": 600 * MIB}
    first, second = gpus_of(watched)
    assert (first["uuid"], second["uuid"]) == ("MIG-c1", "MIG-c2")
    assert first["models"] == [{"model": "m", "pid": pids[0], "memory": 600 * MIB, "gtt": None}]
    sums = [first[name] for name in ("used", "ours", "others", "unexplained")]
    assert sums == [GIB, 600 * MIB, 400 * MIB, 24 * MIB]
    assert (second["ours"], second["unexplained"], first["note"]) == (0, MIB, None)
    watched.close()
    assert watched.log == ""


def test_monitor_charges_no_model_with_pids_of_another_namespace(
    make_driver: MakeDriver, spawner: Spawner, tmp_path: Path
) -> None:
    """A PID that does not exist here shows that the backend's PID may be that of another process.

    Attribution resumes when the driver no longer lists that PID.
    """
    ended = spawner.sleeper()
    ended.kill()
    ended.wait()
    pid = spawner.sleeper().pid
    driver = make_driver()
    lines = ("devices 0 2", *COMPLETE, f"compute 0 {pid} {GIB}")
    driver.configure(*lines, f"compute 1 {ended.pid} {MIB}")
    watched = watch(spawner, tmp_path, None, {"m": pid}, **driver.environment)
    assert watched.breakdown() == {}
    for gpu in gpus_of(watched):
        assert (gpu["models"], gpu["processes"], gpu["ours"]) == ([], [], None)
        assert "--pid=host" in gpu["note"]
    driver.configure(*lines)
    eventually(lambda: watched.breakdown() == {"vram:nvidia0": GIB})
    assert gpus_of(watched)[0]["note"] is None
    watched.close()
    assert watched.log.count("\n") == 1


def test_ended_process_is_not_charged_to_its_model_while_it_is_listed(
    make_driver: MakeDriver, spawner: Spawner, tmp_path: Path
) -> None:
    """It is listed by its PID, and the memory of other models stays known."""
    process, other = spawner.sleeper(), spawner.sleeper()
    driver = make_driver()
    of_other = f"compute 0 {other.pid} {MIB}"
    driver.configure("devices 0 1", *COMPLETE, of_other, f"compute 0 {process.pid} {GIB}")
    pids = {"m": other.pid, "ended": process.pid}
    watched = watch(spawner, tmp_path, None, pids, **driver.environment)
    assert watched.breakdown("ended") == {"vram:nvidia0": GIB}
    process.kill()
    process.wait()
    of_ended = {"pid": process.pid, "name": None, "user": None, "memory": GIB, "gtt": None}
    eventually(lambda: gpus_of(watched)[0]["processes"] == [of_ended])
    (gpu,) = gpus_of(watched)
    assert (gpu["ours"], gpu["others"], gpu["note"]) == (MIB, GIB, None)
    driver.configure("devices 0 1", *COMPLETE, of_other)
    eventually(lambda: gpus_of(watched)[0]["others"] == 0)
    watched.close()
    assert "PID" not in watched.log


def test_shutdown_answers_when_the_driver_lists_the_ended_process_no_longer(
    make_driver: MakeDriver, spawner: Spawner, tmp_path: Path
) -> None:
    """A model that is loaded then finds the memory free. Other models still hold theirs."""
    process, other = spawner.sleeper(), spawner.sleeper()
    driver = make_driver()
    of_other = f"compute 0 {other.pid} {MIB}"
    driver.configure("devices 0 1", *COMPLETE, of_other, f"compute 0 {process.pid} {GIB}")
    pids = {"m": process.pid, "other": other.pid}
    watched = watch(spawner, tmp_path, None, pids, **driver.environment)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watched.client.shutdown, "m")
        process.wait(60)
        calls = driver.calls("compute 0")
        eventually(lambda: driver.calls("compute 0") >= calls + 2)
        assert not answer.done()
        driver.configure("devices 0 1", *COMPLETE, of_other)
        freed = answer.result(60).headers["X-Monitor-Freed"]
    assert re.fullmatch(rf"memory=\d+, gpu={GIB}, seconds=\d+\.\d+", freed)
    watched.close()
    assert watched.log == ""


# Registers a process of its own PID namespace, in which the driver lists its PID for another one.
IN_NAMESPACE = """
import json, subprocess
import monitor_plugin

class Ready:
    @monitor_plugin.hookimpl
    def monitor_query_status(self, backend):
        return monitor_plugin.Status(monitor_plugin.State.READY)

backend = subprocess.Popen(["sleep", "1000"])
settings = monitor_plugin.Settings(listen=None, sweep_interval_seconds=0)
with monitor_plugin.Monitor(settings, [Ready()]) as monitor:
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address="127.0.0.1:1")
    print(backend.pid, flush=True)
    input()
    gpus = [[gpu.uses, gpu.note] for gpu in monitor.gpus()]
    print(json.dumps([monitor.read("m").status.memory.breakdown, gpus]), flush=True)
    backend.kill()
    backend.wait()
"""


def test_monitor_in_a_container_charges_no_model_with_the_pids_of_the_machine(
    make_driver: MakeDriver, spawner: Spawner
) -> None:
    driver = make_driver()
    driver.configure("devices 0 1", *COMPLETE)
    process = spawner.process(
        *(*in_namespace(*PID_NAMESPACE, "--mount-proc"), sys.executable, "-c", IN_NAMESPACE),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **driver.environment},
    )
    assert process.stdout
    pid = int(process.stdout.readline())
    driver.configure("devices 0 1", *COMPLETE, f"compute 0 {pid} {GIB}")
    output, log = process.communicate("\n", timeout=60)
    breakdown, ((uses, note),) = json.loads(output)
    assert (breakdown, uses) == ({}, None)
    assert "--pid=host" in note
    assert log.count("--pid=host") == 1
