"""Hook files: what is loaded, and what may not be trusted to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor_plugin import Monitor, MonitorError, PluginError, Settings, SettingsError

from ..support import logged

COUNTS = """
import dataclasses, os
import monitor_plugin

calls = []

@dataclasses.dataclass(slots=True)
class Note:
    model: str

@monitor_plugin.hookimpl
def monitor_started(monitor):
    calls.append(Note(os.environ.get("MONITOR_HOOK_COUNTS_NAME", "")))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for hook files, of the monitor's user, which nobody else may write."""
    folder = tmp_path / "hooks"
    folder.mkdir(mode=0o755)
    path = list(sys.path)
    forget()  # those of other tests
    yield folder
    assert sys.path == path
    forget()


def forget() -> None:
    for name in loaded():
        del sys.modules[name]


def write(folder: Path, name: str, text: str, mode: int = 0o644) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


def monitor_with(folder: Path) -> Monitor:
    return Monitor(Settings(listen=None, hooks_dir=str(folder)))


def loaded() -> list[str]:
    return [name for name in sys.modules if name.startswith("monitor_plugin_hooks.")]


def test_folder_files_are_loaded(folder: Path) -> None:
    """The `*.py` files are loaded in order, under their own names; no compiled file is written."""
    write(folder, "counts.py", COUNTS)
    write(folder, "also-this.py", "")
    for name in ("_skipped.py", ".hidden.py", "notes.txt"):
        write(folder, name, "raise SystemExit")
    with monitor_with(folder) as monitor:
        module = sys.modules["monitor_plugin_hooks.counts"]
        assert [note.model for note in module.calls] == [""]
        assert module.__file__ == str(folder / "counts.py")
        assert monitor.plugin_manager.get_plugin("monitor_plugin_hooks.counts") is module
    assert loaded() == ["monitor_plugin_hooks.also-this", "monitor_plugin_hooks.counts"]
    assert not (folder / "__pycache__").exists()


def test_two_monitors_load_one_folder(folder: Path) -> None:
    """Each monitor has its own modules."""
    write(folder, "counts.py", COUNTS)
    with monitor_with(folder) as one, monitor_with(folder) as other:
        name = "monitor_plugin_hooks.counts"
        assert one.plugin_manager.get_plugin(name) is not other.plugin_manager.get_plugin(name)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 +", "SyntaxError"),
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import asyncio; raise asyncio.CancelledError('x')", "CancelledError: x"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (
            COUNTS.replace("monitor_started", "monitor_startet"),
            "there is no hook 'monitor_startet'",
        ),
        (COUNTS.replace("(monitor)", "(model)"), "the hook has no argument 'model'"),
        (COUNTS.replace("hookimpl", "hookimpl(wrapper=True)"), "wrapper"),
    ],
)
def test_invalid_file_is_refused_by_its_path(text: str, why: str, folder: Path) -> None:
    """The error names the file's path, and no module stays in `sys.modules`."""
    write(folder, "a_good.py", "")
    bad = write(folder, "bad.py", text)
    with pytest.raises(PluginError) as raised:
        monitor_with(folder)
    assert str(bad) in str(raised.value)
    assert why in str(raised.value)
    assert raised.value.plugin_name == "monitor_plugin_hooks.bad"
    assert loaded() == []


def test_unmarked_function_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A function with a hook's name but without a marker is never called."""
    write(folder, "guard.py", "def monitor_before_shutdown(backend): return 'no'")
    write(folder, "good.py", COUNTS)
    monitor_with(folder).close()
    assert logged(caplog) == [
        "plugin 'monitor_plugin_hooks.guard': monitor_before_shutdown is not marked with hookimpl, "
        "and will not be called"
    ]


def test_module_of_another_monitor_stays(folder: Path) -> None:
    """A failed load leaves the modules of an earlier monitor in place."""
    write(folder, "counts.py", COUNTS)
    with monitor_with(folder):
        module = sys.modules["monitor_plugin_hooks.counts"]
        write(folder, "x.py", "raise KeyError")
        with pytest.raises(PluginError):
            monitor_with(folder)
        assert sys.modules["monitor_plugin_hooks.counts"] is module


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_file_that_others_can_write_is_refused(mode: int, folder: Path) -> None:
    """The error has the file's mode and the remedy; the file is not run."""
    file = write(folder, "counts.py", "raise SystemExit", mode)
    with pytest.raises(PluginError) as raised:
        monitor_with(folder)
    assert f"{file} (mode {mode:04o}) can be written by other users" in str(raised.value)
    assert f"chmod go-w {file}" in str(raised.value)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_folder_that_others_can_write_is_refused(mode: int, folder: Path) -> None:
    """Other users could add files, also to a sticky folder."""
    folder.chmod(mode)
    with pytest.raises(SettingsError) as raised:
        monitor_with(folder)
    assert raised.value.setting == "hooks_dir"
    assert f"{folder} (mode {mode:04o}) can be written by other users" in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_file_of_another_user_is_refused(what: str, folder: Path) -> None:
    """The error names the owner of a file or folder that belongs to another user."""
    file = write(folder, "counts.py", "raise SystemExit")
    os.chown(file if what == "file" else folder, 12345, -1)
    with pytest.raises(MonitorError, match="belongs to user 12345") as raised:
        monitor_with(folder)
    assert "(mode 0" in str(raised.value)
    os.chown(folder, os.geteuid(), -1)


