"""Log lines, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from monitor_plugin import Monitor
from monitor_plugin.telemetry.log_lines import JsonFormatter

from ..support import Client, Spawner, eventually


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Returns the lines that the package logged so far at INFO and above, parsed."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("monitor_plugin")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_each_event_is_logged_in_one_line(
    monitor: Monitor, spawner: Spawner, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Changes of state, exits and shutdowns are logged, with durations; readings are not."""
    client = Client(monitor.url)
    running, dies = spawner.backend(), spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m\u00e9", pid=running.pid, address=running.address)
    monitor.hook.monitor_backend_spawned(model="d", pid=dies.pid, address="127.0.0.1:1")
    for _ in range(20):
        client.monitor("m\u00e9")
        client.request("GET", "/backends")
    dies.kill()
    eventually(lambda: len(monitor.backends()) == 1)
    client.shutdown("m\u00e9")
    eventually(lambda: len(lines()) == 5)
    told = lines()
    (audited,) = [each for each in told if each["logger"] == "monitor_plugin.audit"]
    told.remove(audited)  # which another thread writes
    state, killed, stopped, shutdown = told
    for line in (state, killed, stopped, audited, shutdown):
        assert line.pop("time").endswith("Z")
        assert line.pop("level") == "INFO"
        line.setdefault("seconds", 0.0)
        assert line.pop("seconds") >= 0
    ours = {"logger": "monitor_plugin.logs"}
    m, d = {"model": "m\u00e9", "pid": running.pid}, {"model": "d", "pid": dies.pid}
    assert state == {
        **ours,
        "message": f"model 'm\u00e9' (process {running.pid}) is ready",
        "event": "state_changed",
        **m,
        "previous": None,
        "current": "ready",
    }
    assert killed.pop("message").startswith(
        f"model 'd' (process {dies.pid}) was killed by SIGKILL, after "
    )
    end = {**ours, "event": "backend_gone"}
    assert killed == {**end, **d, "cause": "killed", "exit_code": None, "signal": 9}
    assert (stopped["event"], stopped["cause"]) == ("backend_gone", "shutdown")
    assert shutdown["message"].startswith(
        f"model 'm\u00e9' (process {running.pid}) shutdown: stopped, in "
    )
    assert (shutdown["event"], shutdown["outcome"]) == ("shutdown_finished", "stopped")
    assert shutdown["freed"]["memory"] > 0
    assert "; gave back " in shutdown["message"]
    assert audited["logger"] == "monitor_plugin.audit"
    assert audited["message"] == "POST /backend/shutdown: stopped"
    assert (audited["model"], audited["who"]) == ("m\u00e9", "anonymous")


def test_json_formatter_formats_other_records() -> None:
    """The traceback is in the same line, in ASCII."""
    try:
        raise ValueError("b\u00e4d\nnews")
    except ValueError as error:
        record = logging.LogRecord(
            "x.y", logging.ERROR, __file__, 1, "it %s", ("fails",), (type(error), error, None)
        )
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("ERROR", "x.y", "it fails")
    assert "ValueError: b\u00e4d\nnews" in parsed["exception"]
