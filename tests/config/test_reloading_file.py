"""Files that are read again when they change."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin.config import reloading_file as watched_file
from monitor_plugin.config.reloading_file import ReloadingFile

from ..support import eventually, logged


@pytest.mark.parametrize("target", ["a pipe", "/dev/zero"])
def test_what_is_no_file_is_refused_at_once(target: str, tmp_path: Path) -> None:
    """A named pipe, from which reading would wait for ever, holds nothing that can be used."""
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


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Editors of Windows begin UTF-8 with it."""
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfone")
    assert ReloadingFile(str(path), str).get() == "one"


def test_what_could_not_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no descriptor was left, the new version counts once there is one; logged once."""
    path = tmp_path / "file"
    path.write_text("one")
    file = ReloadingFile(str(path), str)
    path.write_text("two, longer")

    def no_descriptor(*arguments: Any, **options: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(watched_file, "open", no_descriptor, raising=False)
        assert [file.get(), file.get()] == ["one", "one"]
    assert logged(caplog) == [
        f"{path} cannot be used, its previous content stays valid: Too many open files"
    ]
    assert file.get() == "two, longer"


def test_a_slow_reader_cannot_bring_an_old_version_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads read at once: whoever ends last, what the file holds is what is given."""
    path = tmp_path / "file"
    path.write_text("one")
    held, go = threading.Event(), threading.Event()

    def parse(text: str) -> str:
        if text == "two":
            held.set()
            assert go.wait(30)
        return text

    file = ReloadingFile(str(path), parse)
    path.write_text("two")
    slow = threading.Thread(target=file.get)
    slow.start()
    assert held.wait(30)
    path.write_text("three")
    assert file.get() == "three"
    go.set()
    slow.join(30)
    assert file.get() == "three"
