"""Checks what the monitor cannot see or do on this machine, for `GET /readyz?verbose`.

No check names a model. A check whose answer cannot be found out has `ok` None.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import resource
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from ..backends.registry import Record, Registry
from ..config.descriptors import max_pidfds
from ..domain.gpus import gpus_without_uses
from ..gpu.reader import GpuReader
from ..gpu.reading import GpuReading
from ..plugins.hooks import Hooks
from ..processes.control_group_files import find_folders, read_mounts
from ..processes.control_groups import ControlGroups
from ..processes.kernel import Fallback, KernelProbe
from ..processes.kernel_files import read_text
from .results import CheckItem

# The share of the limit of descriptors that may be in use: a burst of connections needs the rest.
_DESCRIPTORS_SHARE = 0.75
# A lower limit is too low: half of it is for connections, an eighth each for pidfds and channels.
_LEAST_DESCRIPTORS = 256
# A reading of this age is used. The monitor reads GPUs every 5 s if that is cheap.
_GPU_AGE_SECONDS = 20.0
# CLOCK_BOOTTIME is slewed like the system clock, so that only a step changes their difference.
_CLOCK_STEP_SECONDS = 2.0
_FIRST_YEAR = 2024  # a correct clock cannot show an earlier year
_EXIT_CODES = ("exit codes in /proc/PID/stat", "PIDFD_GET_INFO")
_ROLLUP = "/proc/PID/smaps_rollup"


class Doctor:
    """Runs all checks. Safe to call from any thread; waits at most 1 s, for drivers of GPUs.

    Args:
        unseen: what the monitor cannot see of other users' processes; None if it sees all.
        kernel_probe: knows what the kernel refuses.
        registry: the registered backends.
        gpu_reader: reads the GPUs.
        gpu_setting: the setting `gpu`.
        hooks: know what hosts can do.
        control_groups: read the monitor's own control groups.
        hooks_dir: the setting `hooks_dir`.
        now: tells the time in seconds since the epoch.
    """

    def __init__(
        self,
        unseen: str | None,
        kernel_probe: KernelProbe,
        registry: Registry,
        gpu_reader: GpuReader,
        gpu_setting: str,
        hooks: Hooks,
        control_groups: ControlGroups,
        hooks_dir: str | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._unseen = unseen
        self._kernel_probe = kernel_probe
        self._registry = registry
        self._gpu_reader = gpu_reader
        self._gpu_setting = gpu_setting
        self._hooks = hooks
        self._control_groups = control_groups
        self._hooks_dir = hooks_dir
        self._now = now
        self._booted_at = self._find_boot()

    def examine(self) -> list[CheckItem]:
        """Run all checks, always in the same order."""
        records = self._registry.records()
        fallbacks = self._kernel_probe.fallbacks
        folders = self._memory_folders()
        of_kernel = [
            check_process_handles(fallbacks),
            check_exit_codes(fallbacks),
            check_shared_memory(fallbacks, records),
        ]
        if not self._kernel_probe.has_run:
            message = "not known before the monitor has started"
            of_kernel = [CheckItem(each.name, None, message) for each in of_kernel]
        return [
            check_other_users(self._unseen),
            *of_kernel,
            check_memory_limits(folders),
            check_swap(folders),
            check_gpus(
                self._gpu_setting, _has_nvidia_device(), self._gpu_reader.read(_GPU_AGE_SECONDS)
            ),
            check_stop_hook(self._hooks.may_stop_backend()),
            check_start_hook(self._hooks.may_start_model()),
            check_known_models(self._hooks.may_list_models()),
            check_logs(self._hooks.may_read_log(), [each.backend.pid for each in records]),
            check_hook_files(self._hooks_dir),
            check_clock(self._now(), self._find_boot() - self._booted_at, self._find_offset()),
            check_descriptors(
                _count_descriptors(), *resource.getrlimit(resource.RLIMIT_NOFILE), len(records)
            ),
        ]

    def _find_boot(self) -> float:
        """Return when the machine was started, by the system clock of now."""
        return self._now() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def _find_offset(self) -> float | None:
        """Return by how much the monitor's clock is ahead of the kernel's; None if not known."""
        try:
            match = re.search(r"^btime (\d+)$", read_text("/proc/stat"), re.MULTILINE)
        except OSError:
            return None
        return self._find_boot() - int(match[1]) if match else None

    def _memory_folders(self) -> list[str]:
        """List the folders of the monitor's groups that can have a memory controller."""
        groups = self._control_groups.of(os.getpid(), 0.0, 0.0).own
        mounts = read_mounts()
        return [
            folder
            for group in groups
            if group.has("memory") or group.has("")
            for folder in find_folders(group, mounts)
        ]


