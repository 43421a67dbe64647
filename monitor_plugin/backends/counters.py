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


class ModelCounts(NamedTuple):
    """The counts of one model: exits by cause (CAUSES), and shutdowns by outcome (OUTCOMES)."""

    exits: dict[str, int]
    shutdowns: dict[str, int]


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
        self._without_cause: OrderedDict[Backend, float] = OrderedDict()  # oldest first

    def count_exit(self, backend: Backend, exit: BackendExit) -> None:
        """Count the exit of a backend."""
        with self._lock:
            self._count_late_causes()
            if exit.cause == "unknown":
                self._without_cause[backend] = time.monotonic()
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
        """Count exits whose cause is now known, and as `unknown` those recorded too long ago."""
        if not self._without_cause:
            return
        for backend, exit, *_ in self._registry.last_exits():
            if exit.cause != "unknown" and self._without_cause.pop(backend, None) is not None:
                self._model(backend.model).exits[exit.cause] += 1
        now = time.monotonic()
        while self._without_cause:
            backend, recorded_at = next(iter(self._without_cause.items()))
            if now - recorded_at <= _CAUSE_WAIT_SECONDS:
                break
            del self._without_cause[backend]
            self._model(backend.model).exits["unknown"] += 1

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
