"""Settings, and the small things beneath: shared values, ticks, exits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from monitor_plugin import BackendExit, Settings, SettingsError
from monitor_plugin.exits import describe_exit, make_exit
from monitor_plugin.settings import parse_listen
from monitor_plugin.shared import Shared
from monitor_plugin.ticker import Ticker

from .support import eventually


def test_every_field_comes_from_the_environment() -> None:
    """Each field has its variable; empty counts as unset, `none` as None."""
    environment = {
        "MONITOR_LISTEN": "none",
        "MONITOR_TOKEN": "s3cret",
        "MONITOR_STATUS_TIMEOUT_SECONDS": "2.5",
        "MONITOR_DRAIN_TIMEOUT_SECONDS": "0",
        "MONITOR_STOP_TIMEOUT_SECONDS": "3",
        "MONITOR_RESPAWN_WATCH_SECONDS": "",
        "MONITOR_HOOK_TIMEOUT_SECONDS": "4",
        "MONITOR_HTTP_THREADS": "2",
        "MONITOR_HOOKS_DIR": "/etc/hooks",
        "OTHER": "x",
    }
    assert Settings.from_environment(environment) == Settings(
        listen=None,
        token="s3cret",
        status_timeout_seconds=2.5,
        drain_timeout_seconds=0.0,
        stop_timeout_seconds=3.0,
        hook_timeout_seconds=4.0,
        http_threads=2,
        hooks_dir="/etc/hooks",
    )


def test_the_token_is_never_shown() -> None:
    """A repr hides the token, and says that there is one."""
    assert "s3cret" not in repr(Settings(token="s3cret"))
    assert "token=***" in repr(Settings(token="s3cret"))
    assert "token=None" in repr(Settings())


@pytest.mark.parametrize(
    "bad",
    [
        {"status_timeout_seconds": 0},
        {"status_timeout_seconds": -1.0},
        {"status_timeout_seconds": float("nan")},
        {"status_timeout_seconds": float("inf")},
        {"status_timeout_seconds": "1"},
        {"drain_timeout_seconds": -0.1},
        {"http_threads": 1},
        {"http_threads": 2.5},
        {"listen": 8080},
        {"listen": "8080"},
        {"listen": ":8080"},
        {"listen": "localhost:"},
        {"listen": "localhost:65536"},
        {"listen": "::1:80"},
        {"listen": "[::g]:80"},
        {"token": 5},
    ],
)
def test_a_bad_setting_is_refused_by_name(bad: dict[str, Any]) -> None:
    """A value that cannot be used raises at once, and names the setting."""
    (name,) = bad
    with pytest.raises(SettingsError, match=name) as raised:
        Settings(**bad)
    assert raised.value.setting == name


def test_where_to_listen() -> None:
    """HOST:PORT, with IPv6 addresses in brackets."""
    assert parse_listen("localhost:0") == ("localhost", 0)
    assert parse_listen("[::1]:80") == ("::1", 80)


def test_a_shared_value_is_computed_once() -> None:
    """Who asks meanwhile gets the same value; an error reaches all, and is not kept."""
    go = threading.Event()
    calls: list[int] = []

    def compute() -> int:
        calls.append(1)
        go.wait(30)
        if len(calls) == 1:
            raise RuntimeError("first")
        return len(calls)

    shared = Shared(3600, compute)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(shared.get) for _ in range(5)]
        eventually(lambda: calls)
        eventually(lambda: sum(each.running() for each in asked) == 5)
        go.set()
        outcomes = [each.exception(30) or each.result() for each in asked]
    assert isinstance(outcomes[0], RuntimeError)
    assert shared.get() == shared.get() == len(calls)

    def count() -> int:
        calls.append(1)
        return len(calls)

    fresh = Shared(0, count)
    assert fresh.get() < fresh.get()


def test_a_ticker_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """What one tick raises is logged, and later ticks come; closing ends the thread."""
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        raise RuntimeError("bad tick")

    ticker = Ticker("the-ticker", 0.001, tick)
    ticker.start()
    eventually(lambda: len(ticks) > 2)
    ticker.close()
    assert "bad tick" in caplog.text
    assert not [each for each in threading.enumerate() if each.name == "the-ticker"]


@pytest.mark.parametrize(
    ("code", "stopped", "oom", "expected", "words"),
    [
        (0, False, False, BackendExit("exited", 0, None, False, 6.0), "exited with code 0 4 s ago"),
        (-9, False, False, BackendExit("killed", None, 9, None, 6.0), "killed by SIGKILL 4 s ago"),
        (-9, False, True, BackendExit("oom", None, 9, True, 6.0), "for want of memory 4 s ago"),
        (-15, False, True, BackendExit("killed", None, 15, None, 6.0), "by SIGTERM"),
        (-40, False, False, BackendExit("killed", None, 40, None, 6.0), "by signal 40"),
        (-15, True, False, BackendExit("shutdown", None, 15, None, 6.0), "stopped by a shutdown"),
        (None, False, True, BackendExit("unknown", None, None, None, 6.0), "ended 4 s ago"),
    ],
)
def test_how_a_process_ended(
    code: int | None, stopped: bool, oom: bool, expected: BackendExit, words: str
) -> None:
    """Cause, code and signal are told apart, and said in words."""
    exit = make_exit(code, stopped, oom, 6.0)
    assert exit == expected
    assert words in describe_exit(exit, 10.0)
