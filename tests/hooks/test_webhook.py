"""Webhooks: events of real backends are posted in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin import Backend, PluginError, ShutdownRefused, hookimpl

from ..receiver import Receiver
from ..support import Spawner, eventually, register, started_since
from .conftest import MakeHooked

SECRET = "hunter2-and-more"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def test_backend_events_are_posted(
    hooked: MakeHooked, spawner: Spawner, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """State changes, exits and shutdowns are signed; retries have the same id."""
    caplog.set_level(logging.DEBUG)
    receiver.answers = [(503, {})]
    one, other = spawner.backend(), spawner.backend("--busy-seconds", "1000")
    hook = hooked(
        "webhook", {"URL": f"{receiver.url}/in", "SECRET": SECRET, "RETRY_SECONDS": "0.01"}
    )
    hook.spawned("llama", one)
    hook.spawned("org/bert ✓", other)
    for model in ("llama", "org/bert ✓"):
        hook.monitor.read(model)
    other.process.kill()
    hook.monitor.shutdown("llama")
    eventually(lambda: len(receiver.posts) == 6)
    assert len({post.headers["webhook-id"] for post in receiver.posts}) == 5
    assert receiver.posts[0].headers["webhook-id"] == receiver.posts[1].headers["webhook-id"]
    assert all(post.is_signed(SECRET.encode()) for post in receiver.posts)
    assert {post.path for post in receiver.posts} == {"/in"}
    del receiver.posts[0]
    states = receiver.named("state_changed")
    assert [(each["model"], each["pid"]) for each in states] == [
        ("llama", one.pid),
        ("org/bert ✓", other.pid),
    ]
    assert [(each["previous"], each["current_name"]) for each in states] == [
        (None, "ready"),
        (None, "busy"),
    ]
    ends = {each["model"]: (each["cause"], each["signal_name"]) for each in receiver.named("ended")}
    assert ends == {"org/bert ✓": ("killed", "SIGKILL"), "llama": ("shutdown", None)}
    (shutdown,) = receiver.named("shutdown_finished")
    assert (shutdown["model"], shutdown["outcome"]) == ("llama", "stopped")
    assert shutdown["freed"]["memory"] > 0
    backend = Backend("llama", one.pid, one.address, 0.0)
    hook.monitor.report_watchdog(backend, "stuck_stop", "restart", "it was silent")
    eventually(lambda: receiver.named("watchdog"))
    (acted,) = receiver.named("watchdog")
    assert (acted["model"], acted["pid"]) == ("llama", one.pid)
    facts = (acted["watchdog"], acted["action"], acted["reason"])
    assert facts == ("stuck_stop", "restart", "it was silent")
    assert SECRET not in caplog.text
    assert receiver.url not in caplog.text


def test_hanging_receiver_delays_no_reading(
    hooked: MakeHooked, spawner: Spawner, receiver: Receiver
) -> None:
    """Readings, shutdowns and the monitor's close do not wait for the response."""
    receiver.open.clear()
    backend = spawner.backend()
    hook = hooked("webhook", {"URL": receiver.url, "SECRET": SECRET, "QUEUE": "2"})
    hook.spawned("m", backend)
    hook.monitor.read("m")
    eventually(lambda: receiver.posts)
    hook.monitor.shutdown("m")
    hook.monitor.close()
    assert len(receiver.posts) == 1
    eventually(lambda: "monitor-send" not in [each.name for each in threading.enumerate()])