def test_link_is_checked_by_its_target(folder: Path, tmp_path: Path) -> None:
    """The file behind it and that file's folder must be trusted as well."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    file = write(elsewhere, "counts.py", COUNTS)
    (folder / "counts.py").symlink_to(file)
    monitor_with(folder).close()
    elsewhere.chmod(0o777)
    with pytest.raises(PluginError, match=r"elsewhere \(mode 0777\) can be written"):
        monitor_with(folder)
    elsewhere.chmod(0o755)
    file.chmod(0o666)
    with pytest.raises(PluginError, match=r"mode 0666\) can be written"):
        monitor_with(folder)


@pytest.mark.timeout(30)
def test_special_file_is_refused(folder: Path) -> None:
    """A pipe, a folder or a dangling link is refused, without blocking."""
    os.mkfifo(folder / "pipe.py", 0o644)
    with pytest.raises(PluginError, match=r"pipe\.py is not a regular file"):
        monitor_with(folder)
    (folder / "pipe.py").unlink()
    (folder / "folder.py").mkdir(mode=0o755)
    with pytest.raises(PluginError, match=r"folder\.py"):
        monitor_with(folder)
    (folder / "folder.py").rmdir()
    (folder / "link.py").symlink_to("nowhere.py")
    with pytest.raises(PluginError, match=r"link\.py: No such file"):
        monitor_with(folder)


@pytest.mark.parametrize("name", ["none-there", "a-file"])
def test_missing_folder_is_refused(name: str, folder: Path) -> None:
    """A missing folder, or a file in its place, raises a clear error."""
    write(folder, "a-file", "")
    with pytest.raises(SettingsError, match=name):
        monitor_with(folder / name)


def test_single_files_are_loaded_after_the_folder(folder: Path, tmp_path: Path) -> None:
    """Each file is loaded once, in the given order, whatever its name begins with."""
    write(folder, "b.py", COUNTS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    late = str(write(elsewhere, "_late.py", COUNTS))
    early = str(write(elsewhere, "a.py", COUNTS))
    settings = Settings(listen=None, hooks_dir=str(folder), hook=(late, early, late))
    with Monitor(settings) as monitor:
        assert [(plugin.name, plugin.source) for plugin in monitor.plugins()] == [
            ("monitor_plugin_hooks.b", str(folder / "b.py")),
            ("monitor_plugin_hooks._late", late),
            ("monitor_plugin_hooks.a", early),
        ]
        for plugin in monitor.plugins():
            (figures,) = plugin.hooks
            assert (figures.name, figures.calls, figures.errors) == ("monitor_started", 1, 0)


def test_relative_path_is_in_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors show the absolute path."""
    write(folder, "counts.py", COUNTS)
    monkeypatch.chdir(folder)
    (plugin,) = Monitor(Settings(listen=None, hook=("counts.py",))).plugins()
    assert plugin.source == str(folder / "counts.py")
    (plugin,) = Monitor(Settings(listen=None, hooks_dir=".")).plugins()
    assert plugin.source == str(folder / "counts.py")


def test_single_file_is_checked_like_one_of_a_folder(folder: Path) -> None:
    """Other users must not be able to write the file or its folder; its name must end in .py."""
    file = write(folder, "counts.py", "raise SystemExit", 0o666)
    with pytest.raises(PluginError, match=r"counts\.py \(mode 0666\) can be written by other"):
        Monitor(Settings(listen=None, hook=(str(file),)))
    file.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(PluginError, match=r"hooks \(mode 0777\) can be written by other users"):
        Monitor(Settings(listen=None, hook=(str(file),)))
    folder.chmod(0o755)
    with pytest.raises(PluginError, match=r"none\.py: No such file"):
        Monitor(Settings(listen=None, hook=(str(folder / "none.py"),)))
    with pytest.raises(PluginError, match=r"notes\.txt: its name must end in \.py"):
        Monitor(Settings(listen=None, hook=(str(write(folder, "notes.txt", "")),)))
    assert loaded() == []


def test_two_files_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    """Both would become the same module."""
    write(folder, "counts.py", COUNTS)
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    again = str(write(other, "counts.py", COUNTS))
    with pytest.raises(PluginError, match="has the same name") as raised:
        Monitor(Settings(listen=None, hooks_dir=str(folder), hook=(again,)))
    assert again in str(raised.value)
    assert str(folder / "counts.py") in str(raised.value)
    assert loaded() == []


@pytest.mark.parametrize("name", ["bad", "monitor_plugin_hooks.bad"])
def test_disabled_file_is_not_run(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The stem or the module's name disables a file; the other files are loaded."""
    bad = write(folder, "bad.py", "raise SystemExit")
    write(folder, "counts.py", COUNTS)
    settings = Settings(
        listen=None, hooks_dir=str(folder), hook=(str(bad),), disable_hook=(name, "no-such")
    )
    names = [plugin.name for plugin in Monitor(settings).plugins()]
    assert names == ["monitor_plugin_hooks.counts"]
    assert loaded() == names
    assert "setting disable_hook: there is no plugin 'no-such'" in caplog.text
    assert repr(name) not in caplog.text