def check_other_users(unseen: str | None) -> CheckItem:
    """Check that the processes of other users can be seen."""
    if unseen is None:
        return CheckItem("other_users", True, "the processes of all users can be seen")
    advice = (
        "run the monitor as root, or as the user of the backends and without hidepid "
        "(systemd: ProtectProc=default)"
    )
    return CheckItem("other_users", False, unseen, advice)


def check_process_handles(fallbacks: Iterable[Fallback]) -> CheckItem:
    """Check that the kernel gives pidfds, by which a process is watched and signalled."""
    others = [each for each in fallbacks if each.refused not in (*_EXIT_CODES, _ROLLUP)]
    if not others:
        return CheckItem("process_handles", True, "processes are watched and signalled by pidfds")
    advice = (
        "let the seccomp profile of the container allow pidfd_open, pidfd_send_signal, waitid and "
        "epoll_ctl, or use Linux 5.4 or newer"
    )
    return CheckItem("process_handles", False, _describe_fallbacks(others), advice)


def check_exit_codes(fallbacks: Iterable[Fallback]) -> CheckItem:
    """Check that the exit codes of processes can be read that are not the monitor's children."""
    found = [each for each in fallbacks if each.refused in _EXIT_CODES]
    if not found:
        return CheckItem("exit_codes", True, "the kernel tells the exit codes of processes")
    advice = "run the monitor as root, or let the host report exit codes (monitor_backend_exited)"
    return CheckItem("exit_codes", False, _describe_fallbacks(found), advice)


def check_shared_memory(fallbacks: Iterable[Fallback], records: Sequence[Record]) -> CheckItem:
    """Check that PSS can be read, in which shared pages count once."""
    name = "shared_memory"
    found = [each for each in fallbacks if each.refused == _ROLLUP]
    if found:
        advice = "let the container read /proc/PID/smaps_rollup, or use Linux 4.14 or newer"
        return CheckItem(name, False, _describe_fallbacks(found), advice)
    memories = [each.tree_memory for each in records if each.tree_memory]
    unread = sum(memory.pss is None for memory in memories)
    if unread:
        message = (
            f"PSS of {unread} of {len(memories)} backends cannot be read: their memory is the sum "
            "of RSS, in which shared pages count once per process"
        )
        advice = "run the monitor as root or as the user of the backends, or give it CAP_SYS_PTRACE"
        return CheckItem(name, False, message, advice)
    return CheckItem(name, True, "PSS can be read: shared pages count once")


def _describe_fallbacks(fallbacks: Iterable[Fallback]) -> str:
    return "; ".join(
        f"the kernel refuses {each.refused} ({each.reason}): {each.instead}" for each in fallbacks
    )


def check_memory_limits(folders: Sequence[str]) -> CheckItem:
    """Check that a control group with the memory controller can be read.

    Args:
        folders: the folders of the monitor's control groups, of both versions.
    """
    name = "memory_limits"
    if _exists(folders, "memory.limit_in_bytes") or _exists(folders, "memory.max"):
        return CheckItem(name, True, "the limits of memory of control groups can be read")
    # The root group of version 2 has no `memory.max`, and names the controllers below it.
    if any("memory" in _read_words(f"{folder}/cgroup.controllers") for folder in folders):
        return CheckItem(name, True, "the limits of memory of control groups can be read")
    message = (
        "no control group with the memory controller can be read: limits of memory and kills for "
        "want of memory are not seen"
    )
    advice = (
        "let the container see /sys/fs/cgroup, and enable the controller "
        "(cgroup_enable=memory on the kernel's command line)"
    )
    return CheckItem(name, False, message, advice)


def check_swap(folders: Sequence[str], swaps: str = "/proc/swaps") -> CheckItem:
    """Check that the limits of control groups count swap, on a machine that has swap."""
    try:
        has_swap = len(read_text(swaps).splitlines()) > 1  # the first line is the header
    except OSError:
        return CheckItem("swap", None, "it is not known whether the machine has swap")
    if not has_swap:
        return CheckItem("swap", True, "the machine has no swap")
    files = ("memory.memsw.limit_in_bytes", "memory.swap.max")
    if any(_exists(folders, file) for file in files):
        return CheckItem("swap", True, "control groups count swap")
    if not any(_exists(folders, file) for file in ("memory.limit_in_bytes", "memory.max")):
        return CheckItem("swap", None, "it is not known whether control groups count swap")
    message = "control groups do not count swap: a backend at its limit of memory fills the swap"
    return CheckItem("swap", False, message, "add swapaccount=1 to the kernel's command line")


