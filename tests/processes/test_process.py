from __future__ import annotations

import errno
import os
import platform
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from monitor_plugin.processes.process import Process, ProcessGone

from ..support import Spawner, descriptors, eventually, is_running, read_line, send_line

ROOT = Path(__file__).parents[2]

BOTH = pytest.mark.parametrize("keep_descriptor", [True, False], ids=["pidfd", "polled"])
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")

# Root's interpreter may lie where no other user can start it, so the identity changes after it.
AS_NOBODY = """
import os, sys
from monitor_plugin.processes.process import Process
Process(os.getppid()).exit_code()  # while what it loads on first use can be read
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
"""

# A parent whose child exits with 7 at SIGTERM, and which reaps it when it reads a line.
PARENT = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
child = os.fork()
if not child:
    signal.sigwait({signal.SIGTERM})
    os._exit(7)
print(child, flush=True)
sys.stdin.readline()
os.waitpid(child, 0)
print("reaped", flush=True)
sys.stdin.readline()
"""

# What a kernel or a seccomp profile refuses.
REFUSALS = pytest.mark.parametrize(
    "refused",
    [
        {"pidfd_open": errno.ENOSYS},
        {"pidfd_open": errno.EPERM},
        {"pidfd_send_signal": errno.ENOSYS},
        {"pidfd_send_signal": errno.EPERM},
        {"waitid(P_PIDFD)": errno.EINVAL},  # as before Linux 5.4
        {"pidfd_send_signal": errno.EPERM, "waitid(P_PIDFD)": errno.EPERM, "PIDFD_GET_INFO": 1},
    ],
    ids=lambda refused: ", ".join(f"{name}: {errno.errorcode[refused[name]]}" for name in refused),
)

EXITS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGKILL, -9)])


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _reaped_code_is_known(keep_descriptor: bool) -> bool:
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    return keep_descriptor and kernel >= (6, 15)


@BOTH
def test_a_running_process_is_known(spawner: Spawner, keep_descriptor: bool) -> None:
    """A running process has its PID and its creation time, and has not ended."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        assert process.pid == process.psutil_process.pid == sleeper.pid
        assert process.created_at == psutil.Process(sleeper.pid).create_time()
        assert (process.pidfd is not None) == keep_descriptor
        assert not process.ended()
        assert process.exit_code() is None


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**31, 2**64, 2**70])
@BOTH
def test_a_number_of_no_process_is_refused(pid: int, keep_descriptor: bool) -> None:
    """A number that is no PID, or too large to be one, raises ProcessGone with that number."""
    before = descriptors()
    with pytest.raises(ProcessGone, match=f"^process {pid} does not run$") as caught:
        Process(pid, keep_descriptor=keep_descriptor)
    assert caught.value.pid == pid
    assert not descriptors() - before


@BOTH
def test_a_process_that_was_reaped_is_refused(spawner: Spawner, keep_descriptor: bool) -> None:
    """A process that has ended and was reaped does not run."""
    ended = spawner.process("true")
    ended.wait()
    with pytest.raises(ProcessGone):
        Process(ended.pid, keep_descriptor=keep_descriptor)


@BOTH
def test_a_zombie_is_refused(spawner: Spawner, keep_descriptor: bool) -> None:
    """A zombie has ended, so it cannot be opened, and its descriptor is not leaked."""
    ended = spawner.process("true")
    eventually(lambda: _state(ended.pid) == "Z")
    before = descriptors()
    with pytest.raises(ProcessGone):
        Process(ended.pid, keep_descriptor=keep_descriptor)
    assert not descriptors() - before
    assert ended.wait() == 0


@BOTH
def test_a_threads_id_is_refused(keep_descriptor: bool) -> None:
    """The id of a thread, though psutil takes it, is no process."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id
        assert thread.native_id != os.getpid()
        with pytest.raises(ProcessGone):
            Process(thread.native_id, keep_descriptor=keep_descriptor)
    finally:
        done.set()
        thread.join()


@BOTH
def test_a_killed_process_has_ended_before_it_is_reaped(
    spawner: Spawner, keep_descriptor: bool
) -> None:
    """The end shows while the process is a zombie, and goes on showing after it is reaped."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        sleeper.kill()
        eventually(process.ended)
        assert _state(sleeper.pid) == "Z"
        sleeper.wait()
        assert process.ended()


