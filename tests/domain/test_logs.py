"""The last lines of a log, as text that is safe to show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin.domain.logs import last_lines


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", None),
        (b"\n \r\n\x1b[0m\n", None),
        (b"one\r\ntwo\n", "one\ntwo"),
        ("Grüße \N{SNOWMAN}\n".encode(), "Grüße \N{SNOWMAN}"),
        (b"\x1b[1;31merror\x1b[0m: \x1b]0;title\x07no\x1b(B memory\x1b[K\n", "error: no memory"),
        (b"\xff\xfe binary\0\x07\n", "\\xff\\xfe binary\\x00\\x07"),
        (b" 10%\r 20%\r\n\tat main\x1b\n", " 10%\\r 20%\n\\tat main\\x1b"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}txt\N{LINE SEPARATOR}".encode(), "\\u202etxt\\u2028"),
        (b"cut \xe2\x98", "cut \\xe2\\x98"),
    ],
)
def test_last_lines_are_readable_and_safe(data: bytes, shown: str | None) -> None:
    """Colours are left out; what is no text is escaped."""
    assert last_lines(data, 20, 4096) == shown


def test_last_lines_are_few_and_short() -> None:
    """The end is kept, in whole characters."""
    assert last_lines(b"".join(b"%d\n" % each for each in range(100)), 3, 4096) == "97\n98\n99"
    assert last_lines("\N{SNOWMAN}".encode() * 10, 20, 7) == "\N{SNOWMAN}" * 2


@given(st.binary(max_size=300), st.integers(1, 20), st.integers(1, 100))
def test_any_bytes_make_valid_last_lines(data: bytes, max_lines: int, max_bytes: int) -> None:
    """No control character but the end of a line is left, whatever a process writes."""
    text = last_lines(data, max_lines, max_bytes)
    if text is not None:
        assert all(each.isprintable() for each in text.replace("\n", ""))
        assert len(text.split("\n")) <= max_lines
        assert len(text.encode()) <= max_bytes
