"""Files that are read again when they change."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin.config import reloading_file
from monitor_plugin.config.reloading_file import ReloadingFile

from ..support import eventually, logged


@pytest.mark.parametrize("target", ["a pipe", "/dev/zero"])
def test_file_that_is_not_regular_raises_an_error_at_once(target: str, tmp_path: Path) -> None:
    """To read from a named pipe would otherwise wait for ever."""
    path = tmp_path / "file"
    path.write_text("one")
    file = ReloadingFile(str(path), str)
    path.unlink()
    os.mkfifo(path) if target == "a pipe" else path.symlink_to(target)
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(file.get()), daemon=True)
    thread.start()
    eventually(lambda: got)
    assert got == ["one"]
    with pytest.raises(ValueError, match="it is no regular file"):
        ReloadingFile(str(path), str)
    path.unlink()
    path.write_text("two")
    assert file.get() == "two"


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfone")
    assert ReloadingFile(str(path), str).get() == "one"


def test_unreadable_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lack of descriptors is logged once; the new version counts once there is one."""
    path = tmp_path / "file"
    path.write_text("one")
    file = ReloadingFile(str(path), str)
    path.write_text("two, longer")

    def no_descriptor(*arguments: Any, **options: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(reloading_file, "open", no_descriptor, raising=False)
        assert [file.get(), file.get()] == ["one", "one"]
    assert logged(caplog) == [
        f"{path} cannot be used, its previous content stays valid: Too many open files"
    ]
    assert file.get() == "two, longer"


def test_slow_thread_does_not_restore_an_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that read at the same time, the order of their ends does not matter."""
    path = tmp_path / "file"
    path.write_text("one")
    parsing, go = threading.Event(), threading.Event()

    def parse(text: str) -> str:
        if text == "two":
            parsing.set()
            assert go.wait(30)
        return text

    file = ReloadingFile(str(path), parse)
    path.write_text("two")
    slow = threading.Thread(target=file.get)
    slow.start()
    assert parsing.wait(30)
    path.write_text("three")
    assert file.get() == "three"
    go.set()
    slow.join(30)
    assert file.get() == "three"