def test_a_process_that_may_not_be_read_has_ended_when_its_pid_is_free(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a pidfd, psutil is asked first; it may raise AccessDenied if /proc is hidden."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=False) as process:

        def deny() -> bool:
            raise psutil.AccessDenied(sleeper.pid)

        monkeypatch.setattr(process.psutil_process, "is_running", deny)
        assert not process.ended()
        sleeper.kill()
        sleeper.wait()
        assert process.ended()


@BOTH
def test_a_stopped_process_has_not_ended(spawner: Spawner, keep_descriptor: bool) -> None:
    """A process under SIGSTOP runs no code, and has not ended."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        assert process.send_signal(signal.SIGSTOP)
        eventually(lambda: _state(sleeper.pid) == "T")
        assert not process.ended()
        assert process.exit_code() is None


@BOTH
def test_a_process_has_ended_only_when_its_last_thread_has(
    spawner: Spawner, keep_descriptor: bool
) -> None:
    """A process whose main thread has exited while another runs is no zombie."""
    process = spawner.python(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with Process(process.pid, keep_descriptor=keep_descriptor) as opened:
        assert read_line(process) == "ready"
        eventually(lambda: _state(process.pid) == "Z")
        assert not opened.ended()
        process.kill()
        eventually(opened.ended)


@BOTH
@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)]
)
def test_a_child_is_not_reaped_for_its_exit_code(
    spawner: Spawner, keep_descriptor: bool, script: str, code: int
) -> None:
    """The exit code of a zombie child is known, and `wait` still returns it."""
    child = spawner.process("sh", "-c", "read line; " + script, stdin=subprocess.PIPE)
    with Process(child.pid, keep_descriptor=keep_descriptor) as process:
        assert process.exit_code() is None
        send_line(child)
        eventually(process.ended)
        assert process.exit_code() == code
        assert process.exit_code() == code
        assert child.wait() == code


@BOTH
@EXITS
def test_the_exit_code_of_a_zombie_of_another_parent(
    spawner: Spawner, keep_descriptor: bool, number: int, code: int
) -> None:
    """The exit code is known of every zombie of the same user."""
    parent = spawner.python(PARENT, stdin=subprocess.PIPE)
    with Process(int(read_line(parent)), keep_descriptor=keep_descriptor) as process:
        assert process.exit_code() is None
        assert process.send_signal(number)
        eventually(process.ended)
        assert process.exit_code() == code


@BOTH
@EXITS
def test_the_exit_code_after_reaping(
    spawner: Spawner, keep_descriptor: bool, number: int, code: int
) -> None:
    """After reaping the exit code is known with a pidfd, from Linux 6.15 on."""
    parent = spawner.python(PARENT, stdin=subprocess.PIPE)
    with Process(int(read_line(parent)), keep_descriptor=keep_descriptor) as process:
        process.send_signal(number)
        eventually(process.ended)
        send_line(parent)
        assert read_line(parent) == "reaped"
        assert process.exit_code() == (code if _reaped_code_is_known(keep_descriptor) else None)
        process.close()
        assert process.exit_code() is None


@BOTH
def test_the_exit_code_of_our_own_child_after_reaping(
    spawner: Spawner, keep_descriptor: bool
) -> None:
    """The same is true of a child of this process."""
    child = spawner.process("sh", "-c", "read line; exit 7", stdin=subprocess.PIPE)
    with Process(child.pid, keep_descriptor=keep_descriptor) as process:
        send_line(child)
        assert child.wait() == 7
        assert process.exit_code() == (7 if _reaped_code_is_known(keep_descriptor) else None)


@NEEDS_ROOT
@BOTH
def test_the_exit_code_of_another_users_zombie_is_unknown(
    spawner: Spawner, keep_descriptor: bool
) -> None:
    """The kernel shows 0 as the exit code of another user's zombie."""
    parent = spawner.python(PARENT, stdin=subprocess.PIPE)
    pid = int(read_line(parent))
    reader = spawner.python(
        AS_NOBODY + f"process = Process({pid}, keep_descriptor={keep_descriptor})\n"
        "print(process.ended(), flush=True); sys.stdin.readline()\n"
        "print(process.ended(), process.exit_code(), flush=True)",
        stdin=subprocess.PIPE,
    )
    assert read_line(reader) == "False"
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: _state(pid) == "Z")
    send_line(reader)
    assert read_line(reader) == "True None"


@BOTH
def test_a_name_like_a_state_does_not_confuse_the_parser(
    spawner: Spawner, tmp_path: Path, keep_descriptor: bool
) -> None:
    """The name of a program may look like the fields of /proc/PID/stat."""
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    sleeper = spawner.process(str(program), "1000")
    eventually(lambda: "a) Z 1 (b" in Path(f"/proc/{sleeper.pid}/stat").read_text())
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        assert not process.ended()
        assert process.exit_code() is None
        sleeper.terminate()
        eventually(process.ended)
        assert process.exit_code() == -15


