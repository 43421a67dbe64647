"""Makes the kernel refuse system calls, as the seccomp profile of a container does."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Mapping
from typing import NamedTuple

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# linux/bpf_common.h and linux/seccomp.h.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_ARGUMENTS_OFFSET = 16  # in struct seccomp_data; the arguments have 8 bytes each

_OLD_NUMBERS = {  # of the system calls that have another number on each machine
    "x86_64": {"waitid": 247, "ioctl": 16, "epoll_ctl": 233},
    "aarch64": {"waitid": 95, "ioctl": 29, "epoll_ctl": 21},
}


class _Call(NamedTuple):
    """A system call, refused always or where one of its arguments has a value."""

    name: str
    argument: int = 0
    value: int | None = None

    def number(self) -> int:
        common = {"pidfd_send_signal": 424, "pidfd_open": 434}
        return {**common, **_OLD_NUMBERS[platform.machine()]}[self.name]


_CALLS = {
    "pidfd_open": _Call("pidfd_open"),
    "pidfd_send_signal": _Call("pidfd_send_signal"),
    "waitid(P_PIDFD)": _Call("waitid", 0, 3),
    "PIDFD_GET_INFO": _Call("ioctl", 1, 0xC040FF0B),
    "epoll_ctl": _Call("epoll_ctl"),
}


def refuse(refused: Mapping[str, int]) -> None:
    """Refuse system calls to this thread, and to the threads and processes that it starts later.

    Args:
        refused: names of `_CALLS`, and the error number that each call fails with.

    Raises:
        OSError: the kernel accepts no filter.
    """
    program = b""
    for name, error in refused.items():
        call = _CALLS[name]
        checks = [(0, call.number())]  # the system call's number is the first field
        if call.value is not None:
            checks.append((_ARGUMENTS_OFFSET + 8 * call.argument, call.value))
        for remaining, (offset, value) in zip(range(len(checks) - 1, -1, -1), checks, strict=True):
            program += _instruction(_LOAD, offset)
            program += _instruction(_JUMP_IF_EQUAL, value, if_false=2 * remaining + 1)
        program += _instruction(_RETURN, _REFUSE | error)
    program += _instruction(_RETURN, _ALLOW)
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    filter_mode = (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), filter_mode):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _instruction(code: int, value: int, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, if_false, value)
