"""Counts of the exits of each model's backends, by cause, and of its shutdowns, by outcome."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from ..domain.exits import CAUSES
from ..domain.models import Backend, BackendExit
from .registry import MAX_EXITS, Registry

OUTCOMES = ("stopped", "failed", "refused", "respawned")

# A host may reap a backend before the monitor reads its exit code, and report the code later or
# never. An exit without a cause is counted after this time, as a count cannot be taken back.
_CAUSE_WAIT_SECONDS = 2.0
# Where a hook may tell more of an exit, the exit is counted after its post-mortem, but not later.
_EXPLANATION_WAIT_SECONDS = 10.0
# The causes that the host of a backend may know better.
_OPEN_CAUSES = ("unknown", "killed")


class ModelCounts(NamedTuple):
    """The counts of one model: exits by cause (CAUSES), and shutdowns by outcome (OUTCOMES)."""

    exits: dict[str, int]
    shutdowns: dict[str, int]


class _Undecided(NamedTuple):
    """An exit whose cause may still change: the cause so far, and when to count it nevertheless."""

    cause: str
    count_at: float


class ModelCounter:
    """Counts exits and shutdowns by model. Safe to call from any thread.

    The counts of a model of which the registry has no backend and no exit are dropped by `counts`,
    or when there are about twice as many counts as the registry has models. The cost of counting an
    exit does not depend on the number of backends.

    Args:
        registry: the registered backends and the last exits.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._max_models = MAX_EXITS
        self._undecided: OrderedDict[Backend, _Undecided] = OrderedDict()  # oldest first

    def count_exit(
        self, backend: Backend, exit: BackendExit, *, may_be_explained: bool = False
    ) -> None:
        """Count the exit of a backend.

        Args:
            backend: the backend, whose exit the registry has.
            exit: the exit.
            may_be_explained: whether its host may tell more of it before the post-mortem.
        """
        with self._lock:
            self._count_late_causes()
            if exit.cause in (_OPEN_CAUSES if may_be_explained else ("unknown",)):
                wait = _EXPLANATION_WAIT_SECONDS if may_be_explained else _CAUSE_WAIT_SECONDS
                self._undecided[backend] = _Undecided(exit.cause, time.monotonic() + wait)
            else:
                self._model(backend.model).exits[exit.cause] += 1

    def count_shutdown(self, backend: Backend, outcome: str) -> None:
        """Count a shutdown of a backend, when the shutdown has ended."""
        with self._lock:
            self._model(backend.model).shutdowns[outcome] += 1

    def counts(self) -> dict[str, ModelCounts]:
        """Return copies of the counts of each model of which the registry has a backend or exit."""
        with self._lock:
            self._count_late_causes()
            of_each = {model: self._models.get(model, _zero_counts()) for model in self._tidy()}
            return {
                model: ModelCounts(dict(counts.exits), dict(counts.shutdowns))
                for model, counts in of_each.items()
            }

    def _count_late_causes(self) -> None:
        """Count exits whose cause is now certain, and those recorded too long ago."""
        if not self._undecided:
            return
        for ended in self._registry.last_exits():
            backend, cause = ended.backend, ended.exit.cause
            undecided = self._undecided.get(backend)
            if undecided and (cause != undecided.cause or ended.postmortem):
                del self._undecided[backend]
                self._model(backend.model).exits[cause] += 1
        now = time.monotonic()
        while self._undecided:
            backend, (cause, count_at) = next(iter(self._undecided.items()))
            if now <= count_at:
                break
            del self._undecided[backend]
            self._model(backend.model).exits[cause] += 1

    def _model(self, model: str) -> ModelCounts:
        """Return the counts of a model; before adding a model, tidy up if there are too many."""
        if model not in self._models and len(self._models) >= self._max_models:
            self._tidy()
        return self._models.setdefault(model, _zero_counts())

    def _tidy(self) -> list[str]:
        """Drop the counts of each model of which the registry has no backend and no exit.

        Returns:
            The models of which the registry has a backend or an exit.
        """
        ended = (each.backend.model for each in self._registry.last_exits())
        known = dict.fromkeys([*self._registry.models(), *ended])
        for model in self._models.keys() - known:
            del self._models[model]
        self._max_models = len(self._models) + max(len(known), MAX_EXITS)
        return list(known)


def _zero_counts() -> ModelCounts:
    return ModelCounts(dict.fromkeys(CAUSES, 0), dict.fromkeys(OUTCOMES, 0))
