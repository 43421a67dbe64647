"""What is loaded, and how it fared: from Python, over HTTP and on the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pluggy
import pytest

from monitor_plugin import Backend, Monitor, Settings, Status, hookimpl, install
from monitor_plugin.api.results import HooksAnswer
from monitor_plugin.cli import main
from monitor_plugin.cli.hooks import hooks_table
from monitor_plugin.testing import BackendFactory, MonitorFactory

from ..support import Client, logged

ENTRY = """
from monitor_plugin import hookimpl

@hookimpl
def monitor_started(monitor): pass
"""


class Books:
    """Answers two hooks, and fails at one of them."""

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status | None:
        raise KeyError(backend.model)

    @hookimpl
    def monitor_call_metadata(self) -> dict[str, str]:
        return {}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs distributions with an entry point, as pip leaves them, until the end of the test."""
    names: list[str] = []

    def install(name: str, code: str, entry: str = "") -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        entry = entry or f"{name}-entry"
        (info / "entry_points.txt").write_text(f"[monitor_plugin]\n{entry} = {name}\n")
        names.append(name)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield install
    for name in names:
        sys.modules.pop(name, None)


def test_plugins_are_listed_with_their_figures(
    make_monitor: MonitorFactory, backend: BackendFactory, installed: Callable[..., None]
) -> None:
    """Each plugin has a name, a source, and the calls, errors and seconds of each hook."""
    installed("third", ENTRY)
    monitor = make_monitor([Books(), Books()])
    monitor.plugin_manager.register(Books(), "late")
    backend().register(monitor, "m")
    monitor.read("m")
    listed = {plugin.name: plugin for plugin in monitor.plugins()}
    assert {name: plugin.source for name, plugin in listed.items()} == {
        "Books": "plugins=",
        "Books-2": "plugins=",
        "third-entry": "third 1.2",
        "late": "plugin_manager.register()",
    }
    metadata, status = sorted(listed["Books-2"].hooks, key=lambda each: each.name)
    assert (metadata.name, status.name) == ("monitor_call_metadata", "monitor_query_status")
    assert (metadata.calls, metadata.errors, metadata.overruns) == (1, 0, 0)
    assert (status.calls, status.errors, status.overruns) == (1, 1, 0)
    assert 0 < status.seconds_max <= status.seconds_total < 1
    assert [each.name for each in listed["third-entry"].hooks] == ["monitor_started"]
    answer = Client(monitor.url).request("GET", "/hooks")
    assert answer.status == 200
    assert answer.json["disabled"] == []
    assert {plugin["name"] for plugin in answer.json["plugins"]} == set(listed)
    hook = answer.json["plugins"][0]["hooks"][0]
    assert set(hook) == {"name", "calls", "errors", "overruns", "seconds_total", "seconds_max"}


