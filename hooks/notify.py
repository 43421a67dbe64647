"""Tells people when a model ends, by mail, Slack, ntfy, Telegram and others (Apprise).

It tells of: ends of backends, except by a shutdown; processes that a backend has left behind;
shutdowns that failed; what a watchdog has found, such as a limit that memory_limit.py has seen
exceeded. After an end it also tells when the model is ready again: a newer backend of it has
reported READY or BUSY, or has answered without a `Status`, in a background sweep.

It sends one message per model and REPEAT_SECONDS; what happens to the model meanwhile is in the
next message. A recovery is told immediately, once for each message. A message waits 3 s, so that it
has all that belongs to one event, also what the host says of it. During the quiet hours nothing is
sent; the messages follow afterwards. A message has the name of the host and of the model, and no
line of a log.

A background thread sends to each receiver; no reading or shutdown waits for it. A message that
cannot be delivered is tried 8 times, after 5, 10, 20... up to 60 s, then dropped and logged. The
hook's log names a receiver by its line and its service, and never contains its URL.

To enable it, install the extra `[notify]`, copy or link this file into the folder of the monitor's
setting `hooks_dir`, and set environment variables MONITOR_HOOK_NOTIFY_...

    URLS_FILE        a file with one Apprise URL per line (https://appriseit.com/services/), such as
                     `mailtos://USER:PASSWORD@example.com?to=me@example.com`, `ntfy://TOPIC`,
                     `slack://TOKENS`, `tgram://TOKEN/CHAT`; `#` begins a comment
    URLS             the same text instead of a file; programs that the host starts inherit it
    REPEAT_SECONDS   the shortest time between two messages about a model, in seconds (600)
    QUIET            quiet hours by the local clock: `22:00-07:00`
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence
from datetime import datetime

from monitor_plugin import Backend, BackendExit, HostExit, PostMortem, Reading, State, hookimpl
from monitor_plugin.domain.exits import describe_exit
from monitor_plugin.domain.watchdog_actions import describe_watchdog_action
from monitor_plugin.hook_support.delivery import NotSent, SendQueue
from monitor_plugin.hook_support.digests import Digest, Digests, Item, QuietHours, parse_quiet_hours
from monitor_plugin.hook_support.settings import HookSettings, seconds

_logger = logging.getLogger(__name__)

_GATHER_SECONDS = 3.0
_QUIET_CHECK_SECONDS = 10.0
_QUEUE_SIZE = 1000
_ATTEMPTS = 8
_RETRY_SECONDS = 5.0
# A process may be created before the monitor has noticed the end of the one that it replaces.
_NOTICE_SECONDS = 1.0


class Receiver:
    """Sends messages to one Apprise URL.

    Args:
        url: the URL.
        name: a name without secrets, for the log.

    Raises:
        ValueError: Apprise does not know such a URL.
    """

    def __init__(self, url: str, name: str) -> None:
        import apprise  # the extra `[notify]`

        self._apprise = apprise
        asset = apprise.AppriseAsset(app_id="monitor-plugin", async_mode=False)
        self._server = apprise.Apprise(asset=asset)
        log = logging.getLogger("apprise")
        was_disabled, log.disabled = log.disabled, True  # it would log a URL that it cannot parse
        try:
            is_known = self._server.add(url)
        finally:
            log.disabled = was_disabled
        if not is_known:
            raise ValueError("Apprise does not know such a URL, or a part of it is missing")
        service = getattr(self._server[0], "service_name", None)
        self.name = f"{name} ({service})" if service else name

    def send(self, digest: Digest) -> None:
        """Send a message.

        Raises:
            NotSent: the receiver did not accept it; the logger `apprise` has the reason.
        """
        kinds = self._apprise.NotifyType
        sent = self._server.notify(
            title=title_of(digest),
            body=text_of(digest),
            notify_type=kinds.SUCCESS if digest.is_recovery else kinds.FAILURE,
            body_format=self._apprise.NotifyFormat.TEXT,
        )
        if not sent:
            raise NotSent("the receiver did not accept it; the logger apprise has the reason")


def title_of(digest: Digest) -> str:
    """Return the title of a message: the model, the host, and the newest item."""
    count = len(digest.items) + digest.left_out
    more = f" (and {count - 1} more)" if count > 1 else ""
    return _printable(f"{digest.model} on {socket.gethostname()} {digest.items[-1].text}{more}")


def text_of(digest: Digest) -> str:
    """Return the text of a message: each item on a line, with its local time."""
    lines = [f"{each.at.isoformat(' ', 'seconds')} {each.text}" for each in digest.items]
    if digest.left_out:
        lines.insert(0, f"{digest.left_out} older events are left out.")
    about = f"model {digest.model!r} on {socket.gethostname()}"
    return "\n".join(map(_printable, [about, *lines]))


def _printable(text: str) -> str:
    """Escape invisible characters, which could change how the text is shown."""
    escaped = (each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return "".join(escaped)


class Notifier:
    """Gathers what happens to models, and sends it to the receivers. Thread-safe.

    Args:
        receivers: the receivers.
        repeat_seconds: the shortest time between two messages about a model.
        quiet: the quiet hours; None for none.
    """

    def __init__(
        self, receivers: Sequence[Receiver], repeat_seconds: float, quiet: QuietHours | None
    ) -> None:
        self._queues = [
            SendQueue(
                each.send,
                each.name,
                _logger,
                size=_QUEUE_SIZE,
                attempts=_ATTEMPTS,
                pause_seconds=_RETRY_SECONDS,
                interrupt=lambda: None,  # Apprise has timeouts of some seconds
            )
            for each in receivers
        ]
        self._quiet = quiet
        self._digests = Digests(_GATHER_SECONDS, repeat_seconds)
        self._ended_at: dict[str, float] = {}  # by model, of ends without a later recovery
        self._ends: dict[Backend, Item] = {}  # until the host was asked what it knows of each
        self._restarting: set[str] = set()  # models that a watchdog stops to restart them
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="monitor-notify", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        for queue in self._queues:
            queue.start()
        self._thread.start()

    def close(self) -> None:
        """Send what waits, unless the hours are quiet, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        for queue in self._queues:
            queue.close()

    def tell(self, backend: Backend, text: str, *, ended_at: float | None = None) -> None:
        """Tell something about a backend; `ended_at` if it has ended by itself."""
        item = Item(datetime.now().astimezone(), f"(process {backend.pid}) {text}")
        with self._changed:
            if ended_at is not None:
                self._ended_at[backend.model] = ended_at
                self._ends[backend] = item
            self._digests.add(backend.model, item, time.monotonic())
            self._changed.notify()

    def tell_more(self, backend: Backend, text: str | None) -> None:
        """Tell more of an end, unless its message was sent; None if no more is known of it."""
        with self._changed:
            item = self._ends.pop(backend, None)
            if item is not None and text is not None:
                newer = item._replace(text=f"(process {backend.pid}) {text}")
                self._digests.replace(backend.model, item, newer)

    def expect_restart(self, model: str) -> None:
        """Tell of the recovery after the next shutdown of a model: a watchdog restarts it."""
        with self._changed:
            self._restarting.add(model)

    def note_shutdown(self, backend: Backend, ended_at: float) -> None:
        """Tell of no recovery after a shutdown, unless a watchdog restarts the model by it."""
        with self._changed:
            if backend.model in self._restarting:
                self._ended_at[backend.model] = ended_at
            else:
                self._ended_at.pop(backend.model, None)

    def tell_recovery(self, backend: Backend) -> None:
        """Tell that a model is ready again after an end that was no shutdown, or a restart."""
        with self._changed:
            ended_at = self._ended_at.get(backend.model)
            if ended_at is None or backend.created_at < ended_at - _NOTICE_SECONDS:
                return
            del self._ended_at[backend.model]
            self._restarting.discard(backend.model)
            now = datetime.now().astimezone()
            down_seconds = max(0.0, now.timestamp() - ended_at)
            item = Item(now, f"(process {backend.pid}) is ready again, after {down_seconds:.0f} s")
            self._digests.add(backend.model, item, time.monotonic(), is_recovery=True)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                due_at, now = self._digests.due_at(), time.monotonic()
                is_quiet = self._is_quiet()
                if not self._closed and (due_at is None or due_at > now or is_quiet):
                    pause = None if due_at is None else max(0.0, due_at - now)
                    self._changed.wait(_QUIET_CHECK_SECONDS if is_quiet else pause)
                    continue
                # When the hook closes, send also what still waits for further items.
                until = now + _GATHER_SECONDS if self._closed else now
                digests = [] if is_quiet else self._digests.take(until)
            for digest in digests:
                for queue in self._queues:
                    queue.put(digest)
            if self._closed:
                return

    def _is_quiet(self) -> bool:
        return self._quiet is not None and self._quiet.contain(datetime.now().time())


