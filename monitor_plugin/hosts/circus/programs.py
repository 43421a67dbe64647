"""The watchers of circus that are models, as the last poll found them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...domain.exits import describe_exit_and_age
from ...domain.known_models import KnownModel
from ..model_states import ProgramState, merge_states
from .client import WatcherState
from .history import WatcherHistory


class ModelWatcher(NamedTuple):
    """A watcher that is a model, and what is known of it."""

    model: str
    watcher: WatcherState
    history: WatcherHistory


def known_models(watchers: Iterable[ModelWatcher], now: float) -> list[KnownModel]:
    """List the models of these watchers, each once; `now` is in seconds since the epoch."""
    return merge_states(
        ProgramState(each.model, each.watcher.name, *_state(each.watcher, each.history, now))
        for each in watchers
    )


def _state(watcher: WatcherState, history: WatcherHistory, now: float) -> tuple[str, str | None]:
    """Return the state of a watcher's model, and its detail."""
    if watcher.status == "stopping":
        return "stopped", "circus is stopping it"
    if watcher.status == "starting":
        return "starting", None
    if watcher.runs:
        return "running", None
    ended = None
    if history.exit:
        ended = f"its last process {describe_exit_and_age(history.exit, now)}"
    if watcher.status == "active":
        if watcher.numprocesses == 0:
            return "stopped", "its numprocesses is 0"
        # Without `respawn`, circus stops the watcher in a moment.
        return "exited" if watcher.respawns is False else "waiting", ended
    if history.gave_up:
        return "failed", "circus could not start a process, its log says why"
    if watcher.respawns is False and history.exit:
        return "exited", ended
    return "stopped", ended
