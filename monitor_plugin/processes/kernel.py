"""Finds out what the kernel refuses, such as by a container's seccomp profile, and logs it once."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .process import read_exit_info
from .process_table import shows_exit_codes
from .tree_memory import read_rollup

_logger = logging.getLogger(__name__)

_WAIT_OPTIONS = os.WEXITED | os.WNOHANG | os.WNOWAIT
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Fallback(NamedTuple):
    """A replacement for something that the kernel refuses.

    Attributes:
        refused: the system call or the file, such as `pidfd_open`.
        reason: the text of the error, such as `Operation not permitted`.
        instead: the replacement, as a sentence for the log.
    """

    refused: str
    reason: str
    instead: str


class KernelProbe:
    """Tries on the monitor's own process what the monitor needs for other processes.

    Attributes:
        fallbacks: those that `run` has found; empty before.
        has_run: whether `run` has found them.
    """

    def __init__(self) -> None:
        self.fallbacks: tuple[Fallback, ...] = ()
        self.has_run = False

    def run(self) -> None:
        """Probe, and log a warning for each fallback. Later calls do nothing.

        Raises:
            OSError: no file descriptor is free.
        """
        if self.has_run:
            return
        self.fallbacks = tuple(_find_fallbacks())
        self.has_run = True
        for each in self.fallbacks:
            _logger.warning("the kernel refuses %s (%s): %s", *each)


def _find_fallbacks() -> Iterator[Fallback]:
    yield from _find_pidfd_fallbacks()
    if reason := _refusal(lambda: read_rollup(os.getpid())):
        instead = "memory is the sum of RSS, in which shared pages count once per process"
        yield Fallback("/proc/PID/smaps_rollup", reason, instead)
    with contextlib.suppress(OSError):  # no /proc: no process can be read at all
        if not shows_exit_codes():
            instead = "exit codes are known of child processes alone, unless the host reports them"
            yield Fallback("exit codes in /proc/PID/stat", "all are 0", instead)


def _find_pidfd_fallbacks() -> Iterator[Fallback]:
    if not hasattr(os, "pidfd_open"):
        reason: str | None = "this Python was built for an older kernel"
    else:
        reason = _refusal(lambda: os.close(os.pidfd_open(os.getpid())))
    if reason:
        instead = (
            "the ends of processes are noticed by polling, and signals are sent by kill after a "
            "comparison of creation times"
        )
        yield Fallback("pidfd_open", reason, instead)
        return
    pidfd = os.pidfd_open(os.getpid())
    try:
        if reason := _refusal(lambda: signal.pidfd_send_signal(pidfd, 0)):
            yield Fallback("pidfd_send_signal", reason, "signals are sent by kill")
        if reason := _refusal(lambda: _register(pidfd)):
            instead = "the ends of processes are noticed by polling"
            yield Fallback("epoll_ctl for pidfds", reason, instead)
        if reason := _refusal(lambda: os.waitid(os.P_PIDFD, pidfd, _WAIT_OPTIONS)):
            yield Fallback("waitid for pidfds", reason, "waitid gets PIDs")
        # Kernels before Linux 6.15 answer EINVAL or ENOTTY, which is no reason for a warning.
        if reason := _refusal(lambda: read_exit_info(pidfd), errno.EINVAL, errno.ENOTTY):
            instead = "the exit code of a process that was reaped is known from the host alone"
            yield Fallback("PIDFD_GET_INFO", reason, instead)
    finally:
        os.close(pidfd)


def _register(pidfd: int) -> None:
    with select.epoll() as epoll:
        epoll.register(pidfd, select.EPOLLIN)


def _refusal(call: Callable[[], object], *expected: int) -> str | None:
    try:
        call()
    except ChildProcessError:
        pass
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise
        return None if error.errno in expected else error.strerror
    return None
