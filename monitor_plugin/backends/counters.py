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
    """The counts of one model, for each of CAUSES and OUTCOMES."""

    exits: dict[str, int]
    shutdowns: dict[str, int]


class ModelCounter:
    """Counts exits and shutdowns by model. Safe to call from any thread.

    The counts of a model are kept while the registry has a backend or an exit of it.

    Args:
        registry: the registered backends and the last exits.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._without_cause: dict[Backend, float] = {}

    def ended(self, backend: Backend, exit: BackendExit) -> None:
        """Count the exit of a backend."""
        with self._lock:
            self._tidy()
            if exit.cause == "unknown":
                self._without_cause[backend] = time.monotonic()
            else:
                self._model(backend.model).exits[exit.cause] += 1

    def shut_down(self, backend: Backend, outcome: str) -> None:
        """Count a shutdown of a backend that has ended."""
        with self._lock:
            self._tidy()
            self._model(backend.model).shutdowns[outcome] += 1

    def counts(self) -> dict[str, ModelCounts]:
        """Return the counts of each model that has a backend, or an exit that is remembered."""
        with self._lock:
            of_each = {model: self._models.get(model, _nothing()) for model in self._tidy()}
            return {
                model: ModelCounts(dict(counts.exits), dict(counts.shutdowns))
                for model, counts in of_each.items()
            }

    def _tidy(self) -> list[str]:
        """Count the exits whose cause is now known, and forget models; return those that remain."""
        ends = self._registry.ends()
        backends = [each.backend for each in self._registry.records()]
        backends += [end.backend for end in ends]
        known = dict.fromkeys(backend.model for backend in backends)
        causes = {end.backend: end.exit.cause for end in ends}
        now = time.monotonic()
        for backend, at in list(self._without_cause.items()):
            cause = causes.get(backend, "unknown")
            if cause != "unknown" or now - at > _CAUSE_WAIT_SECONDS:
                del self._without_cause[backend]
                self._model(backend.model).exits[cause] += 1
        for model in self._models.keys() - known:
            del self._models[model]
        return list(known)

    def _model(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, _nothing())


def _nothing() -> ModelCounts:
    return ModelCounts(dict.fromkeys(CAUSES, 0), dict.fromkeys(OUTCOMES, 0))