def _exists(folders: Iterable[str], file: str) -> bool:
    return any(os.access(f"{folder}/{file}", os.F_OK) for folder in folders)


def _read_words(path: str) -> list[str]:
    try:
        return read_text(path).split()
    except OSError:
        return []


def check_gpus(setting: str, has_nvidia_device: bool, reading: GpuReading) -> CheckItem:
    """Check that the GPUs can be read, and which processes use them.

    Args:
        setting: the setting `gpu`.
        has_nvidia_device: whether the machine has device files of NVIDIA's GPUs.
        reading: the last reading.
    """
    name = "gpus"
    if setting == "off":
        return CheckItem(name, True, "GPUs are not read, because the setting gpu is off")
    if reading.taken_at == -math.inf:
        return CheckItem(name, None, "the drivers of GPUs have not answered yet")
    wants_nvidia = setting == "nvidia" or (setting == "auto" and has_nvidia_device)
    if wants_nvidia and not any(gpu.vendor == "nvidia" for gpu in reading.gpus):
        message = "no NVIDIA GPU can be read"
        message += ", although the machine has device files of one" if has_nvidia_device else ""
        advice = (
            "make the driver's library libnvidia-ml.so.1 visible to the monitor (in a container by "
            "the NVIDIA Container Toolkit); the monitor's log says what failed"
        )
        if importlib.util.find_spec("pynvml") is None:
            advice = "pip install 'monitor-plugin[nvidia]'"
        return CheckItem(name, False, message, advice)
    if setting == "drm" and not reading.gpus:
        return CheckItem(
            name, False, "no GPU of AMD or Intel was found", "let the monitor see /sys/class/drm"
        )
    count = len(reading.gpus)
    if late := sum(map(reading.is_stale, reading.gpus)):
        message = f"the drivers of {late} of {count} GPUs do not answer: their figures are old"
        return CheckItem(name, False, message, "look for errors of the driver in dmesg")
    if unread := len(gpus_without_uses(reading.gpus)):
        message = f"it is not known which processes use {unread} of {count} GPUs"
        return CheckItem(name, False, message, "`monitor-plugin gpus` says why, and what to do")
    return CheckItem(name, True, f"GPUs that are read: {count}")


def _has_nvidia_device() -> bool:
    return any(Path("/dev").glob("nvidia*"))


def check_stop_hook(has_hook: bool) -> CheckItem:
    """Check that a host stops its backends itself."""
    if has_hook:
        return CheckItem("stop_hook", True, "backends are stopped through their host")
    consequence = (
        "backends are stopped by signals, and a host that restarts what ends starts them again"
    )
    return _without_hook("stop_hook", "monitor_stop_backend", consequence)


def check_start_hook(has_hook: bool) -> CheckItem:
    """Check that a host can start models."""
    if has_hook:
        return CheckItem("start_hook", True, "models are started through their host")
    consequence = "no model can be started or restarted"
    return _without_hook("start_hook", "monitor_start_model", consequence)


def check_known_models(has_hook: bool) -> CheckItem:
    """Check that a host lists the models that it can run."""
    if has_hook:
        return CheckItem("known_models", True, "the host lists the models that it can run")
    consequence = "a model without a backend is not seen"
    return _without_hook("known_models", "monitor_list_models", consequence)


def _without_hook(name: str, hook: str, consequence: str) -> CheckItem:
    advice = (
        f"implement {hook} for the host; `monitor-plugin supervisord` and the plugin for circus "
        "have it"
    )
    return CheckItem(name, False, f"no plugin has {hook}: {consequence}", advice)


