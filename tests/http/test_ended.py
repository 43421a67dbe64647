"""`GET /ended/ID` and the last output in `/backends`, over real HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monitor_plugin import Monitor, hookimpl
from monitor_plugin.backends import postmortems

from ..support import Client, Spawner, eventually, register
from .test_app import assert_error
from .test_log import ADMIN, READER, TOKENS, load


def test_postmortem_is_answered(
    make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path
) -> None:
    """The list of ended backends and the event name its id. A reader gets no output."""
    (tmp_path / "tokens").write_text(TOKENS)
    monitor = make_monitor(token_file=str(tmp_path / "tokens"), sweep_interval_seconds=0.1)
    client = Client(monitor.url)
    with (tmp_path / "log").open("w") as log:
        backend = spawner.backend(stderr=log)
        log.write("last word\n")
    backend.register(monitor, "m")
    (record,) = monitor._services.registry.records()
    eventually(lambda: record.observation)
    backend.process.kill()
    eventually(lambda: any(each.postmortem for each in monitor._services.registry.last_exits()))
    (ended,) = client.request("GET", "/backends", None, ADMIN).json["ended"]
    (event,) = [
        each
        for each in client.request("GET", "/events", None, READER).json["events"]
        if each["type"] == "ended"
    ]
    assert event["end_id"] == ended["id"]
    path = f"/ended/{ended['id']}"
    answer = client.request("GET", path, None, ADMIN).json
    assert {name: answer[name] for name in ended} == ended
    assert answer["cause"] == "killed"
    assert answer["signal_name"] == "SIGKILL"
    assert answer["last_output"].endswith("last word")
    assert answer["left_behind"] == []
    assert answer["uptime_seconds"] > answer["ready_seconds"] > 0
    assert (answer["ends_last_hour"], answer["node"]) == (1, None)
    assert answer["last_reading"]["state_name"] == "ready"
    assert answer["last_reading"]["source"] == "grpc"
    assert answer["last_reading"]["processes"] == 1
    for_readers = client.request("GET", path, None, READER).json
    assert for_readers == {**answer, "last_output": None}
    (listed,) = client.request("GET", "/backends", None, READER).json["ended"]
    assert listed == {**ended, "last_output": None}
    assert client.request("GET", path).status == 401


def test_postmortem_that_is_not_made_yet_has_nulls(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postmortems.PostMortemMaker, "add", lambda *arguments: None)
    monitor = make_monitor()
    client = Client(monitor.url)
    process = spawner.sleeper()
    register(monitor, process.pid)
    process.kill()
    eventually(lambda: not monitor.backends())
    (ended,) = client.request("GET", "/backends").json["ended"]
    answer = client.request("GET", f"/ended/{ended['id']}").json
    assert (answer["cause"], answer["ends_last_hour"]) == ("killed", 1)
    assert (answer["last_output"], answer["last_reading"], answer["ready_seconds"]) == (None,) * 3


@pytest.mark.parametrize("id", ["1", "x", "-1", "1" * 30, "%00"])
def test_unknown_id_is_not_found(id: str, client: Client) -> None:
    message = assert_error(client.request("GET", f"/ended/{id}"), 404, "not_found")
    assert "is stored; GET /backends lists those that are" in message


SECRET = "s3cret-prompt-of-a-user"


@pytest.mark.once
def test_reader_sees_no_log_line_anywhere(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No route answers with it, with any query or body, and no logger of the monitor has it."""
    caplog.set_level("DEBUG")
    (tmp_path / "tokens").write_text(TOKENS)
    outputs = []

    class Host:
        @hookimpl
        def monitor_read_log(self, stream: str) -> bytes | None:
            return f"{SECRET} of the host".encode() if stream == "stdout" else None

        @hookimpl
        def monitor_start_model(self, model: str) -> bool | None:
            return False

        @hookimpl
        def monitor_backend_postmortem(self, postmortem: object) -> None:
            outputs.append(postmortem)
            raise RuntimeError("the hook fails")

    monitor = make_monitor(plugins=[Host()], token_file=str(tmp_path / "tokens"))
    client = Client(monitor.url)
    load(monitor, spawner, tmp_path / "log of m", SECRET.encode())
    with (tmp_path / "log").open("w") as log:
        log.write(SECRET)
        log.flush()
        process = spawner.process("sleep", "1000", stderr=log)
    register(monitor, process.pid, "ended", "unix:/ended")
    process.kill()
    eventually(lambda: outputs)
    assert SECRET in str(outputs)
    (ended,) = client.request("GET", "/backends", None, ADMIN).json["ended"]
    assert SECRET in ended["last_output"]
    assert SECRET in client.request("GET", "/backend/log?model=m", None, ADMIN).json["text"]
    load_body = {"model": "ended"}
    assert SECRET in client.request("POST", "/backend/load", load_body, ADMIN).body.decode()

    paths = client.request("GET", "/openapi.json", None, READER).json["paths"]
    assert "/backend/log" in paths
    for path in paths:
        concrete = path.replace("{id}", str(ended["id"])).replace("{name}", "app.js")
        for query in ("", "?model=m", "?model=ended", f"?model=m&pid={process.pid}", "?verbose"):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                for headers in (READER, {}):
                    body = {"model": "ended"} if method == "POST" else None
                    answer = client.request(method, concrete + query, body, headers)
                    shown = answer.body.decode(errors="replace") + str(answer.headers)
                    assert SECRET not in shown, (method, concrete, query)
    with pytest.raises(Exception, match="could not be started") as raised:
        monitor.start_model("ended")
    assert SECRET not in str(raised.value)
    monitor.close()
    for record in caplog.get_records("call"):
        assert SECRET not in record.getMessage() + str(record.exc_info) + str(record.__dict__)
