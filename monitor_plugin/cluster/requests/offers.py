"""Offers to stop a model: a shutdown takes one up soon, and once."""

from __future__ import annotations

import secrets
import time
from typing import NamedTuple

from ..transport.messages import Request

_OFFER_SECONDS = 10.0
_MOST_OFFERS = 1000


class _Offer(NamedTuple):
    node: str
    model: str
    pid: int | None
    made_at: float


class StopOffers:
    """Those that are open. So a request that arrives late, after a hang say, stops nothing.

    Nor does one of another node than the offer was sent to, or for another model.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Offer] = {}

    def make(self, ask: Request) -> str:
        """Make one to whoever asks, and give its key."""
        self._forget()
        key = secrets.token_hex(8)
        self._open[key] = _Offer(ask.caller.node, ask.model or "", ask.pid, time.monotonic())
        return key

    def take_up(self, ask: Request) -> bool:
        """Take one up; whether it was there, and for this."""
        self._forget()
        offer = self._open.get(ask.offer or "")
        if offer is None or offer[:3] != (ask.caller.node, ask.model, ask.pid):
            return False
        del self._open[ask.offer or ""]
        return True

    def _forget(self) -> None:
        oldest = time.monotonic() - _OFFER_SECONDS
        for key in [each for each, offer in self._open.items() if offer.made_at < oldest]:
            del self._open[key]
        while len(self._open) >= _MOST_OFFERS:
            del self._open[next(iter(self._open))]
