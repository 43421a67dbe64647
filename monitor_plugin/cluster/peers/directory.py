"""What is known of the other nodes: what each said last, and whether it answers."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from ..transport.messages import Announcement

# For how long a node is remembered that says nothing.
FORGOTTEN_SECONDS = 600.0
_MOST_NODES = 10_000


class Peer(NamedTuple):
    """Another node, as it is known now.

    Attributes:
        url: where its HTTP is reached.
        models: which it has.
        service: whether these are those of the revision.
        silent: whether it did not answer the last time it was asked, and said nothing since.
    """

    name: str
    run: str
    revision: int
    url: str | None
    models: frozenset[str]
    service: bool
    heard_at: float
    silent: bool

    @classmethod
    def unknown(cls, name: str) -> Peer:
        """Stand for a node that has not said that it is there."""
        return cls(name, "", -1, None, frozenset(), False, 0.0, False)


class PeerDirectory:
    """The other nodes by name. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, Peer] = {}

    def heard(self, announcement: Announcement) -> bool:
        """Take note of what a node says; whether its models are to be asked for."""
        now = time.monotonic()
        with self._lock:
            known = self._nodes.get(announcement.node)
            if announcement.leaving:
                if known and known.run == announcement.run:
                    del self._nodes[announcement.node]
                return False
            if known and known.run == announcement.run:
                if announcement.revision < known.revision:
                    return False  # older than what is known
                service = known.service and announcement.revision == known.revision
            else:
                service = False
            if known is None and len(self._nodes) >= _MOST_NODES:
                return False
            models = known.models if known else frozenset()
            if announcement.models is not None:
                models, service = frozenset(announcement.models), True
            self._nodes[announcement.node] = Peer(
                announcement.node,
                announcement.run,
                announcement.revision,
                announcement.url,
                models,
                service,
                now,
                False,
            )
            return not service

    def answered(self, name: str, model: str | None = None) -> None:
        """Take note that a node answers, and has a model if one is given."""
        self._note(name, silent=False)
        if model is not None:
            with self._lock:
                if known := self._nodes.get(name):
                    self._nodes[name] = known._replace(models=known.models | {model})

    def missed(self, name: str) -> None:
        """Take note that a node did not answer in time."""
        self._note(name, silent=True)

    def _note(self, name: str, *, silent: bool) -> None:
        with self._lock:
            if known := self._nodes.get(name):
                heard_at = known.heard_at if silent else time.monotonic()
                self._nodes[name] = known._replace(silent=silent, heard_at=heard_at)

    def expire(self) -> None:
        """Forget nodes that have said nothing for long."""
        oldest = time.monotonic() - FORGOTTEN_SECONDS
        with self._lock:
            for name in [each.name for each in self._nodes.values() if each.heard_at < oldest]:
                del self._nodes[name]

    def nodes(self) -> list[Peer]:
        """List them, by name."""
        with self._lock:
            return sorted(self._nodes.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._nodes)

    def get(self, name: str) -> Peer | None:
        """Find one."""
        with self._lock:
            return self._nodes.get(name)

    def holders(self, model: str) -> list[Peer]:
        """List those that have a model, by name."""
        with self._lock:
            return sorted(each for each in self._nodes.values() if model in each.models)