def test_broken_package_is_skipped(
    make_monitor: MonitorFactory,
    installed: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The failure is logged, also a SystemExit or a name that is taken."""
    installed("third", "raise SystemExit(3)")
    installed("fourth", "import asyncio; raise asyncio.CancelledError")
    installed("fifth", ENTRY, entry="ours")
    installed("sixth", ENTRY, entry="ours")
    (plugin,) = make_monitor().plugins()
    assert plugin.name == "ours"
    other = {"fifth 1.2": "sixth 1.2", "sixth 1.2": "fifth 1.2"}[plugin.source]
    assert set(logged(caplog)) == {
        "plugin 'third-entry' of third 1.2 was not loaded",
        "plugin 'fourth-entry' of fourth 1.2 was not loaded",
        f"plugin 'ours' of {other} was not loaded: another plugin has that name",
    }


def test_file_with_a_name_that_is_not_unicode_is_listed(
    make_monitor: MonitorFactory, tmp_path: Path
) -> None:
    """The invalid bytes are escaped; the other plugins stay in the list."""
    tmp_path.chmod(0o755)
    path = tmp_path / os.fsdecode(b"caf\xe9.py")
    path.write_text("")
    path.chmod(0o644)
    monitor = make_monitor([Books()], hook=(str(path),), disable_hook=("\udce9",))
    answer = Client(monitor.url).request("GET", "/hooks")
    assert answer.status == 200
    assert [(each["name"], each["source"]) for each in answer.json["plugins"]] == [
        ("Books", "plugins="),
        ("monitor_plugin_hooks.caf\\udce9", f"{tmp_path}/caf\\udce9.py"),
    ]
    assert answer.json["disabled"] == ["\\udce9"]


def test_disabled_plugins_are_skipped(
    make_monitor: MonitorFactory,
    installed: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Disabled packages are not imported; the monitor's own plugin cannot be disabled."""
    installed("third", "raise SystemExit")
    installed("fourth", ENTRY)
    names = ("Books", "third-entry", "monitor_plugin")
    monitor = make_monitor([Books()], disable_hook=names)
    assert [plugin.name for plugin in monitor.plugins()] == ["fourth-entry"]
    assert "third" not in sys.modules
    assert monitor.plugin_manager.register(Books()) is None
    assert Client(monitor.url).request("GET", "/hooks").json["disabled"] == list(names)
    assert logged(caplog) == ["setting disable_hook: there is no plugin 'monitor_plugin'"]
    assert monitor.plugin_manager.hook.monitor_backend_spawned.get_hookimpls()


def test_plugins_of_the_host_are_listed() -> None:
    """Plugins that implement a hook of the monitor are listed, with their manager as the source."""
    manager = pluggy.PluginManager("myhost")
    marker = pluggy.HookimplMarker("myhost")

    class Mine:
        @marker
        def monitor_closing(self) -> None: ...

    class Other: ...

    manager.register(Mine(), "mine")
    manager.register(Other(), "other")
    monitor = install(manager, Settings(listen=None))
    (plugin,) = monitor.plugins()
    assert (plugin.name, plugin.source) == ("mine", "plugin manager of 'myhost'")
    assert [each.name for each in plugin.hooks] == ["monitor_closing"]
    monitor.close()


def test_hooks_need_the_role_read(make_monitor: MonitorFactory, tmp_path: Path) -> None:
    """A token of any role is required."""
    tokens = tmp_path / "tokens"
    tokens.write_text("read:grafana:r3ad")
    client = Client(make_monitor(token_file=str(tokens)).url)
    assert client.request("GET", "/hooks").status == 401
    headers = {"Authorization": "Bearer r3ad"}
    assert client.request("GET", "/hooks", None, headers).json == {"plugins": [], "disabled": []}


@pytest.mark.parametrize("where", ["flag", "variable", "socket"])
def test_hooks_command_queries_a_running_monitor(
    where: str,
    make_monitor: MonitorFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The URL comes from a flag or a variable; the output is a table or JSON."""
    listen = f"unix:{tmp_path}/s" if where == "socket" else "127.0.0.1:0"
    monitor = make_monitor([Books()], listen=listen, token="s3cret", disable_hook=("gone",))
    (tmp_path / "token").write_text("s3cret\n")
    arguments = ["--url", monitor.url, "--token-file", str(tmp_path / "token")]
    if where == "variable":
        arguments = []
        monkeypatch.setenv("MONITOR_URL", monitor.url)
        monkeypatch.setenv("MONITOR_TOKEN", "s3cret")
    assert main(["hooks", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["PLUGIN", "HOOK", "CALLS", "ERRORS"]
    assert lines[2].split()[:4] == ["Books", "monitor_query_status", "0", "0"]
    assert lines[2].endswith("  plugins=")
    assert lines[-1] == "left out: gone"
    assert main(["hooks", "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["plugins"][0]["name"] == "Books"
    monkeypatch.setenv("MONITOR_TOKEN", "wr0ng")
    assert main(["hooks", "--url", monitor.url]) == 1
    error = capsys.readouterr().err
    assert error.startswith("monitor-plugin: ")
    assert "token" in error
    assert "wr0ng" not in error


def test_table_shows_any_plugins() -> None:
    """No plugin at all, one without hooks, and a name that would move the cursor."""
    assert hooks_table(HooksAnswer([], ())) == "no plugin is loaded"
    hook: dict[str, Any] = {"name": "h", "calls": 12345678, "errors": 0, "overruns": 1}
    hook |= {"seconds_total": 1.25, "seconds_max": 0.001}
    plugins = [
        {"name": "a\x1b[2J", "source": "s", "hooks": []},
        {"name": "b", "source": "s", "hooks": [hook]},
    ]
    answer = msgspec.convert({"plugins": plugins, "disabled": ["x", "y"]}, HooksAnswer)
    lines = hooks_table(answer).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a\\x1b[2J", "-", "-", "-", "-", "-", "-", "s"],
        ["b", "h", "12345678", "0", "1", "1250.0", "1.0", "s"],
        ["left", "out:", "x,", "y"],
    ]
    assert len({line.index("s") for line in lines[1:3]} | {lines[0].index("SOURCE")}) <= 2


def test_table_names_plugins_that_are_behind() -> None:
    """A plugin that got every event at once has no line, nor has one without such hooks."""
    waiting = {"waiting": 3, "oldest_seconds": 2.52, "coalesced": 4, "dropped": 1}
    lags = {"slow\x1b[2J": waiting, "was": {"coalesced": 4}, "quick": {}, "other": None}
    plugins = [
        {"name": name, "source": "s", "hooks": [], "events": lag} for name, lag in lags.items()
    ]
    answer = msgspec.convert({"plugins": plugins, "disabled": ["x"]}, HooksAnswer)
    assert hooks_table(answer).splitlines()[5:] == [
        "slow\\x1b[2J: 3 events wait, the oldest for 2.5 s; 4 coalesced, 1 dropped",
        "was: 0 events wait; 4 coalesced, 0 dropped",
        "left out: x",
    ]


def test_list_flags_may_be_repeated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List flags add up, and commas separate values; of other flags the last one counts."""
    for name in ("a", "b", "c"):
        (folder / f"{name}.py").write_text(f"raise KeyError('{name}')")
    flags = ["--hook", f"{folder}/a.py,{folder}/b.py", "--hook", f"{folder}/c.py"]
    disabled = ["--disable-hook", "a", "--disable-hook", "b"]
    assert main(["demo", "--once", *flags, *disabled]) == 1
    assert f"{folder}/c.py was not loaded: KeyError: 'c'" in capsys.readouterr().err
    assert main(["demo", "--once", *flags, *disabled[:2]]) == 1
    assert f"{folder}/b.py was not loaded: KeyError: 'b'" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that only the monitor's user may write."""
    folder = tmp_path / "hooks"
    folder.mkdir(mode=0o755)
    return folder


def test_environment_variables_are_lists(folder: Path) -> None:
    """Commas separate the values."""
    environment = {"MONITOR_HOOK": f"{folder}/a.py, {folder}/b.py", "MONITOR_DISABLE_HOOK": "a,b"}
    settings = Settings.from_environment(environment)
    assert settings.hook == (f"{folder}/a.py", f"{folder}/b.py")
    assert settings.disable_hook == ("a", "b")
    assert Monitor(settings).plugins() == []
