"""The peers that this node knows: the last announcement of each, and whether it replies."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from ..transport.messages import Announcement

# A peer that has neither announced itself nor replied for this time is removed.
_EXPIRY_SECONDS = 600.0
_MAX_PEERS = 10_000


class Peer(NamedTuple):
    """Another node, as this node knows it.

    Attributes:
        run, revision, url: those of the last announcement.
        models: the models of the last announcement that listed some, and of later replies.
        is_complete: whether the models of `revision` are known.
        last_seen: the time of the last announcement or reply, by the monotonic clock.
        silent: whether the node did not reply to the last request, nor announced itself since.
    """

    name: str
    run: str = ""
    revision: int = -1
    url: str | None = None
    models: frozenset[str] = frozenset()
    is_complete: bool = False
    last_seen: float = 0.0
    silent: bool = False


class PeerDirectory:
    """The peers by name. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}

    def update(self, announcement: Announcement) -> bool:
        """Record an announcement. Return whether the models of its revision must be requested."""
        with self._lock:
            known = self._peers.get(announcement.node)
            same_run = known is not None and known.run == announcement.run
            if announcement.leaving:
                if same_run:
                    del self._peers[announcement.node]
                return False
            if known is None:
                if len(self._peers) >= _MAX_PEERS:
                    return False
                known = Peer(announcement.node)
            if same_run and announcement.revision < known.revision:
                return False
            models = known.models
            is_complete = same_run and known.is_complete and announcement.revision == known.revision
            if announcement.models is not None:
                models, is_complete = frozenset(announcement.models), True
            self._peers[announcement.node] = Peer(
                announcement.node,
                announcement.run,
                announcement.revision,
                announcement.url,
                models,
                is_complete,
                time.monotonic(),
            )
            return not is_complete

    def record_reply(self, name: str, model: str | None = None) -> None:
        """Record that a node has replied, and that it has `model`, unless None."""
        with self._lock:
            if known := self._peers.get(name):
                models = known.models if model is None else known.models | {model}
                self._peers[name] = known._replace(
                    models=models, last_seen=time.monotonic(), silent=False
                )

    def record_silence(self, name: str) -> None:
        """Record that a node did not reply in time."""
        with self._lock:
            if known := self._peers.get(name):
                self._peers[name] = known._replace(silent=True)

    def expire(self) -> None:
        """Remove the peers that have neither announced themselves nor replied for 10 minutes."""
        oldest = time.monotonic() - _EXPIRY_SECONDS
        with self._lock:
            for peer in list(self._peers.values()):
                if peer.last_seen < oldest:
                    del self._peers[peer.name]

    def __len__(self) -> int:
        with self._lock:
            return len(self._peers)

    def get(self, name: str) -> Peer | None:
        """Return a peer, or None if it is not known."""
        with self._lock:
            return self._peers.get(name)

    def peers(self) -> list[Peer]:
        """Return all peers, sorted by name."""
        with self._lock:
            return sorted(self._peers.values())

    def holders(self, model: str) -> list[Peer]:
        """Return the peers that have a model, sorted by name."""
        with self._lock:
            return sorted(each for each in self._peers.values() if model in each.models)
