"""Processes in other namespaces, and with a PID of one's choice."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ..support import Spawner

# struct clone_args of linux/sched.h has exit_signal (SIGCHLD) as its fifth field, and set_tid and
# its size as the ninth and tenth. 435 is clone3 on all architectures.
_CLONE3 = """
import ctypes, os, sys
pid = (ctypes.c_int * 1)(int(sys.argv[1]))
arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(pid), 1, 0)
made = ctypes.CDLL(None, use_errno=True).syscall(435, arguments, ctypes.sizeof(arguments))
if made == 0:
    os.execvp("sleep", ["sleep", "1000"])
print("made" if made > 0 else os.strerror(ctypes.get_errno()), flush=True)
"""


def spawn_with_pid(spawner: Spawner, pid: int) -> None:
    """Start a process with a free PID. Skips the test where the kernel does not support that."""
    maker = spawner.python(_CLONE3, str(pid))
    assert maker.stdout
    made = maker.stdout.readline().strip()
    if made != "made":
        pytest.skip(f"no process can have a PID of one's choice here: {made}")


def in_namespace(*flags: str) -> list[str]:
    """Return the beginning of a command that runs in new namespaces: flags of unshare."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *as_root, *flags]
    if not shutil.which("unshare"):
        pytest.skip("needs the program unshare (util-linux)")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=60)
    if tried.returncode:
        pytest.skip(f"no such namespaces can be made here: {tried.stderr.strip()}")
    return command