@BOTH
def test_a_signal_arrives(spawner: Spawner, keep_descriptor: bool) -> None:
    """`send_signal` returns True, and the signal arrives."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        assert process.send_signal(signal.SIGTERM) is True
        assert sleeper.wait(30) == -signal.SIGTERM


@BOTH
def test_a_reaped_process_is_not_signalled(spawner: Spawner, keep_descriptor: bool) -> None:
    """`send_signal` returns False for a process that was reaped."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        sleeper.kill()
        sleeper.wait()
        assert process.send_signal(signal.SIGTERM) is False


@BOTH
def test_a_zombie_is_not_signalled(spawner: Spawner, keep_descriptor: bool) -> None:
    """`send_signal` returns False for a zombie."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        sleeper.kill()
        eventually(process.ended)
        assert process.send_signal(signal.SIGTERM) is False


@NEEDS_ROOT
@BOTH
def test_a_signal_to_another_users_process_is_refused(
    spawner: Spawner, keep_descriptor: bool
) -> None:
    """`send_signal` raises PermissionError for another user's process."""
    sleeper = spawner.sleeper()
    reader = spawner.python(
        AS_NOBODY + f"process = Process({sleeper.pid}, keep_descriptor={keep_descriptor})\n"
        "try:\n    process.send_signal(15)\nexcept PermissionError:\n    print('refused')"
    )
    assert read_line(reader) == "refused"
    assert is_running(sleeper.pid)


@pytest.mark.once
@REFUSALS
@BOTH
def test_refused_system_calls_are_replaced(
    spawner: Spawner, keep_descriptor: bool, refused: dict[str, int]
) -> None:
    """Signals arrive, and an exit and its code are known. A zombie gets no signal."""
    code = f"""
import subprocess, sys
from monitor_plugin.processes.process import Process
from monitor_plugin.testing import eventually
from tests.seccomp import refuse
child = subprocess.Popen(["sh", "-c", "trap 'exit 7' TERM; echo; while :; do sleep 0.01; done"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
refuse({refused})
process = Process(child.pid, keep_descriptor={keep_descriptor})
print(process.ended(), process.exit_code(), process.send_signal(15))
eventually(process.ended)
print(process.exit_code(), process.send_signal(15))
child.wait()
print(process.send_signal(15))
"""
    child = spawner.python(code, cwd=ROOT)
    lines = [read_line(child) for _ in range(3)]
    assert lines == ["False None True", "7 False", "False"]


@pytest.mark.once
@REFUSALS
@BOTH
def test_group_of_a_process_is_killed_whatever_is_refused(
    spawner: Spawner, keep_descriptor: bool, refused: dict[str, int]
) -> None:
    """Also after its leader has ended, while the leader is a zombie."""
    code = f"""
import subprocess
from monitor_plugin.processes.process import Process
from monitor_plugin.testing import eventually
from tests.seccomp import refuse
from tests.support import is_running
script = "read line; sleep 1000 >&2 & echo $!; read line"
pipes = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}}
leader = subprocess.Popen(["sh", "-c", script], start_new_session=True, **pipes)
refuse({refused})
process = Process(leader.pid, keep_descriptor={keep_descriptor})
leader.stdin.write(b"\\n")
leader.stdin.flush()
child = int(leader.stdout.readline())
leader.kill()
eventually(process.ended)
print(is_running(child))
process.kill_group()
eventually(lambda: not is_running(child))
leader.wait()
process.kill_group()
"""
    child = spawner.python(code, cwd=ROOT)
    assert child.communicate(timeout=60)[0] == "True\n"
    assert child.returncode == 0


@pytest.mark.once
@NEEDS_ROOT
@REFUSALS
@BOTH
def test_lack_of_permission_is_told_from_a_refused_system_call(
    spawner: Spawner, keep_descriptor: bool, refused: dict[str, int]
) -> None:
    """`send_signal` raises PermissionError for another user's process, whatever is refused."""
    sleeper = spawner.sleeper()
    reader = spawner.python(
        f"from tests.seccomp import refuse\n{AS_NOBODY}refuse({refused})\n"
        f"process = Process({sleeper.pid}, keep_descriptor={keep_descriptor})\n"
        "try:\n    process.send_signal(15)\nexcept PermissionError:\n    print('refused')",
        cwd=ROOT,
    )
    assert read_line(reader) == "refused"
    assert is_running(sleeper.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts files over those of /proc")
def test_exit_code_is_unknown_where_the_kernel_shows_none(spawner: Spawner, tmp_path: Path) -> None:
    """gVisor writes 0 as the exit code of every process, and also as its addresses."""
    code = f"""
import os, pathlib, subprocess, sys
from monitor_plugin.processes.process import Process
opened = Process(int(sys.argv[1]), keep_descriptor=False)
print("opened", flush=True)
sys.stdin.readline()
codes = [opened.exit_code()]
for pid in (opened.pid, os.getpid()):
    path, shown = pathlib.Path(f"/proc/{{pid}}/stat"), pathlib.Path({str(tmp_path)!r}, str(pid))
    before, _, after = path.read_text().rpartition(")")
    shown.write_text(" ".join([before + ")", *after.split()[:23], *["0"] * 27]))
    subprocess.run(["mount", "--bind", shown, path], check=True)
print(*codes, opened.ended(), opened.exit_code(), flush=True)
"""
    parent = spawner.python(PARENT, stdin=subprocess.PIPE)
    pid = int(read_line(parent))
    command = ("unshare", "--mount", sys.executable, "-c", code, str(pid))
    reader = spawner.process(*command, stdin=subprocess.PIPE)
    if not read_line(reader):
        pytest.skip("mount namespaces are not allowed here")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _state(pid) == "Z")
    send_line(reader)
    assert read_line(reader) == "-9 True None"


