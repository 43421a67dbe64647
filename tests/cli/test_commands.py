"""`ps`, `status` and `stop` against monitors that run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest

from monitor_plugin import Backend, InvalidBackend, KnownModel, Monitor, hookimpl
from monitor_plugin import monitor as monitor_module
from monitor_plugin.cli import main, options
from monitor_plugin.cli.program import program
from monitor_plugin.cli.views.text import escape_name

from ..support import (
    Client,
    Spawner,
    await_memory,
    eventually,
    is_running,
    load_sleeper,
    register,
)
from .scripted import Scripted, failure

HOSTILE = "a\\b [red]x :smile: \u202e\u05e9\u05dc 🦙/ü:7b"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def load(monitor: Monitor, spawner: Spawner) -> Callable[[str], subprocess.Popen[str]]:
    """Registers a process that sleeps, and serves no gRPC."""

    def load(model: str, monitor: Monitor = monitor) -> subprocess.Popen[str]:
        return load_sleeper(monitor, spawner, model)

    return load


Load = Callable[..., "subprocess.Popen[str]"]


def test_ps_prints_a_table_or_json(
    monitor: Monitor,
    spawner: Spawner,
    load: Load,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table with states and memory; `--json` is the answer of /backends; `--model` filters."""
    monkeypatch.setenv("MONITOR_URL", monitor.url)
    backend = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="real", pid=backend.pid, address=backend.address)
    gone = load("gone")
    gone.kill()
    # An end is complete when the monitor has looked for what is left behind.
    client = Client(monitor.url)

    def ended() -> list[dict[str, Any]]:
        answer: dict[str, Any] = client.request("GET", "/backends").json
        return list(answer["ended"])

    eventually(lambda: [each["left_behind"] for each in ended()] == [[]])
    load(HOSTILE)
    assert main(["ps"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^real +{backend.pid} +ready +3\.0 MiB .* grpc *$", text, re.M)
    assert re.search(f"^{re.escape(escape_name(HOSTILE))} .* starting ", text, re.M)
    assert re.search(r"^gone +\d+ +killed +\ds ago .*was killed by SIGKILL", text, re.M)
    assert all(character.isprintable() for line in text.splitlines() for character in line)
    assert main(["ps", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    answer = client.request("GET", "/backends").json
    assert json.loads(printed).keys() == answer.keys()
    assert [each["model"] for each in json.loads(printed)["backends"]] == ["real", HOSTILE]
    assert json.loads(printed)["ended"] == answer["ended"]
    assert main(["ps", "--model", "real"]) == 0
    assert "starting" not in capsys.readouterr().out
    assert main(["ps", "-o", "wide", "--model", "real"]) == 0
    assert re.search(r"^real .* \? +\? +\? +localai +grpc *$", capsys.readouterr().out, re.M)
    assert main(["ps", "--model", "no\\ne"]) == 0
    assert capsys.readouterr().out == "Model 'no\\\\ne' is not loaded.\n"


def test_status_shows_one_model(
    monitor: Monitor, spawner: Spawner, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints all replicas; without one it exits with 4 and says how the last replica ended."""
    url = ["--url", monitor.url]
    for _ in range(2):
        backend = spawner.backend()
        monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    assert main(["status", "m", *url]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^PID +{backend.pid} *$", text, re.MULTILINE)
    for words in ("m  2 replicas", backend.address, "kv_cache"):
        assert words in text
    assert "\nMost that one backend held: memory 3.0 MiB (" in text
    assert "\nREADY " in text
    assert main(["status", "m", "--json", *url]) == 0
    assert len(json.loads(capsys.readouterr().out)["backends"]) == 2
    gone = load("gone")
    eventually(lambda: monitor.sweep("gone")[0].memory)
    gone.kill()
    eventually(lambda: len(monitor.backends()) == 2)
    assert main(["status", "gone", *url]) == options.NOT_LOADED == 4
    text, error = capsys.readouterr()
    assert text.startswith("Most that one backend held: memory ")
    assert f"'gone' is not loaded: its process {gone.pid} was killed by SIGKILL" in error
    assert main(["status", "gone", "--json", *url]) == 4
    assert json.loads(capsys.readouterr().out)["ended"][0]["cause"] == "killed"


class Lists:
    """A host that knows models."""

    def __init__(self, *models: KnownModel) -> None:
        self.models = models

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        return self.models


def test_models_without_a_backend_are_shown(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    load: Load,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`ps` lists those that failed first; `status` says what the host says, and exits with 4."""
    host = Lists(
        KnownModel("idle", "stopped", None, True),
        KnownModel(HOSTILE, "failed", "exited \x1b[31mtoo quickly"),
        KnownModel("m", "running", "pid 1"),
    )
    monitor = make_monitor([host])
    url = ["--url", monitor.url]
    load("m", monitor)
    assert main(["ps", *url]) == 0
    text = capsys.readouterr().out
    assert "; 2 models without a backend\n" in text
    table = text[text.index("NO BACKEND") :]
    lines = [line.rstrip() for line in table.splitlines()]
    assert re.fullmatch(r"NO BACKEND +STATE +START +DETAIL", lines[0])
    name = re.escape(escape_name(HOSTILE))
    assert re.fullmatch(rf"{name} +failed +no +exited \\x1b\[31mtoo quickly", lines[1])
    assert re.fullmatch(r"idle +stopped +yes", lines[2])
    assert main(["ps", "--model", "idle", *url]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Model 'idle' is not loaded.\n")
    assert HOSTILE[:3] not in text
    assert main(["ps", "--json", *url]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [each["model"] for each in models] == ["idle", HOSTILE]
    assert main(["status", HOSTILE, *url]) == options.NOT_LOADED
    shown, error = capsys.readouterr()
    assert shown.splitlines()[1].split() == lines[1].split()
    assert "is not loaded: its host says failed: exited \\x1b[31mtoo quickly\n" in error


def test_last_output_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """`status` shows that of the newest end, loaded or not, where the answer has it."""
    times = {"created_at": "2026-01-02T03:00:00Z", "ended_at": "2026-01-02T03:04:05Z"}
    end = {"model": "m", "cause": "killed", "description": "was killed by SIGKILL", **times}
    output = "CUDA error:\t2\n\x1b[2Jout of memory\n"
    ended = [{**end, "pid": 8, "last_output": output}, {**end, "pid": 7, "last_output": "older"}]
    answer = {"backends": [], "ended": ended, "machine": None}
    with Scripted(
        lambda request: (200, answer) if request.path == "/backends" else failure("not_found")
    ) as scripted:
        assert main(["status", "m", "--url", scripted.url]) == 4
        text = capsys.readouterr().out
        shown = "Last output of process 8:\n  CUDA error:\t2\n  \\x1b[2Jout of memory\n"
        assert text == shown
        answer["backends"] = [{**end, "pid": 9, "address": "a", "uptime_seconds": 1.0}]
        assert main(["status", "m", "--url", scripted.url]) == 0
        text = capsys.readouterr().out
        assert "Last output of process 8:" in text
        assert "older" not in text


def test_refused_registration_is_shown(
    monitor: Monitor, spawner: Spawner, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ps` and `status` say why a process is not registered."""
    pid, url = spawner.sleeper().pid, ["--url", monitor.url]
    with pytest.raises(InvalidBackend):
        register(monitor, pid, "m", "127.0.0.1:99999")
    reason = "address '127.0.0.1:99999': the port must be a number from 1 to 65535"
    assert main(["ps", *url]) == 0
    assert re.search(rf"^m +{pid} +127\.0\.0\.1:99999 +{reason}", capsys.readouterr().out, re.M)
    assert main(["status", "m", *url]) == options.NOT_LOADED
    error = capsys.readouterr().err
    assert f"model 'm' is not loaded: process {pid} was refused: {reason}" in error
    load("m")
    assert main(["status", "m", *url]) == 0
    assert reason in capsys.readouterr().out


def test_stop_stops_all_named_models(
    monitor: Monitor, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stop` reports each model and exits with 0; `--all` also succeeds without a loaded model."""
    stop = ["stop", "--yes", "--url", monitor.url]
    processes = [load(name) for name in ("a", "b c", HOSTILE)]
    for process in processes:
        await_memory(process.pid)
    assert main([*stop, "a", "b c", "a"]) == 0
    line = r"^(.*): stopped in [\d.]+ s; gave back [\d.]+ [KM]iB$"
    assert sorted(re.findall(line, capsys.readouterr().out, re.M)) == ["a", "b c"]
    assert [is_running(process.pid) for process in processes] == [False, False, True]
    assert main([*stop, "--all"]) == 0
    assert not is_running(processes[2].pid)
    assert main([*stop, "--all"]) == 0
    assert capsys.readouterr().out.endswith("No model is loaded.\n")
    last = load("last")
    assert main([*stop, "gone", "last"]) == 4
    assert "model 'gone' is not loaded" in capsys.readouterr().err
    assert not is_running(last.pid)


def test_stop_says_what_the_monitor_cannot_see(
    make_monitor: Callable[..., Monitor],
    load: Load,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below the results, as the header `X-Monitor-Verified` says it to clients of HTTP."""
    for unseen in (None, "the backs of mirrors"):
        monkeypatch.setattr(monitor_module, "find_unseen", lambda unseen=unseen: unseen)
        monitor = make_monitor(respawn_watch_seconds=0)
        load("m", monitor)
        assert main(["stop", "--yes", "m", "--url", monitor.url]) == 0
        assert ("in part: the backs of mirrors.\n" in capsys.readouterr().err) == bool(unseen)
        assert main(["stop", "--yes", "m", "--url", monitor.url]) == 4
        assert "in part" not in capsys.readouterr().err


def test_processes_left_behind_are_shown_and_stopped(
    monitor: Monitor, spawner: Spawner, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ps` and `status` name them until `stop` has stopped them; others of the model run on."""
    url = ["--url", monitor.url]
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())
    register(monitor, root.pid)
    root.kill()
    line = f"m (PID {root.pid}) has ended, and left behind: {child} sleep ("

    def is_shown() -> bool:
        assert main(["ps", *url]) == 0
        return line in capsys.readouterr().out

    eventually(is_shown)
    assert main(["status", "m", *url]) == 4
    assert line in capsys.readouterr().err
    again = spawner.sleeper()
    register(monitor, again.pid)
    assert main(["stop", "--yes", "--pid", str(root.pid), "m", *url]) == 0
    assert not is_running(child)
    assert is_running(again.pid)
    assert "m: stopped in" in capsys.readouterr().out
    assert not is_shown()
    for arguments in (["--all"], ["m", "other"]):
        assert main(["stop", "--yes", "--pid", str(again.pid), *arguments, *url]) == 2
    assert "name that model alone" in capsys.readouterr().err
    assert is_running(again.pid)


def test_stop_of_all_ends_what_is_left_behind(
    monitor: Monitor, spawner: Spawner, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no backend of the model runs."""
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())
    register(monitor, root.pid)
    root.kill()
    eventually(lambda: is_left_behind(monitor, child))
    assert main(["stop", "--all", "--yes", "--url", monitor.url]) == 0
    assert not is_running(child)
    assert "m: stopped in" in capsys.readouterr().out


def is_left_behind(monitor: Monitor, pid: int) -> bool:
    ended = Client(monitor.url).request("GET", "/backends").json["ended"]
    return any(each["pid"] == pid for end in ended for each in end["left_behind"] or ())


class Guard:
    """Refuses to stop the model `guarded`; `forced` says whether the last stop was by force."""

    forced: bool | None = None

    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> str | None:
        self.forced = force
        return "it is \x1bneeded" if backend.model == "guarded" else None


def test_stop_reports_models_that_were_not_stopped(
    make_monitor: Callable[..., Monitor], load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a refusal the exit code is 1, the reason is escaped, other models are stopped."""
    guard = Guard()
    monitor = make_monitor([guard], http_threads=2)  # one shutdown at a time: the others wait
    guarded = load("guarded", monitor)
    others = [load(f"other {number}", monitor) for number in range(2)]
    assert main(["stop", "--all", "--yes", "--force", "--url", monitor.url]) == 1
    error = capsys.readouterr().err
    assert r"refused: it is \x1bneeded" in error
    assert "\x1b" not in error
    assert is_running(guarded.pid)
    assert guard.forced
    assert not any(is_running(each.pid) for each in others)


def test_stop_whose_thread_cannot_start_has_failed(
    monitor: Monitor,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command names the model, and ends."""
    process = load_sleeper(monitor, spawner)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main(["stop", "m", "--yes", "--url", monitor.url]) == 1
    assert "model 'm' was not stopped: can't start new thread" in capsys.readouterr().err
    assert is_running(process.pid)


def test_stop_shows_its_phase(
    make_monitor: Callable[..., Monitor], spawner: Spawner, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stop` prints the phase `draining` while a busy backend drains."""
    monitor = make_monitor(drain_timeout_seconds=1000.0)
    backend = spawner.backend("--state", "1")
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    threading.Thread(target=backend.process.wait, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(main, ["stop", "m", "--yes", "--url", monitor.url])
        printed = ""

        def draining() -> bool:
            nonlocal printed
            printed += capsys.readouterr().err
            return "m: draining, until it is not busy\n" in printed

        eventually(draining)
        monitor.shutdown("m", force=True)
        assert stop.result(60) == 0


def test_stop_needs_a_confirmation(
    monitor: Monitor, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without terminal or model, or with a model and --all, it exits with 2 and stops nothing."""
    process = load("m")
    url = ["--url", monitor.url]
    for arguments in (["m"], ["--all"], ["--yes"], ["--yes", "--all", "m"]):
        assert main(["stop", *arguments, *url]) == 2
    assert "--yes stops without asking" in capsys.readouterr().err
    assert main(["top", *url]) == 2
    assert "top needs a terminal" in capsys.readouterr().err
    assert is_running(process.pid)


def test_a_token_is_sent_and_not_shown(
    make_monitor: Callable[..., Monitor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A token comes from the environment or a file; a wrong token is exit code 1, with advice."""
    (tmp_path / "tokens").write_text("read:grafana:r34d")
    monitor = make_monitor(token="s3cret", token_file=str(tmp_path / "tokens"))
    ps = ["ps", "--url", monitor.url]
    assert main(ps) == 1
    assert "MONITOR_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("MONITOR_TOKEN", "s3cret")
    assert main(ps) == 0
    (tmp_path / "mine").write_text("r34d\n")
    file = ["--token-file", str(tmp_path / "mine")]
    assert main([*ps, *file]) == 0
    assert main(["stop", "--yes", "m", "--url", monitor.url, *file]) == 1
    assert "role" in capsys.readouterr().err
    monkeypatch.setenv("MONITOR_TOKEN", "wr0ng")
    assert main(ps) == 1
    for words in (["--token", "s3cret"], ["--token=s3cret"]):
        assert main([*ps, *words]) == 2
    output = capsys.readouterr()
    assert "--token-file" in output.err
    assert not re.search("s3cret|wr0ng", output.out + output.err)
    assert main([*ps, "--token-file", str(tmp_path / "none")]) == 2


def test_ps_asks_over_a_unix_socket(
    make_monitor: Callable[..., Monitor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--url` takes `unix:/PATH`."""
    monitor = make_monitor(listen=f"unix:{tmp_path}/s")
    assert main(["ps", "--url", monitor.url]) == 0
    assert capsys.readouterr().out == "No model is loaded.\n"


def test_help_lists_commands_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's help has all commands; the help of a command has examples and exit codes."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in program.list_commands(click.Context(program)):
        assert re.search(rf"^ +{command} ", text, re.M)
    for command in (
        "ps",
        "top",
        "status",
        "start",
        "stop",
        "restart",
        "logs",
        "events",
        "ended",
        "doctor",
    ):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Exit codes:\n    0 " in text
        assert "Keys:" in text if command == "top" else f"  monitor-plugin {command}" in text


def test_missing_rich_is_reported_with_its_extra() -> None:
    """Commands that draw fail before they do anything; other commands do not need rich."""
    code = """
import sys
sys.modules["rich"] = None
from monitor_plugin.cli import main
for command in ("ps", "gpus", "top", "stop --yes m"):
    assert main([*command.split(), "--url", "http://127.0.0.1:1"]) == 1
assert main(["ps", "--json", "--url", "http://127.0.0.1:1"]) == 3
assert main(["--help"]) == main(["demo", "--help"]) == 0
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stderr.count("pip install 'monitor-plugin[cli]'\n") == 4
    assert run.stderr.count("\n") == 5
    assert "--listen" in run.stdout


ZSH = {"_MONITOR_PLUGIN_COMPLETE": "zsh_complete", "COMP_WORDS": "x status ", "COMP_CWORD": "2"}


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        (["ps", "--json"], {}),
        (["ps"], {}),
        (["stop", "--help"], {}),
        ([], ZSH),
    ],
)
def test_commands_that_ask_a_monitor_import_neither_grpc_nor_falcon(
    arguments: list[str], environment: dict[str, str], monitor: Monitor, load: Load
) -> None:
    """Nor other slow modules; completion neither. Only a table needs rich."""
    load("m")
    code = """
import sys
from monitor_plugin.cli import main
assert main(sys.argv[1:]) == 0
print(*sorted({"asyncio", "falcon", "grpc", "google.protobuf", "psutil", "rich", "waitress"}
    & set(sys.modules)), file=sys.stderr)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"MONITOR_URL": monitor.url, **environment},
    )
    assert ("plain\nm\n" in run.stdout) == bool(environment)
    assert run.stderr == ("rich\n" if arguments == ["ps"] else "\n")


def test_closed_pipe_causes_no_traceback(monitor: Monitor, load: Load) -> None:
    """`ps | head -1` ends quietly."""
    for number in range(3):
        load(f"{number}" * 250)
    command = f"{sys.executable} -m monitor_plugin.cli ps --url {monitor.url} | true"
    run = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stderr == ""
