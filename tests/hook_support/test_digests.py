"""Digests: one message per model and period, quiet hours, and recoveries."""

from __future__ import annotations

from datetime import datetime, time

import pytest

from monitor_plugin.hook_support.digests import Digests, Item, parse_quiet_hours


def item(text: str) -> Item:
    return Item(datetime(2026, 11, 30, 3, 12).astimezone(), text)


def texts(digests: Digests, now: float) -> list[tuple[str, list[str], bool]]:
    """Take what is due, as models, texts and whether each tells only of a recovery."""
    taken = digests.take(now)
    return [(each.model, [item.text for item in each.items], each.is_recovery) for each in taken]


def test_message_has_all_that_happens_within_the_gather_time() -> None:
    """The message is due some seconds after its first item; each model has its own."""
    digests = Digests(gather_seconds=3, repeat_seconds=600)
    assert digests.due_at() is None
    digests.add("a", item("ended"), 100)
    digests.add("a", item("left 2 behind"), 101)
    digests.add("b", item("ended"), 102)
    assert digests.due_at() == 103
    assert texts(digests, 102.9) == []
    assert texts(digests, 103) == [("a", ["ended", "left 2 behind"], False)]
    assert digests.due_at() == 105
    assert texts(digests, 200) == [("b", ["ended"], False)]
    assert digests.due_at() is None


def test_item_that_still_waits_can_be_replaced() -> None:
    digests = Digests(gather_seconds=3, repeat_seconds=600)
    digests.add("a", item("ended"), 100)
    digests.add("a", item("left 2 behind"), 101)
    digests.replace("a", item("ended"), item("ended (systemd: oom-kill)"))
    expected = ["ended (systemd: oom-kill)", "left 2 behind"]
    assert texts(digests, 103) == [("a", expected, False)]
    digests.replace("a", item("ended"), item("late"))
    digests.replace("b", item("ended"), item("late"))
    assert digests.due_at() is None


def test_second_message_about_a_model_waits() -> None:
    """A crash loop gives one message per period, with the newest items and a count of the rest."""
    digests = Digests(gather_seconds=3, repeat_seconds=600)
    digests.add("a", item("0"), 0)
    assert texts(digests, 3) == [("a", ["0"], False)]
    for second in range(20, 520, 20):
        digests.add("a", item(str(second)), second)
        digests.add("a", item("ready"), second + 5, is_recovery=True)
    assert digests.due_at() == 603
    assert texts(digests, 602) == []
    (digest,) = digests.take(603)
    assert (len(digest.items), digest.left_out, digest.is_recovery) == (20, 30, False)
    assert [each.text for each in digest.items[-2:]] == ["500", "ready"]
    digests.add("a", item("again"), 604)
    assert digests.due_at() == 1203


def test_recovery_of_a_told_end_does_not_wait() -> None:
    """A recovery is told once; the next end still waits for the period of the first message."""
    digests = Digests(gather_seconds=3, repeat_seconds=600)
    digests.add("a", item("ended"), 0)
    digests.take(3)
    digests.add("a", item("ready"), 10, is_recovery=True)
    assert texts(digests, 13) == [("a", ["ready"], True)]
    digests.add("a", item("ready"), 20, is_recovery=True)
    assert digests.due_at() == 603
    digests.add("a", item("ended"), 30)
    assert texts(digests, 602) == []
    assert texts(digests, 603) == [("a", ["ready", "ended"], False)]


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-07:00", ("22:00", "03:12", "06:59"), ("07:00", "21:59")),
        ("9:30-12:00", ("09:30",), ("12:00", "09:29")),
    ],
)
def test_quiet_hours_may_contain_midnight(
    text: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    """The end does not belong to them."""
    hours = parse_quiet_hours(text)
    assert all(hours.contain(time.fromisoformat(each)) for each in inside)
    assert not any(hours.contain(time.fromisoformat(each)) for each in outside)


@pytest.mark.parametrize(
    "text", ["22-7", "22:00", "25:00-07:00", "22:00-07:60", "08:00-08:00", "a"]
)
def test_bad_quiet_hours_are_refused(text: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ValueError, match=r"HH:MM|hour|minute|begins"):
        parse_quiet_hours(text)