def _open_receivers(settings: HookSettings) -> list[Receiver]:
    """Open a receiver for each URL of the setting; none if it is not set.

    Raises:
        SettingsError: a URL cannot be used, or the extra is not installed. The message names the
            line, and not the URL, which may hold a password.
    """
    receivers = []
    for number, line in enumerate((settings.secret("URLS") or "").splitlines(), 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        try:
            receivers.append(Receiver(url, f"line {number}"))
        except ValueError as error:
            raise settings.error("URLS_FILE", f"line {number}: {error}") from None
        except ModuleNotFoundError as error:
            message = f"{error}: pip install 'monitor-plugin[notify]'"
            raise settings.error("URLS_FILE", message) from None
    return receivers


def _make_notifier(settings: HookSettings) -> Notifier | None:
    repeat = settings.get("REPEAT_SECONDS", seconds, "seconds over 0, as 600", 600.0)
    quiet = settings.get("QUIET", parse_quiet_hours, "quiet hours, as 22:00-07:00", None)
    receivers = _open_receivers(settings)
    if not receivers:
        _logger.info("the hook does nothing: %s is not set", settings.variable("URLS_FILE"))
        return None
    return Notifier(receivers, repeat, quiet)


_notifier = _make_notifier(HookSettings(__name__))


@hookimpl
def monitor_started() -> None:
    """Start the threads."""
    if _notifier:
        _notifier.start()


@hookimpl
def monitor_closing() -> None:
    """End the threads."""
    if _notifier:
        _notifier.close()


@hookimpl
def monitor_backend_gone(backend: Backend, exit: BackendExit) -> None:
    """Tell of an end, unless a shutdown has stopped the backend."""
    if not _notifier:
        return
    if exit.cause == "shutdown":
        _notifier.note_shutdown(backend, exit.ended_at)
        return
    _notifier.tell(backend, _text_of_end(backend, exit), ended_at=exit.ended_at)


@hookimpl
def monitor_backend_postmortem(backend: Backend, postmortem: PostMortem) -> None:
    """Add what the host says of an end to the message that still waits."""
    if _notifier:
        exit, host_exit = postmortem.exit, postmortem.host_exit
        text = None if host_exit is None else _text_of_end(backend, exit, host_exit)
        _notifier.tell_more(backend, text)


def _text_of_end(backend: Backend, exit: BackendExit, host_exit: HostExit | None = None) -> str:
    uptime = max(0.0, exit.ended_at - backend.created_at)
    return f"{describe_exit(exit, host_exit)}, after {uptime:.0f} s"


@hookimpl
def monitor_backend_left_behind(backend: Backend, pids: Sequence[int]) -> None:
    """Tell which processes a backend has left behind."""
    if _notifier:
        numbers = ", ".join(map(str, pids))
        _notifier.tell(backend, f"has left behind processes that still run: {numbers}")


@hookimpl
def monitor_shutdown_finished(backend: Backend, outcome: str, seconds: float) -> None:
    """Tell of a shutdown that failed, or after which the host started the model again."""
    if _notifier and outcome in ("failed", "respawned"):
        what = "failed" if outcome == "failed" else "failed: the host started the model again"
        _notifier.tell(backend, f"shutdown {what}, after {seconds:.0f} s")


@hookimpl
def monitor_watchdog_acted(backend: Backend, watchdog: str, action: str, reason: str) -> None:
    """Tell what a watchdog has found, and what it does."""
    if _notifier:
        if action == "restart":
            _notifier.expect_restart(backend.model)
        what = describe_watchdog_action(action)
        _notifier.tell(backend, f"{what} ({watchdog}): {reason}")


@hookimpl
def monitor_readings_swept(readings: Sequence[Reading]) -> None:
    """Tell of models that are ready again."""
    if _notifier:
        for reading in readings:
            if _is_ready(reading):
                _notifier.tell_recovery(reading.backend)


def _is_ready(reading: Reading) -> bool:
    """Whether a backend can be used: it reports so, or has answered and has no `Status`."""
    if reading.status is not None:
        return reading.status.state in (State.READY, State.BUSY)
    return reading.rpc_error == "UNIMPLEMENTED"
