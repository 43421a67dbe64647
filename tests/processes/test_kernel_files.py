"""Reading small files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor_plugin.processes.kernel_files import read_number, read_numbers, read_text


def test_text_of_a_file_of_any_size_is_read_whole(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 become surrogates."""
    (tmp_path / "a").write_bytes(b"\xff" + b"a" * 200_000)
    assert read_text(str(tmp_path / "a")) == "\udcff" + "a" * 200_000


@pytest.mark.parametrize(
    ("text", "number"), [("12\n", 12), ("-1\n", -1), ("max\n", None), ("", None)]
)
def test_number_of_a_file_without_a_number_is_none(
    tmp_path: Path, text: str, number: int | None
) -> None:
    (tmp_path / "a").write_text(text)
    assert read_number(str(tmp_path / "a")) == number
    assert read_number(str(tmp_path / "missing")) is None


def test_lines_without_a_name_and_a_number_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("low 0\nhigh x\n\noom_kill 2\n")
    assert read_numbers(str(tmp_path / "a")) == {"low": 0, "oom_kill": 2}
    assert read_numbers(str(tmp_path / "missing")) == {}