@NEEDS_ROOT
@BOTH
def test_root_handles_another_users_process(spawner: Spawner, keep_descriptor: bool) -> None:
    """Root opens and signals another user's process, and learns its exit code."""
    sleeper = spawner.process("sleep", "1000", user=65534)
    with Process(sleeper.pid, keep_descriptor=keep_descriptor) as process:
        assert process.psutil_process.uids().real == 65534
        assert process.send_signal(signal.SIGTERM)
        eventually(process.ended)
        assert process.exit_code() == -15


def test_the_pidfd_is_readable_once_the_process_has_ended(spawner: Spawner) -> None:
    """`poll` on the pidfd returns when the process ends, not before."""
    sleeper = spawner.sleeper()
    with Process(sleeper.pid) as process:
        assert process.pidfd is not None
        poll = select.poll()
        poll.register(process.pidfd, select.POLLIN)
        assert not poll.poll(0)
        sleeper.kill()
        assert poll.poll(30_000)


def test_a_closed_process_compares_creation_times(spawner: Spawner) -> None:
    """After `close`, which may be called twice, methods work without a descriptor."""
    sleeper = spawner.sleeper()
    before = descriptors()
    process = Process(sleeper.pid)
    assert len(descriptors() - before) == 1
    process.close()
    process.close()
    assert not descriptors() - before
    assert process.pidfd is None
    assert not process.ended()
    assert process.send_signal(signal.SIGTERM) is True
    eventually(process.ended)
    assert process.exit_code() == -15
    assert process.send_signal(signal.SIGTERM) is False
    assert not descriptors() - before


def test_without_a_free_descriptor_creation_times_are_compared(spawner: Spawner) -> None:
    """Where no descriptor is free for a pidfd, a process is opened without one."""
    code = """
import os, sys
from monitor_plugin.processes.process import Process
taken = []

class Full:  # no descriptor is free while a pidfd is opened; some are free afterwards
    real = staticmethod(os.pidfd_open)
    def __call__(self, pid):
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        try:
            return self.real(pid)
        finally:
            while taken:
                os.close(taken.pop())

import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.pidfd_open = Full()
process = Process(int(sys.argv[1]))
print(process.pidfd, process.ended(), process.send_signal(15), flush=True)
"""
    sleeper = spawner.sleeper()
    reader = spawner.python(code, str(sleeper.pid), stdin=subprocess.DEVNULL)
    assert read_line(reader) == "None False True"
    assert sleeper.wait(30) == -signal.SIGTERM


def test_a_process_may_be_closed_while_other_threads_use_it(spawner: Spawner) -> None:
    """A descriptor number is not used after another thread has closed it."""
    sleeper, stranger = spawner.sleeper(), spawner.sleeper()
    stranger.kill()
    faults: list[BaseException] = []

    def use(process: Process, closed: threading.Event) -> None:
        try:
            while not closed.is_set():
                assert not process.ended()
                assert process.send_signal(signal.SIGCONT)
                assert process.exit_code() is None
        except BaseException as fault:
            faults.append(fault)

    for _ in range(50):
        process, closed = Process(sleeper.pid), threading.Event()
        users = [threading.Thread(target=use, args=(process, closed)) for _ in range(3)]
        for user in users:
            user.start()
        process.close()
        takes_its_number = os.pidfd_open(stranger.pid)  # a zombie's: it would show as ended
        closed.set()
        for user in users:
            user.join(30)
        os.close(takes_its_number)
    assert not faults


def test_a_signal_that_the_kernel_refuses_is_not_sent_to_a_later_process(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has ended before the system call that takes its place."""
    sleeper = spawner.sleeper()
    killed: list[int] = []

    def end_and_refuse(pidfd: int, number: int) -> None:
        sleeper.kill()
        sleeper.wait()
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
        raise PermissionError

    with Process(sleeper.pid) as process:
        monkeypatch.setattr(signal, "pidfd_send_signal", end_and_refuse)
        assert process.send_signal(signal.SIGTERM) is False
    assert killed == []
