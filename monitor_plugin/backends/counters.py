"""Counts of the exits of each model's backends, by cause, and of its shutdowns, by outcome."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from ..domain.exits import CAUSES
from ..domain.models import Backend, BackendExit
from .registry import Registry

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

    The counts of a model are dropped when the registry has no backend and no exit of the model.

    Args:
        registry: the registered backends and the last exits.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._without_cause: dict[Backend, float] = {}

    def count_exit(self, backend: Backend, exit: BackendExit) -> None:
        """Count the exit of a backend."""
        with self._lock:
            self._tidy()
            if exit.cause == "unknown":
                self._without_cause[backend] = time.monotonic()
            else:
                self._model(backend.model).exits[exit.cause] += 1

    def count_shutdown(self, backend: Backend, outcome: str) -> None:
        """Count a shutdown of a backend, when the shutdown has ended."""
        with self._lock:
            self._tidy()
            self._model(backend.model).shutdowns[outcome] += 1

    def counts(self) -> dict[str, ModelCounts]:
        """Return copies of the counts of each model of which the registry has a backend or exit."""
        with self._lock:
            of_each = {model: self._models.get(model, _zero_counts()) for model in self._tidy()}
            return {
                model: ModelCounts(dict(counts.exits), dict(counts.shutdowns))
                for model, counts in of_each.items()
            }

    def _tidy(self) -> list[str]:
        """Count the exits whose cause is now known, and drop the counts of unknown models.

        Returns:
            The models of which the registry has a backend or an exit.
        """
        exits = self._registry.last_exits()
        backends = [each.backend for each in self._registry.records()]
        backends += [each.backend for each in exits]
        known = dict.fromkeys(backend.model for backend in backends)
        causes = {each.backend: each.exit.cause for each in exits}
        now = time.monotonic()
        for backend, recorded_at in list(self._without_cause.items()):
            cause = causes.get(backend, "unknown")
            if cause != "unknown" or now - recorded_at > _CAUSE_WAIT_SECONDS:
                del self._without_cause[backend]
                self._model(backend.model).exits[cause] += 1
        for model in self._models.keys() - known:
            del self._models[model]
        return list(known)

    def _model(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, _zero_counts())


def _zero_counts() -> ModelCounts:
    return ModelCounts(dict.fromkeys(CAUSES, 0), dict.fromkeys(OUTCOMES, 0))
