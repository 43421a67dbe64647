"""Text for people: escaped names, and numbers with units."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from monitor_plugin.api.schemas import GpuPeakItem, PeaksItem
from monitor_plugin.cli.views.text import (
    amount,
    duration,
    escape_name,
    peaks_lines,
    percent,
    printable,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/my model:7b", "org/my model:7b"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("שלום 🦙 ü", "שלום 🦙 ü"),
        ("gpj\u202eexe", r"gpj\u202eexe"),
        ("a\x1b[31m\x9b\n", r"a\x1b[31m\x9b\n"),
        (" a ", r"\x20a\x20"),
        ("  ", r"\x20\x20"),
        (r"a\u202e", r"a\\u202e"),
    ],
)
def test_names_are_escaped(name: str, expected: str) -> None:
    """Letters of any script stay; invisible characters and those of control are escaped."""
    assert escape_name(name) == expected


@given(st.text(), st.text())
def test_escaped_names_are_printable_and_distinct(one: str, other: str) -> None:
    """No name has anything but printable characters, and no two look the same."""
    assert escape_name(one).isprintable()
    assert printable(one).isprintable()
    assert (escape_name(one) == escape_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, "?"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (96 * 2**20, "96.0 MiB"),
        (2**64 - 1, "16.0 EiB"),
    ],
)
def test_bytes_have_binary_units(count: int | None, expected: str) -> None:
    """An unknown number is `?`, not 0."""
    assert amount(count) == expected


def test_durations_have_their_two_largest_units() -> None:
    """Unknown values are `?`."""
    assert [percent(None), percent(12.345)] == ["?", "12.3"]
    seconds = [None, -1, 59.9, 60, 3599, 3600 * 5 + 130, 86400 * 12 + 3600 * 3]
    shown = " ".join(duration(each) for each in seconds)
    assert shown == "? 0s 59s 1m 59m59s 5h2m 12d3h"


def test_known_peaks_are_listed() -> None:
    """Each has its time. The longest time to READY is listed only if it is not the last one."""
    now = datetime.now(timezone.utc)
    peaks = PeaksItem(model="m", since=now, last_seen_at=now)
    assert peaks_lines(peaks) == []
    gpu = GpuPeakItem(component="vram:\u202e", memory=3 << 30, memory_at=now)
    peaks = replace(peaks, tree_memory=5 << 20, tree_memory_at=now, gpus=[gpu])
    assert peaks_lines(peaks) == [
        "Most that one backend held: process tree 5.0 MiB (0s ago), vram:\\u202e 3.0 GiB (0s ago)"
    ]
    peaks = PeaksItem(model="m", since=now, last_seen_at=now, ready_seconds=2.04)
    assert peaks_lines(peaks) == ["READY 2.0 s after its last start"]
    peaks = replace(peaks, longest_ready_seconds=31.0)
    assert peaks_lines(peaks) == ["READY 2.0 s after its last start, 31.0 s at most"]