def test_hook_does_nothing_without_a_url(hooked: MakeHooked, spawner: Spawner) -> None:
    """All shipped hooks can be loaded together without settings."""
    before = threading.enumerate()
    hook = hooked("webhook", {})
    backend = spawner.backend()
    hook.spawned("m", backend)
    hook.monitor.read("m")
    assert "monitor-send" not in started_since(before)
    hook.monitor.close()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "MONITOR_HOOK_WEBHOOK_SECRET_FILE: write the path of a file that contains the secret"),
        ({"URL": "hunter2@x"}, "MONITOR_HOOK_WEBHOOK_URL: it is not an https:// or http:// URL"),
        ({"SECRET_FILE": "/no/file"}, "MONITOR_HOOK_WEBHOOK_SECRET_FILE='/no/file': No such file"),
        (
            {"SECRET": "whsec_hunter2!"},
            "MONITOR_HOOK_WEBHOOK_SECRET: the text after whsec_ is not base64",
        ),
        ({"SECRET": SECRET, "QUEUE": "0"}, "MONITOR_HOOK_WEBHOOK_QUEUE='0': "),
        ({"SECRET": SECRET, "LOG_LINES": "-1"}, "MONITOR_HOOK_WEBHOOK_LOG_LINES='-1': "),
        ({"SECRET": SECRET, "ATTEMPTS": "x"}, "MONITOR_HOOK_WEBHOOK_ATTEMPTS='x': "),
        ({"SECRET": SECRET, "TIMEOUT_SECONDS": "-1"}, "MONITOR_HOOK_WEBHOOK_TIMEOUT_SECONDS='-1'"),
        ({"SECRET": SECRET, "RETRY_SECONDS": "nan"}, "MONITOR_HOOK_WEBHOOK_RETRY_SECONDS='nan'"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, str], why: str, hooked: MakeHooked) -> None:
    """Loading the file raises an error with the expected value, and without the secret."""
    with pytest.raises(PluginError) as raised:
        hooked("webhook", {"URL": "http://127.0.0.1:1", **values})
    assert why in str(raised.value)
    assert "write " in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_secret_file_contains_the_secret(
    hooked: MakeHooked, spawner: Spawner, receiver: Receiver, tmp_path: Path
) -> None:
    """A refused shutdown is posted as well."""
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    hook = hooked("webhook", {"URL": receiver.url, "SECRET_FILE": str(file)})

    class Refuses:
        @hookimpl
        def monitor_before_shutdown(self) -> str:
            return "not today"

    hook.monitor.plugin_manager.register(Refuses())
    hook.spawned("m", spawner.backend())
    with pytest.raises(ShutdownRefused):
        hook.monitor.shutdown("m")
    (post,) = eventually(lambda: receiver.posts)
    assert post.is_signed(SECRET.encode())
    assert (post.json["type"], post.json["outcome"]) == ("shutdown_finished", "refused")


def test_exit_is_posted_with_the_last_lines(
    hooked: MakeHooked, spawner: Spawner, receiver: Receiver, tmp_path: Path
) -> None:
    """With LOG_LINES, an exit is posted once, when its post-mortem is known."""
    with (tmp_path / "log").open("w") as log:
        log.write("one\ntwo\n\x1b[31mthree\x1b[0m\n")
        log.flush()
        process = spawner.process("sleep", "1000", stderr=log)
    hook = hooked("webhook", {"URL": receiver.url, "SECRET": SECRET, "LOG_LINES": "2"})
    register(hook.monitor, process.pid)
    process.kill()
    eventually(lambda: receiver.named("ended"))
    (ended,) = hook.monitor._services.registry.last_exits()
    hook.monitor.close()
    (event,) = receiver.named("ended")
    assert event["last_output"] == "two\nthree"
    assert (event["cause"], event["signal_name"]) == ("killed", "SIGKILL")
    assert (event["end_id"], event["ends_last_hour"]) == (ended.id, 1)
    assert (event["ready_seconds"], event["left_behind"]) == (None, [])
    assert event["uptime_seconds"] >= 0


@pytest.mark.parametrize("lines", ["", "0"])
def test_exit_is_posted_without_output_by_default(
    lines: str, hooked: MakeHooked, spawner: Spawner, receiver: Receiver, tmp_path: Path
) -> None:
    """The post-mortem, which has the output, is not posted."""
    with (tmp_path / "log").open("w") as log:
        log.write("a prompt\n")
        log.flush()
        process = spawner.process("sleep", "1000", stderr=log)
    hook = hooked("webhook", {"URL": receiver.url, "SECRET": SECRET, "LOG_LINES": lines})
    register(hook.monitor, process.pid)
    process.kill()
    exits = hook.monitor._services.registry.last_exits
    eventually(lambda: exits() and exits()[0].postmortem)
    eventually(lambda: receiver.named("ended"))
    hook.monitor.close()
    (event,) = receiver.named("ended")
    assert "last_output" not in event
    assert "prompt" not in str(receiver.posts)
