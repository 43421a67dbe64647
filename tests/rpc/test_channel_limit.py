"""The limit of open channels: which one is closed for a new one, and at which cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from monitor_plugin.rpc import channel_limit
from monitor_plugin.rpc.channel_limit import ChannelLimit


class Owner:
    """An owner of a channel, which reports that the channel was closed."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self.in_use = False
        self.asked = 0  # how often

    def close_if_idle(self) -> None:
        self.asked += 1
        if not self.in_use:
            self._limit.closed(self)


Limit = ChannelLimit[Owner]


@pytest.fixture
def limit() -> Limit:
    return ChannelLimit(Owner.close_if_idle)


@pytest.fixture
def open_channels(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Owner]]:
    """Opens channels up to a limit."""

    def open_channels(most: int, count: int | None = None) -> list[Owner]:
        monkeypatch.setattr(channel_limit, "max_channels", lambda: most)
        owners = [Owner(limit) for _ in range(most if count is None else count)]
        for owner in owners:
            limit.opened(owner)
        return owners

    return open_channels


def still_open(limit: Limit) -> list[Owner]:
    return list(limit._owners)


def test_least_recently_used_channel_is_closed(
    limit: Limit, open_channels: Callable[..., list[Owner]]
) -> None:
    """One channel is closed for each new one, and none below the limit."""
    first, second, third = open_channels(3)
    limit.used(first)
    assert limit.make_room()
    assert still_open(limit) == [third, first]
    assert limit.make_room()
    assert still_open(limit) == [third, first]
    limit.used(second)  # its channel is closed: it stays so
    assert still_open(limit) == [third, first]


def test_channel_in_use_is_not_closed(
    limit: Limit, open_channels: Callable[..., list[Owner]]
) -> None:
    """If all are in use, there is no room."""
    owners = open_channels(3)
    for owner in owners:
        owner.in_use = True
    assert not limit.make_room()
    owners[1].in_use = False
    assert limit.make_room()
    assert set(still_open(limit)) == {owners[0], owners[2]}


def test_all_idle_channels_are_closed_if_the_limit_falls(
    limit: Limit, open_channels: Callable[..., list[Owner]]
) -> None:
    """The limit of file descriptors may change while the monitor runs."""
    open_channels(2, count=9)
    assert limit.make_room()
    assert len(still_open(limit)) == 1
    open_channels(0)
    assert not limit.make_room()
    assert still_open(limit) == []


def test_channels_in_use_are_seldom_looked_at(
    limit: Limit, open_channels: Callable[..., list[Owner]]
) -> None:
    """Hung backends keep their channels in use: a new channel does not look at all of them."""
    owners = open_channels(100)
    hung, idle = owners[:50], owners[50:]
    for owner in hung:
        owner.in_use = True
    for _ in range(1000):
        assert limit.make_room()
        limit.opened(Owner(limit))
    assert sum(owner.asked for owner in hung) <= 2 * 1000
    assert not any(owner in still_open(limit) for owner in idle)
