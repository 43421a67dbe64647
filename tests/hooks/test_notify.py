"""Notifications: Apprise delivers them to a real SMTP server and to an HTTP server like ntfy's."""

from __future__ import annotations

import email
import email.policy
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import Backend, BackendExit, PluginError

from ..receiver import Receiver
from ..support import Spawner, eventually, free_port
from .conftest import MakeHooked

controller = pytest.importorskip("aiosmtpd.controller")
pytest.importorskip("apprise")

PASSWORD = "hunter2-and-more"


class Mailbox:
    """Records the mails that an SMTP server gets."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(  # noqa: N802 - the name that aiosmtpd calls
        self, server: Any, session: Any, envelope: Any
    ) -> str:
        """Record a mail."""
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append(mail)
        return "250 OK"

    def text(self, number: int) -> str:
        return str(self.mails[number].get_body(("plain", "html")).get_content())


@pytest.fixture
def smtp() -> Iterator[tuple[Mailbox, str]]:
    """Starts an SMTP server; gives its mailbox and its Apprise URL."""
    mailbox, port = Mailbox(), free_port()
    server = controller.Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    sender = "from=monitor@example.com&to=operator@example.com"
    yield mailbox, f"mailto://127.0.0.1:{port}?mode=insecure&{sender}"
    server.stop()


@pytest.fixture
def ntfy() -> Iterator[Receiver]:
    with Receiver() as receiver:
        receiver.answers = [(200, {})] * 100
        yield receiver


def notes(receiver: Receiver) -> list[tuple[str, str]]:
    """Return the titles and texts that the ntfy-like server got."""
    posts = [json.loads(each.body) for each in receiver.posts]
    return [(each["title"], each["message"]) for each in posts]


def urls_file(folder: Path, *lines: str) -> dict[str, str]:
    """Write a file of URLs; return the setting that names it."""
    path = folder / "urls"
    path.write_text("\n".join(["# where the operators look", "", *lines, ""]))
    return {"URLS_FILE": str(path)}


def test_end_and_recovery_are_told_by_mail_and_by_http(
    hooked: MakeHooked,
    spawner: Spawner,
    smtp: tuple[Mailbox, str],
    ntfy: Receiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each receiver gets one message for the end, and one when a new backend is ready."""
    mailbox, mail_url = smtp
    caplog.set_level(logging.DEBUG, "monitor_plugin_hooks")
    settings = urls_file(tmp_path, mail_url, f"ntfy://u:{PASSWORD}@127.0.0.1:{ntfy.port}/alerts")
    hook = hooked("notify", settings, sweep_interval_seconds=0.2)
    backend = spawner.backend()
    hook.spawned("llama", backend)
    os.kill(backend.pid, signal.SIGKILL)
    eventually(lambda: len(ntfy.posts) == 1 and len(mailbox.mails) == 1, 30)
    hook.spawned("llama", spawner.backend())
    eventually(lambda: len(ntfy.posts) == 2 and len(mailbox.mails) == 2, 30)
    (ended, recovered) = notes(ntfy)
    host = socket.gethostname()
    assert ended[0].startswith(f"llama on {host} (process {backend.pid}) was killed by SIGKILL")
    assert "is ready again, after" in recovered[0]
    assert f"model 'llama' on {host}" in ended[1]
    assert "was killed by SIGKILL" in mailbox.text(0)
    assert "is ready again" in mailbox.text(1)
    assert PASSWORD not in caplog.text


