"""Registers the container of `docker run` or `podman run` in place of the client, and stops it.

A container is no descendant of its client: the engine starts it. So a backend whose command is
`docker run` seems to be a small process, whose end says little of the container's. This hook looks
for such a client among the processes of each backend, also behind a shell, and for its container.
The container's main process then becomes the registered one (`Monitor.adopt_process`). The other
processes of the container's control group are members of the backend.

- The client must run in the foreground, without `--detach`, and have `--cidfile` or `--name`. The
  container must have been started after the client. So a name that another container has, and the
  file of an earlier run, do not count.
- `inspect` of the client's own engine is called with the global options, the environment and the
  folder of the client. The client must belong to root or to the monitor's user, because others
  could name any process. So a rootless container needs a monitor of the same user.
- The first look follows the registration at once. While there is no container, as during the pull
  of an image, the pauses grow to 30 s; after 6 hours the hook gives up.
- A stop has the host stop the client first, so that the host does not start it again. Then
  `docker stop` or `podman stop` follows, also for a container that has ended, so that its restart
  policy ends. The grace until the engine sends SIGKILL is four fifths of `stop_timeout_seconds`. If
  the engine fails or does not answer, the shutdown fails, and the monitor sends no signal.

It was tested with programs that answer as the documentation of `docker` and `podman` says, and that
start a process in a real control group. It was not tried with a real engine.

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`. It has no
settings.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from monitor_plugin import Backend, InvalidBackend, ShutdownFailed, hookimpl
from monitor_plugin.hookspecs import Monitor
from monitor_plugin.processes.process_table import (
    TICKS_PER_SECOND,
    ProcessIdentity,
    find_descendants,
    read_row,
)

_logger = logging.getLogger(__name__)

_ENGINES = ("docker", "podman")
# The options that take no value; each other one takes the next argument, unless it has a `=`.
_GLOBAL_FLAGS = (
    "-D --debug --tls --tlsverify -v --version --help -h -r --remote --syslog --trace --noout "
    "--transient-store"
)
_RUN_FLAGS = (
    "-d --detach --disable-content-trust --env-host --help --http-proxy --init -i --interactive "
    "--no-healthcheck --no-hostname --no-hosts --oom-kill-disable --passwd --privileged -P "
    "--publish-all -q --quiet --read-only --read-only-tmpfs --replace --rm --rmi --rootfs "
    "--sig-proxy --tls-verify -t --tty --unsetenv-all --use-api-socket"
)
# A name or an ID; none begins with a dash, so none is an option.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MIN_ID_LENGTH = 12
_NO_CONTAINER = re.compile(r"no such (container|object)", re.IGNORECASE)

_INSPECT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.25
_PAUSE_SHARE = 0.1  # each pause, of the time since the registration
_MAX_PAUSE_SECONDS = 30.0
_GIVE_UP_SECONDS = 6 * 3600.0
_POLL_SECONDS = 0.1
_GRACE_SHARE = 0.8
_MAX_TARGETS = 1000
# How much earlier than `StartedAt` a container's process may have begun: hooks of the runtime, such
# as NVIDIA's, run in between. And how much later, as the two clocks differ by up to a second.
_EARLIER_SECONDS, _LATER_SECONDS = 60.0, 2.0


class EngineError(Exception):
    """The engine did not answer, or not as documented. The message is for people."""


class _State(msgspec.Struct, rename="pascal"):
    pid: int = 0
    running: bool = False
    started_at: datetime | None = None


class _Inspected(msgspec.Struct, rename="pascal"):
    """A container, or another object of that name, such as an image, which has no state."""

    id: str = ""
    state: _State = msgspec.field(default_factory=_State)


class Container(NamedTuple):
    """A container that runs.

    Attributes:
        id: its ID.
        process: its main process.
    """

    id: str
    process: ProcessIdentity


class Client(NamedTuple):
    """A process that runs `docker run` or `podman run`.

    Attributes:
        process: the process.
        engine: `docker` or `podman`.
        command: its command line, up to the subcommand.
        cidfile: the value of `--cidfile`; None if it is not given.
        name: the value of `--name`; None if it is not given.
        is_detached: whether it ends once the container has started.
    """

    process: ProcessIdentity
    engine: str
    command: Sequence[str]
    cidfile: str | None
    name: str | None
    is_detached: bool

    def why_unusable(self) -> str | None:
        """Return why no container can be found for the client; None if one can."""
        run = f"`{self.engine} run`"
        if self.is_detached:
            return f"{run} has --detach, so no client stays: leave that out"
        if self.cidfile is None and self.name is None:
            return f"{run} has neither --cidfile nor --name: add one of them"
        try:
            # The owner of /proc/PID is root for any process that is not dumpable.
            users = set(psutil.Process(self.process[0]).uids())
        except psutil.NoSuchProcess:
            return None
        if others := users - {0, os.geteuid()}:
            return f"{run} belongs to user {max(others)}: run the monitor as that user"
        return None

    def candidates(self, folder: str) -> list[str]:
        """List the IDs and names that the container may have; `folder` is that of the client."""
        found = [self._read_cidfile(folder), self.name]
        return [each for each in found if each is not None and _NAME.fullmatch(each)]

    def _read_cidfile(self, folder: str) -> str | None:
        if self.cidfile is None:
            return None
        try:
            path = Path(folder, self.cidfile)
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                return os.read(descriptor, 200).decode(errors="replace").strip()
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # it is not written yet
            return None


class Engine:
    """Calls the engine of a client as the client itself does. Keeps what it needs of the client.

    Args:
        client: the client, which should run.
        closing: ends each call when it is set.
    """

    def __init__(self, client: Client, closing: threading.Event) -> None:
        pid = client.process[0]
        self._client = client
        self._closing = closing
        self._folder = _read_folder(pid)
        self._environment = _read_environment(pid)

    def find_container(self) -> Container | None:
        """Find the container of the client; None if it does not run yet.

        Raises:
            EngineError: the engine failed.
        """
        for each in self._client.candidates(self._folder):
            for found in self._inspect(each):
                if container := self._match(found, each):
                    return container
        return None

    def stop(self, container_id: str, seconds: float) -> None:
        """Stop a container, unless it has been removed.

        Args:
            container_id: its ID.
            seconds: the time limit.

        Raises:
            EngineError: the engine failed, or did not stop it in time.
        """
        grace = str(int(seconds * _GRACE_SHARE))
        ended = self._call(["stop", "-t", grace, container_id], seconds)
        if ended.returncode and not _NO_CONTAINER.search(ended.stderr):
            raise EngineError(_describe(ended))

    def _inspect(self, name: str) -> list[_Inspected]:
        ended = self._call(["inspect", name], _INSPECT_SECONDS)
        if ended.returncode:
            if _NO_CONTAINER.search(ended.stderr):
                return []
            raise EngineError(_describe(ended))
        try:
            return msgspec.json.decode(ended.stdout, type=list[_Inspected])
        except msgspec.DecodeError as error:
            raise EngineError(f"the answer of inspect is not understood: {error}") from None

    def _match(self, found: _Inspected, name: str) -> Container | None:
        """Return the container if its process was started by the client, as far as is known."""
        pid = found.state.pid
        row = read_row(pid) if found.state.running and pid > 1 else None
        if row is None or row.started < self._client.process[1]:
            return None
        if not _is_in_group(pid, found.id):
            # The process of another machine's container, or of another PID namespace, may have the
            # same PID as a process here.
            started_at = found.state.started_at
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - row.started / TICKS_PER_SECOND
            later = math.inf if started_at is None else time.time() - age - started_at.timestamp()
            if not -_EARLIER_SECONDS <= later <= _LATER_SECONDS:
                return None
        return Container(found.id or name, (pid, row.started))

    def _call(self, arguments: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Call the engine.

        Raises:
            EngineError: it cannot be called, did not end in time, or the monitor is closing.
        """
        deadline = time.monotonic() + seconds
        try:
            process = subprocess.Popen(
                [*self._client.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(str(error)) from None
        with process:
            while True:
                left = deadline - time.monotonic()
                try:
                    output, errors = process.communicate(timeout=min(_POLL_SECONDS, max(0.0, left)))
                    return subprocess.CompletedProcess(
                        arguments, process.returncode, output, errors
                    )
                except subprocess.TimeoutExpired:
                    if left > 0 and not self._closing.is_set():
                        continue
                    # Also its children, which could hold the pipes open.
                    with contextlib.suppress(OSError):
                        os.killpg(process.pid, signal.SIGKILL)
                    why = (
                        "the monitor is closing" if left > 0 else f"no answer within {seconds:g} s"
                    )
                    raise EngineError(f"{arguments[0]}: {why}") from None


def _describe(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the first line of what a call that failed has written to its standard error."""
    line = next((each for each in ended.stderr.splitlines() if each.strip()), "")
    text = line.strip()[:200].encode("unicode_escape").decode()
    return f"{ended.args[0]}: {text or f'exit code {ended.returncode}'}"


def _read_folder(pid: int) -> str:
    """Read the current folder of a process; the root folder if it may not be read."""
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return "/"


def _read_environment(pid: int) -> dict[str, str] | None:
    """Read the environment of a process; None, which means the monitor's own, if it may not be.

    The client of a rootless podman starts itself again in a user namespace; the variables that say
    so must not be passed on.
    """
    try:
        items = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0")
    except OSError:
        return None
    pairs = (each.partition("=") for each in items if not each.startswith("_CONTAINERS_"))
    return {name: value for name, equals, value in pairs if equals} or None


def _is_in_group(pid: int, container_id: str) -> bool:
    """Whether a process is in a control group that is named after a container."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except OSError:
        return False
    return len(container_id) >= _MIN_ID_LENGTH and container_id in groups


def _runs(process: ProcessIdentity) -> bool:
    row = read_row(process[0])
    return row is not None and row.started == process[1] and not row.is_zombie


def split_options(
    arguments: Sequence[str], flags: Collection[str]
) -> tuple[dict[str, str], Sequence[str]]:
    """Split the arguments of a command into its options, and what follows these.

    Args:
        arguments: the arguments.
        flags: the options that take no value.

    Returns:
        The options with their values, of which the last one counts; and the other arguments, from
        the first one that is no option.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            if not equals:
                value = "true" if name in flags else "".join(rest[:1])
                rest = rest if name in flags else rest[1:]
            options[name] = value
            continue
        for position, letter in enumerate(argument[1:], 2):  # such as -it, -p80:80 or -v /a:/b
            name = f"-{letter}"
            options[name] = "true"
            if name not in flags:
                options[name] = argument[position:] or "".join(rest[:1])
                rest = rest if argument[position:] else rest[1:]
                break
    return options, rest


def parse_client(process: ProcessIdentity, arguments: Sequence[str]) -> Client | None:
    """Parse the command line of a process; None if it is not `docker run` or `podman run`.

    The program may be a script, whose interpreter comes first.
    """
    for index, argument in enumerate(arguments[:3]):
        engine = argument.rpartition("/")[2]
        if engine in _ENGINES and (index == 0 or "/" in argument):
            break
    else:
        return None
    _, rest = split_options(arguments[index + 1 :], _GLOBAL_FLAGS.split())
    command = arguments[: len(arguments) - len(rest)]
    if rest[:1] == ["container"]:
        rest = rest[1:]
    if rest[:1] != ["run"]:
        return None
    options, _ = split_options(rest[1:], _RUN_FLAGS.split())
    is_detached = options.get("--detach", options.get("-d", "false")) != "false"
    cidfile, name = options.get("--cidfile"), options.get("--name")
    return Client(process, engine, command, cidfile or None, name or None, is_detached)


def find_client(pid: int) -> Client | None:
    """Find the client among a process and its descendants.

    The last one counts: programs such as sudo have the command line of their child.
    """
    row = read_row(pid)
    found = None
    for process in [*([(pid, row.started)] if row else []), *find_descendants(pid)]:
        try:
            text = os.fsdecode(Path(f"/proc/{process[0]}/cmdline").read_bytes())
        except OSError:
            continue
        found = parse_client(process, text.removesuffix("\0").split("\0")) or found
    return found


class Target:
    """A client, and its container once that is found.

    Attributes:
        client: the client.
        engine: calls the client's engine.
        container: the container; None while it is not found.
    """

    def __init__(self, client: Client, closing: threading.Event) -> None:
        self.client = client
        self.engine = Engine(client, closing)
        self.container: Container | None = None
        self._lock = threading.Lock()  # one stop at a time
        self._is_stopped = False

    def stop(self, seconds: float) -> None:
        """Stop the container, if there is one. Does nothing after it was stopped.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            if self._is_stopped:
                return
            # The last `find_container` may be some time ago.
            self.container = self.container or self.engine.find_container()
            if self.container:
                self.engine.stop(self.container.id, seconds)
                self._is_stopped = True

    def stop_after_client(self, seconds: float, closing: threading.Event) -> None:
        """Wait until the client has ended, and stop the container then."""
        deadline = time.monotonic() + seconds
        while _runs(self.client.process):
            if self._is_stopped or time.monotonic() > deadline or closing.wait(_POLL_SECONDS):
                return
        try:
            self.stop(seconds)
        except EngineError as error:
            text = "the container of process %d was not stopped: %s %s"
            _logger.warning(text, self.client.process[0], self.client.engine, error)


@dataclass
class _Wait:
    """A backend whose container is looked for."""

    since: float = field(default_factory=time.monotonic)
    due_at: float = field(default_factory=time.monotonic)
    target: Target | None = None
    failure: str | None = None  # why the last look that failed did


class Containers:
    """Looks for the containers of backends on a thread of its own, and registers them."""

    def __init__(self) -> None:
        self._monitor: Monitor | None = None
        self._closing = threading.Event()
        self._changed = threading.Condition()  # guards the attributes below
        # By model and address: a host may register another process of the backend meanwhile.
        self._waits: dict[tuple[str, str], _Wait] = {}
        # By the PIDs of registered processes, newest last: of clients and of containers.
        self._targets: dict[int, tuple[ProcessIdentity, Target]] = {}

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        """Begin to look for containers."""
        self._monitor = monitor
        threading.Thread(target=self._run, name="monitor-containers", daemon=True).start()

    @hookimpl
    def monitor_closing(self) -> None:
        """End the thread, and each call of an engine."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()

    @hookimpl
    def monitor_backend_registered(self, backend: Backend) -> None:
        """Look for the container of a backend, unless its process is that of a container."""
        target = self.target_of(backend.pid)
        if target and target.container and target.container.process[0] == backend.pid:
            return
        key = backend.model, backend.address
        with self._changed:
            wait = self._waits.get(key)
            if wait is None or wait.target is None or not _runs(wait.target.client.process):
                self._waits[key] = _Wait()
            self._changed.notify_all()

    def target_of(self, pid: int) -> Target | None:
        """Find the client and the container of a registered process, which may have ended."""
        with self._changed:
            process, target = self._targets.get(pid, ((pid, 0.0), None))
        row = read_row(pid)
        return None if row and row.started != process[1] else target

    def find_target(self, backend: Backend) -> Target | None:
        """Find the client and the container of a backend, also if the thread has not yet.

        None if it has no client, or if no container can be found for that.
        """
        target = self.target_of(backend.pid)
        if target is None:
            with self._changed:
                wait = self._waits.get((backend.model, backend.address))
            target = wait.target if wait else None
        if target is None and (client := find_client(backend.pid)) and not client.why_unusable():
            target = Target(client, self._closing)
        if target:
            self._keep(backend.pid, target)
        return target

    def stop_after_client(self, target: Target, seconds: float) -> None:
        """Stop a container once its client has ended, on another thread."""
        threading.Thread(
            target=target.stop_after_client,
            args=(seconds, self._closing),
            name="monitor-container-stop",
            daemon=True,
        ).start()

    def _keep(self, pid: int, target: Target) -> None:
        row = read_row(pid)
        with self._changed:
            if row:
                self._targets.pop(pid, None)
                self._targets[pid] = (pid, row.started), target
            for oldest in list(self._targets)[:-_MAX_TARGETS]:
                del self._targets[oldest]

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._changed:
                due_at = min((each.due_at for each in self._waits.values()), default=math.inf)
                now = time.monotonic()
                if due_at > now:
                    self._changed.wait(None if due_at == math.inf else due_at - now)
                    continue
                due = [item for item in self._waits.items() if item[1].due_at <= now]
            for key, wait in due:
                try:
                    is_over = self._look(key, wait)
                except OSError:  # no file descriptor is free
                    is_over = False
                except Exception:  # the other backends must be looked at
                    _logger.exception("no container was looked for, for model %r", key[0])
                    is_over = True
                self._end_look(key, wait, is_over)

    def _end_look(self, key: tuple[str, str], wait: _Wait, is_over: bool) -> None:
        now = time.monotonic()
        if not is_over and now - wait.since > _GIVE_UP_SECONDS:
            is_over = True
            if wait.target:
                hours = _GIVE_UP_SECONDS / 3600
                text = "model %r: no container was found within %g hours; restart the backend"
                _logger.warning(text, key[0], hours)
        pause = max(_FIRST_PAUSE_SECONDS, _PAUSE_SHARE * (now - wait.since))
        wait.due_at = now + min(pause, _MAX_PAUSE_SECONDS)
        with self._changed:
            if is_over and self._waits.get(key) is wait:
                del self._waits[key]

    def _look(self, key: tuple[str, str], wait: _Wait) -> bool:
        """Look for the container of a backend, and register it; whether no look shall follow."""
        registered = self._monitor.backends() if self._monitor else []
        backend = next((each for each in registered if (each.model, each.address) == key), None)
        if backend is None or self._closing.is_set():
            return True
        if wait.target is None:
            client = find_client(backend.pid)
            if client is None:  # a shell may start it later
                return False
            if why := client.why_unusable():
                self._log_failure(wait, backend, why)
                return False
            wait.target = Target(client, self._closing)
        self._keep(backend.pid, wait.target)
        try:
            container = wait.target.engine.find_container()
        except EngineError as error:
            self._log_failure(wait, backend, str(error))
            return False
        if container is None:
            if not _runs(wait.target.client.process):
                wait.target = None  # a shell may start another one
            return False
        return self._register(wait, backend, container)

    def _register(self, wait: _Wait, backend: Backend, container: Container) -> bool:
        """Register the main process of a container; whether no look shall follow."""
        assert self._monitor
        assert wait.target
        wait.target.container = container
        pid = container.process[0]
        self._keep(pid, wait.target)  # before the hooks are called
        try:
            self._monitor.adopt_process(backend, pid)
        except InvalidBackend as error:  # such as during a shutdown
            self._log_failure(wait, backend, str(error))
            return False
        text = "model %r: process %d of container %.12s takes the place of its client, process %d"
        _logger.info(text, backend.model, pid, container.id, wait.target.client.process[0])
        return True

    def _log_failure(self, wait: _Wait, backend: Backend, why: str) -> None:
        """Log why a look has failed, unless the last one that failed did for the same reason."""
        if why != wait.failure and not self._closing.is_set():
            text = "model %r (process %d): its container cannot be registered yet: %s"
            _logger.warning(text, backend.model, backend.pid, why)
        wait.failure = why


_containers = Containers()
monitor_started = _containers.monitor_started
monitor_backend_registered = _containers.monitor_backend_registered
monitor_closing = _containers.monitor_closing


@hookimpl(specname="monitor_stop_backend", tryfirst=True)
def prepare_stop(backend: Backend, timeout_seconds: float) -> None:
    """Remember the client before the host ends it.

    A hook of the host that answers True is the last one that is called. So the container is also
    stopped on another thread, once the host has ended the client.
    """
    if target := _containers.find_target(backend):
        with contextlib.suppress(RuntimeError):  # no thread can be started
            _containers.stop_after_client(target, timeout_seconds)


@hookimpl(trylast=True)
def monitor_stop_backend(backend: Backend, timeout_seconds: float) -> None:
    """Stop the container after the host has stopped the client; the monitor ends what is left.

    Raises:
        ShutdownFailed: the engine failed.
    """
    if target := _containers.target_of(backend.pid):
        try:
            target.stop(timeout_seconds)
        except EngineError as error:
            why = f"its container was not stopped: {target.client.engine} {error}"
            raise ShutdownFailed(backend.model, why) from None
