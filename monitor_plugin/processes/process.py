"""One process, told apart by PID and creation time: is it alive, how did it end, signal it.

A PID alone is no identity: it is used again. On Linux a pidfd stays with the process for which it
was opened; elsewhere, and where descriptors run out, psutil compares creation times.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import threading
from types import TracebackType

import psutil

# struct pidfd_info as it first was: two u64, eleven u32 and the exit code, an s32.
_PIDFD_INFO_BYTES = 64
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_BYTES << 16 | 0xFF << 8 | 11


class ProcessGone(Exception):
    """The process has ended, or never ran.

    Attributes:
        pid: its PID.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} does not run")
        self.pid = pid


class Process:
    """A running process. Close it, or use it in a `with`, to let go of its descriptor.

    Args:
        pid: its PID; a thread's id is refused.
        keep_descriptor: keep a pidfd open, by which its end is noticed without polling.

    Attributes:
        pid: its PID.
        created_at: seconds since the epoch, as psutil gives it.
        psutil_process: psutil's view, for reading figures; follow what you read by `ended()`.

    Raises:
        ProcessGone: no such process runs.
    """

    def __init__(self, pid: int, *, keep_descriptor: bool = True) -> None:
        self.pid = pid
        # Held for single system calls that do not block, so that no descriptor is used after
        # another thread closed it, when its number may stand for another process.
        self._lock = threading.Lock()
        self._pidfd = _open_pidfd(pid) if keep_descriptor else None
        try:
            if not psutil.pid_exists(pid):  # false for a thread's id, unlike psutil.Process
                raise ProcessGone(pid)
            self.psutil_process = psutil.Process(pid)
            self.created_at: float = self.psutil_process.create_time()
        except (psutil.NoSuchProcess, OverflowError):
            self.close()
            raise ProcessGone(pid) from None
        except BaseException:
            self.close()
            raise
        if self.ended():
            self.close()
            raise ProcessGone(pid)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pidfd(self) -> int | None:
        """The pidfd, readable once the process has ended; None where there is none."""
        return self._pidfd

    def ended(self) -> bool:
        """Whether it has ended; a zombie, which only waits to be reaped, has."""
        with self._lock:
            if self._pidfd is not None:
                return _is_readable(self._pidfd)
        try:
            if not self.psutil_process.is_running():
                return True
            # A zombie whose other threads run on has not ended.
            return (
                self.psutil_process.status() == psutil.STATUS_ZOMBIE
                and _thread_count(self.pid) <= 1
            )
        except psutil.NoSuchProcess:
            return True
        except OSError:  # no descriptor is left to look with; where its PID is used, it may run
            return not _is_used(self.pid)

    def exit_code(self) -> int | None:
        """How it ended, as `subprocess` says it: a negative number is a signal's.

        Reaps nothing: the status stays for the parent to take. None where it has not ended, or
        where that cannot be known. Known are: a child of our own until it is reaped, a zombie of
        the same user (/proc), and, from Linux 6.15 on, what was reaped by whomever.
        """
        with self._lock:
            if self._pidfd is not None:
                try:
                    ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                except ChildProcessError:
                    ended = None
                if ended is not None:
                    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        code = self._zombie_exit_code()
        return self._reaped_exit_code() if code is None else code

    def _zombie_exit_code(self) -> int | None:
        try:
            with open(f"/proc/{self.pid}/stat", encoding="latin-1") as file:
                fields = file.read().rpartition(")")[2].split()
            # Who may not see how another user's ended reads 0, which would pass for a good end.
            may_be_hidden = os.stat(f"/proc/{self.pid}").st_uid != os.geteuid()
            if may_be_hidden and fields[49] == "0":
                return None
            # Fields 3 and 52 of proc(5); the first after the name in parentheses is number 3.
            if fields[0] == "Z" and self.psutil_process.is_running():
                return os.waitstatus_to_exitcode(int(fields[49]))
        except (OSError, psutil.Error, IndexError, ValueError):
            pass
        return None

    def _reaped_exit_code(self) -> int | None:
        """Ask the pidfd itself: ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT, of linux/pidfd.h."""
        info = bytearray(struct.pack("Q", _PIDFD_INFO_EXIT).ljust(_PIDFD_INFO_BYTES, b"\0"))
        with self._lock:
            if self._pidfd is None:
                return None
            try:
                fcntl.ioctl(self._pidfd, _PIDFD_GET_INFO, info)
            except OSError:  # an older kernel
                return None
        (mask,) = struct.unpack_from("Q", info)
        (status,) = struct.unpack_from("i", info, _PIDFD_INFO_BYTES - 4)
        return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None

    def send_signal(self, number: int) -> bool:
        """Send a signal to this process, and to no other that may have got its PID.

        Returns:
            False where it had ended already.

        Raises:
            PermissionError: it is another user's.
        """
        with self._lock:
            if self._pidfd is not None:
                # A zombie takes any signal, to no effect.
                return not _is_readable(self._pidfd) and _signal_pidfd(self._pidfd, number)
        pidfd = _open_pidfd(self.pid)
        try:
            if self.ended():  # from here on the pidfd, if there is one, is surely this process's
                return False
            if pidfd is not None:
                return _signal_pidfd(pidfd, number)
            self.psutil_process.send_signal(number)  # compares creation times first
            return True
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied as error:
            raise PermissionError(str(error)) from None
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def kill_group(self) -> None:
        """Send SIGKILL to the process group that it leads, or led: to all at once, so none forks.

        Does nothing without a pidfd, and before Linux 6.9: the group's number alone may be that of
        another by now.
        """
        with self._lock, contextlib.suppress(OSError):  # such as that nobody is in it
            if self._pidfd is not None:
                signal.pidfd_send_signal(
                    self._pidfd, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP
                )

    def close(self) -> None:
        """Close the pidfd. Everything but `pidfd` goes on working, by creation time."""
        with self._lock:
            pidfd, self._pidfd = self._pidfd, None
            if pidfd is not None:
                os.close(pidfd)


def _thread_count(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _is_used(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing, and needs no descriptor
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError):  # no such process, or no more descriptors: psutil will tell
        return None


def _is_readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _signal_pidfd(pidfd: int, number: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True