def check_logs(has_hook: bool, pids: Sequence[int]) -> CheckItem:
    """Check that the logs of backends can be read.

    Args:
        has_hook: whether a plugin reads logs.
        pids: the registered processes.
    """
    if has_hook:
        return CheckItem("logs", True, "the logs of backends are read through their host")
    if not pids:
        message = "no backend runs, and no plugin has monitor_read_log"
        return CheckItem("logs", None, message)
    without = sum(not _writes_to_file(pid) for pid in pids)
    if not without:
        return CheckItem("logs", True, "the logs of backends are read from their files")
    message = (
        f"the logs of {without} of {len(pids)} backends cannot be read: no plugin has "
        "monitor_read_log, and their standard output and error are no files that can be read"
    )
    advice = "implement monitor_read_log for the host, or let backends write to files"
    return CheckItem("logs", False, message, advice)


def _writes_to_file(pid: int) -> bool:
    """Whether the standard output or error of a process is a regular file."""
    for number in (2, 1):
        try:
            if stat.S_ISREG(os.stat(f"/proc/{pid}/fd/{number}").st_mode):
                return True
        except OSError:  # the process has ended or belongs to another user, or this one is closed
            continue
    return False


def check_hook_files(hooks_dir: str | None) -> CheckItem:
    """Check that there is a folder of hook files, which is optional."""
    if hooks_dir is not None:
        return CheckItem("hook_files", True, "hook files are loaded from the folder hooks_dir")
    return CheckItem(
        "hook_files",
        True,
        "no hook files are loaded: the setting hooks_dir names no folder",
        "set hooks_dir to use hook files, such as those that limit memory or send notifications",
    )


def check_clock(now: float, step_seconds: float, offset_seconds: float | None) -> CheckItem:
    """Check that the system clock can be right, and was not set while the monitor runs.

    Args:
        now: the time in seconds since the epoch.
        step_seconds: by how much the clock was set forward since the monitor was made.
        offset_seconds: by how much the monitor's clock is ahead of the one by which the kernel
            tells when processes were created; None if that is not known.
    """
    advice = "let chrony or systemd-timesyncd set the clock, and then restart the monitor"
    year = datetime.fromtimestamp(now, timezone.utc).year
    if year < _FIRST_YEAR:
        message = f"the system clock is wrong: it shows the year {year}"
        return CheckItem("clock", False, message, advice)
    if abs(step_seconds) > _CLOCK_STEP_SECONDS:
        way = "forward" if step_seconds > 0 else "back"
        message = (
            f"the system clock was set {way} by {abs(step_seconds):.0f} s while the monitor ran: "
            "times of events and processes before that are off"
        )
        return CheckItem("clock", False, message, advice)
    if offset_seconds is not None and abs(offset_seconds) > _CLOCK_STEP_SECONDS:
        way = "ahead of" if offset_seconds > 0 else "behind"
        message = (
            f"the monitor's clock is {abs(offset_seconds):.0f} s {way} the kernel's: ages of "
            "processes are off"
        )
        advice = "start the monitor without what gives it another time, such as libfaketime"
        return CheckItem("clock", False, message, advice)
    return CheckItem("clock", True, "the system clock was not set while the monitor ran")


def check_descriptors(used: int | None, soft: int, hard: int, backends: int) -> CheckItem:
    """Check that the monitor's process has enough file descriptors.

    Args:
        used: how many descriptors are open; None if that is not known.
        soft: the soft limit; `resource.RLIM_INFINITY` for none.
        hard: the hard limit, up to which `soft` may be raised.
        backends: how many backends are registered.
    """
    name = "descriptors"
    if used is None:
        return CheckItem(name, None, "it is not known how many file descriptors are open")
    if soft == resource.RLIM_INFINITY:
        return CheckItem(name, True, f"{used} file descriptors are open; there is no limit")
    message = f"{used} of {soft} file descriptors are open"
    advice: str | None = "raise the hard limit of open files, and then the limit"
    if hard == resource.RLIM_INFINITY or hard > soft:
        most = "no limit" if hard == resource.RLIM_INFINITY else hard
        advice = (
            f"raise the limit, up to {most}: ulimit -n, LimitNOFILE of systemd, minfds of "
            "supervisord"
        )
    if used > _DESCRIPTORS_SHARE * soft:
        return CheckItem(name, False, f"{message}, which is too many", advice)
    if soft < _LEAST_DESCRIPTORS:
        return CheckItem(name, False, f"{message}, and that limit is low", advice)
    if backends > max_pidfds():
        message += f": the ends of {backends - max_pidfds()} backends are noticed by polling"
        return CheckItem(name, False, message, advice)
    return CheckItem(name, True, message)


def _count_descriptors() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists the folder
    except OSError:  # none is free, or there is no /proc
        return None