def test_other_troubles_are_told_and_a_clean_shutdown_is_not(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """Shutdowns that failed, left-behind processes and reports of watchdogs are told."""
    hook = hooked("notify", urls_file(tmp_path, f"ntfy://127.0.0.1:{ntfy.port}/alerts"))
    backend = spawner.backend()
    hook.spawned("quiet", backend)
    record = hook.monitor.backends()[0]
    hook.monitor.shutdown("quiet")
    other = Backend("llama\u202e", 4711, record.address, record.created_at)
    module = hook.module
    module.monitor_backend_left_behind(backend=other, pids=[12, 13])
    module.monitor_shutdown_finished(backend=other, outcome="stopped", seconds=1.0)
    module.monitor_shutdown_finished(backend=other, outcome="respawned", seconds=2.0)
    hook.monitor.report_watchdog(other, "memory_limit", "tell", "it holds 9 GiB, over 8 GiB")
    eventually(lambda: ntfy.posts, 30)
    ((title, text),) = notes(ntfy)
    assert title.startswith("llama\\u202e on ")
    assert title.endswith("(and 2 more)")
    assert "has left behind processes that still run: 12, 13" in text
    assert "shutdown failed: the host started the model again, after 2 s" in text
    assert "needs attention (memory_limit): it holds 9 GiB, over 8 GiB" in text
    assert "quiet" not in text


def test_model_stopped_by_a_shutdown_does_not_recover(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """A model that ended, came back unready, and was stopped has no recovery at its next start."""
    hook = hooked(
        "notify",
        urls_file(tmp_path, f"ntfy://127.0.0.1:{ntfy.port}/alerts"),
        sweep_interval_seconds=0.2,
    )
    module, backend = hook.module, spawner.backend()
    hook.spawned("m", backend)
    record = hook.monitor.backends()[0]
    gone = BackendExit("killed", None, 9, None, record.created_at)
    module.monitor_backend_gone(backend=record, exit=gone)
    module.monitor_backend_gone(backend=record, exit=BackendExit("shutdown", 0, None, None, 0.0))
    eventually(lambda: len(ntfy.posts) == 1, 30)
    module.monitor_readings_swept(readings=[hook.monitor.read("m")])
    hook.monitor.close()
    assert len(ntfy.posts) == 1


def test_recovery_after_a_restart_by_a_watchdog_is_told(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """The restart is told when it begins, so that people wait for its result."""
    settings = urls_file(tmp_path, f"ntfy://127.0.0.1:{ntfy.port}/alerts")
    hook = hooked("notify", settings, sweep_interval_seconds=0.2)
    hook.spawned("m", spawner.backend())
    (stuck,) = hook.monitor.backends()
    hook.monitor.report_watchdog(stuck, "stuck_stop", "restart", "it was silent for 10 s")
    eventually(lambda: len(ntfy.posts) == 1, 30)
    hook.monitor.shutdown("m")
    hook.spawned("m", spawner.backend())
    eventually(lambda: len(ntfy.posts) == 2, 30)
    (begun, recovered) = notes(ntfy)
    assert "is being restarted (stuck_stop)" in begun[0]
    assert "is ready again, after" in recovered[0]


def test_quiet_hours_hold_messages_back(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """Nothing is sent during them, also not when the monitor closes."""
    now = datetime.now()
    quiet = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=2):%H:%M}"
    hook = hooked(
        "notify", {**urls_file(tmp_path, f"ntfy://127.0.0.1:{ntfy.port}/alerts"), "QUIET": quiet}
    )
    backend = spawner.backend()
    hook.spawned("m", backend)
    os.kill(backend.pid, signal.SIGKILL)
    notifier = hook.module._notifier
    eventually(lambda: notifier._digests.due_at() is not None)
    hook.monitor.close()
    assert ntfy.posts == []


def test_close_sends_what_was_gathered(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """The monitor's close does not wait for further items, and loses no message."""
    hook = hooked("notify", urls_file(tmp_path, f"ntfy://127.0.0.1:{ntfy.port}/alerts"))
    backend = spawner.backend()
    hook.spawned("m", backend)
    os.kill(backend.pid, signal.SIGKILL)
    notifier = hook.module._notifier
    eventually(lambda: notifier._digests.due_at() is not None)
    hook.monitor.close()
    eventually(lambda: len(ntfy.posts) == 1)


def test_receiver_that_hangs_delays_nothing(
    hooked: MakeHooked, spawner: Spawner, ntfy: Receiver, tmp_path: Path
) -> None:
    """Another receiver gets its message, and the monitor answers and closes."""
    with Receiver() as other:
        other.answers = [(200, {})]
        ntfy.open.clear()
        lines = [f"ntfy://127.0.0.1:{each.port}/alerts" for each in (ntfy, other)]
        hook = hooked("notify", urls_file(tmp_path, *lines))
        first, second = spawner.backend(), spawner.backend()
        hook.spawned("first", first)
        hook.spawned("second", second)
        os.kill(first.pid, signal.SIGKILL)
        eventually(lambda: ntfy.posts and other.posts, 30)
        hook.monitor.shutdown("second")
        hook.monitor.close()
        ntfy.open.set()


@pytest.mark.parametrize("url", [f"foo://user:{PASSWORD}@host", PASSWORD, f"slack://{PASSWORD}"])
def test_unusable_url_is_refused_without_being_shown(
    hooked: MakeHooked, tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    """The error names the line; neither it nor any log has the URL."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PluginError, match="URLS_FILE: line 3: Apprise does not know") as caught:
        hooked("notify", urls_file(tmp_path, url))
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in caplog.text
