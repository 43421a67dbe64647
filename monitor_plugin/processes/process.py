"""One process, identified by PID and creation time: whether it runs, how it ended, signals to it.

A PID alone does not identify a process, because the kernel reuses PIDs. A pidfd always refers to
the process for which it was opened. Without a pidfd, psutil compares creation times.

A container's seccomp profile, an older kernel or gVisor may refuse any system call that uses
pidfds. Each of them has a replacement, which `kernel.py` logs at the monitor's start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import signal
import struct
import threading

import psutil

from .process_table import read_row

# linux/pidfd.h. The first version of struct pidfd_info has two u64, eleven u32, and the exit code
# as an s32.
_PIDFD_INFO_BYTES = 64
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_BYTES << 16 | 0xFF << 8 | 11


class ProcessGone(Exception):
    """No process with this PID runs, or only a later process with the same PID.

    Attributes:
        pid: the PID.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} does not run")
        self.pid = pid


class Process:
    """A process. Close it, or use it in a `with` statement, to close its pidfd.

    Safe to call from any thread.

    Args:
        pid: its PID; the ID of a thread is not accepted.
        keep_descriptor: whether to keep a pidfd open, which becomes readable when the process ends.

    Attributes:
        pid: its PID.
        created_at: creation time in seconds since the epoch, from psutil.
        psutil_process: for reading figures. Call `ended()` after each reading: if it is true, the
            figures may be those of a later process with the same PID.

    Raises:
        ProcessGone: no process with this PID runs.
    """

    def __init__(self, pid: int, *, keep_descriptor: bool = True) -> None:
        self.pid = pid
        # Guards `_pidfd`, during system calls that do not block. Otherwise a thread could use the
        # number of a pidfd that another thread has just closed and the kernel has reused.
        self._lock = threading.Lock()
        self._pidfd = _open_pidfd(pid) if keep_descriptor else None
        try:
            if not psutil.pid_exists(pid):  # psutil.Process accepts a thread's ID
                raise ProcessGone(pid)
            self.psutil_process = psutil.Process(pid)
            self.created_at: float = self.psutil_process.create_time()
            if self.ended():
                raise ProcessGone(pid)
        except (psutil.NoSuchProcess, OverflowError):
            self.close()
            raise ProcessGone(pid) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pidfd(self) -> int | None:
        """The pidfd; None if it was not kept, cannot be opened or was closed."""
        return self._pidfd

    def ended(self) -> bool:
        """Whether the process has ended. A zombie has ended."""
        with self._lock:
            if self._pidfd is not None:
                return _is_readable(self._pidfd)
        try:
            if not self.psutil_process.is_running():
                return True
            # A process whose first thread has exited is shown as a zombie while others run.
            return (
                self.psutil_process.status() == psutil.STATUS_ZOMBIE
                and _thread_count(self.pid) <= 1
            )
        except psutil.NoSuchProcess:
            return True
        except (psutil.AccessDenied, OSError):
            # /proc is hidden, or no file descriptor is free: assume that the PID was not reused.
            return not _pid_exists(self.pid)

    def exit_code(self) -> int | None:
        """Return how the process ended, as `subprocess` does: -9 means killed by signal 9.

        The process is not reaped.

        Returns:
            None if the process has not ended, or if its exit code is unknown. The exit code is
            known for a child of the monitor's own process until the child is reaped, for a zombie
            of the same user (from /proc), and since Linux 6.15 for every process with a pidfd.
        """
        for read in (self._child_exit_code, self._zombie_exit_code, self._reaped_exit_code):
            if (code := read()) is not None:
                return code
        return None

    def _child_exit_code(self) -> int | None:
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        with self._lock:
            if self._pidfd is not None:
                try:
                    return _exit_code(os.waitid(os.P_PIDFD, self._pidfd, options))
                except ChildProcessError:
                    return None
                except OSError:  # refused, or a kernel before Linux 5.4
                    pass
        try:
            code = _exit_code(os.waitid(os.P_PID, self.pid, options))
            # Read first, then check that the PID was not reused for another child.
            return code if self.psutil_process.is_running() else None
        except (OSError, psutil.Error):
            return None

    def _zombie_exit_code(self) -> int | None:
        try:
            row = read_row(self.pid)
            # Read first, then check that the PID was not reused.
            return row.exit_code if row and self.psutil_process.is_running() else None
        except (OSError, psutil.Error):
            return None

    def _reaped_exit_code(self) -> int | None:
        with self._lock:
            if self._pidfd is None:
                return None
            try:
                return read_exit_info(self._pidfd)
            except OSError:  # refused, or a kernel before Linux 6.15
                return None

    def send_signal(self, number: int) -> bool:
        """Send a signal to this process, never to a later one with the same PID.

        Returns:
            False if the process had already ended.

        Raises:
            PermissionError: the process belongs to another user.
        """
        with self._lock:
            if self._pidfd is not None:
                return _send_signal(self._pidfd, self.pid, number)
        pidfd = _open_pidfd(self.pid)
        try:
            if self.ended():  # if it has not, the new pidfd refers to this process
                return False
            if pidfd is not None:
                return _send_signal(pidfd, self.pid, number)
            self.psutil_process.send_signal(number)  # psutil compares creation times
            return True
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied as error:
            raise PermissionError(str(error)) from None
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def kill_group(self) -> None:
        """Send SIGKILL to all processes of the group that the process leads or led, in one call.

        Without a pidfd, before Linux 6.9, or if the kernel refuses the system call, does nothing
        once the process was reaped: the ID of its group may have been reused then.
        """
        with self._lock:
            if self._pidfd is not None:
                try:
                    signal.pidfd_send_signal(
                        self._pidfd, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP
                    )
                    return
                except ProcessLookupError:  # an empty group
                    return
                except OSError:  # refused, or an older kernel
                    pass
        with contextlib.suppress(OSError, psutil.Error):
            if self.psutil_process.is_running():  # a zombie is, too, and holds its PID
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pidfd. Later calls of other methods compare creation times."""
        with self._lock:
            pidfd, self._pidfd = self._pidfd, None
            if pidfd is not None:
                os.close(pidfd)


def process_name(pid: int) -> str | None:
    """Return the name of a process, with bytes that are not UTF-8 escaped; None if unreadable."""
    try:
        return psutil.Process(pid).name().encode(errors="backslashreplace").decode()
    except (psutil.Error, OSError):
        return None


def process_user(pid: int, names: dict[int, str]) -> str | None:
    """Return the name of a process's user, or the user's number; None if it is not known.

    Args:
        pid: the process.
        names: caches the names of users by their numbers.
    """
    try:
        number = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    if number not in names:
        try:
            names[number] = pwd.getpwuid(number).pw_name
        except KeyError:
            names[number] = str(number)
    return names[number]


def _thread_count(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing; unlike psutil.pid_exists it needs no descriptor
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):  # a Python that was built with older kernel headers
        return None
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError):  # no such process, which psutil reports, or no free descriptor
        return None


def _is_readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _send_signal(pidfd: int, pid: int, number: int) -> bool:
    """Send a signal to the process of a pidfd; return False if the process had already ended.

    Raises:
        PermissionError: the process belongs to another user.
    """
    if _is_readable(pidfd):  # the kernel accepts signals to zombies, without effect
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    except OSError:
        # Either the kernel refuses this system call, or the process belongs to another user, which
        # `kill` refuses too. While a process runs, its PID is not reused.
        return not _is_readable(pidfd) and _kill(pid, number)
    return True


def _kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _exit_code(result: os.waitid_result | None) -> int | None:
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def read_exit_info(pidfd: int) -> int | None:
    """Read an exit code from a pidfd by ioctl PIDFD_GET_INFO, also after the process was reaped.

    Returns:
        None if the process has not ended.

    Raises:
        OSError: the kernel refuses this system call, or is older than Linux 6.15.
    """
    info = bytearray(struct.pack("Q", _PIDFD_INFO_EXIT).ljust(_PIDFD_INFO_BYTES, b"\0"))
    fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    (mask,) = struct.unpack_from("Q", info)
    (status,) = struct.unpack_from("i", info, _PIDFD_INFO_BYTES - 4)
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None


def keeps_exit_codes() -> bool:
    """Whether a pidfd tells the exit code of a process after the process was reaped."""
    pidfd = _open_pidfd(os.getpid())
    if pidfd is None:
        return False
    try:
        read_exit_info(pidfd)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True
