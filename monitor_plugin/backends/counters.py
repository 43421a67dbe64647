"""How often the backends of a model ended, by cause, and were shut down, by outcome."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from ..domain.exits import CAUSES
from ..domain.models import Backend, BackendExit
from .registry import Registry

OUTCOMES = ("stopped", "failed", "refused", "respawned")

# Where a host reaps its backend before the monitor could look, its word of the exit code comes
# later, if at all; so long it is waited for, as what was counted cannot be taken back.
_WORD_SECONDS = 2.0


class ModelCounts(NamedTuple):
    """What was counted of one model, by each of CAUSES and OUTCOMES."""

    exits: dict[str, int]
    shutdowns: dict[str, int]


class ModelCounter:
    """Counts by model. Safe to call from any thread.

    The counts of a model are kept while it runs, or an end of it is remembered.

    Args:
        registry: knows which models run, and the ends that are remembered.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._without_cause: dict[Backend, float] = {}

    def ended(self, backend: Backend, exit: BackendExit) -> None:
        """Count the end of a backend."""
        with self._lock:
            self._tidy()
            if exit.cause == "unknown":
                self._without_cause[backend] = time.monotonic()
            else:
                self._model(backend.model).exits[exit.cause] += 1

    def shut_down(self, backend: Backend, outcome: str) -> None:
        """Count a shutdown of a backend that is over."""
        with self._lock:
            self._tidy()
            self._model(backend.model).shutdowns[outcome] += 1

    def counts(self) -> dict[str, ModelCounts]:
        """Give what was counted of each model that runs, or whose end is remembered."""
        with self._lock:
            of_each = {model: self._models.get(model, _nothing()) for model in self._tidy()}
            return {
                model: ModelCounts(dict(counts.exits), dict(counts.shutdowns))
                for model, counts in of_each.items()
            }

    def _tidy(self) -> list[str]:
        """Count the ends whose cause is known by now, drop what is forgotten; list the models."""
        ends = self._registry.ends()
        backends = [each.backend for each in self._registry.records()]
        backends += [end.backend for end in ends]
        known = dict.fromkeys(backend.model for backend in backends)
        causes = {end.backend: end.exit.cause for end in ends}
        now = time.monotonic()
        for backend, at in list(self._without_cause.items()):
            cause = causes.get(backend, "unknown")
            if cause != "unknown" or now - at > _WORD_SECONDS:
                del self._without_cause[backend]
                self._model(backend.model).exits[cause] += 1
        for model in self._models.keys() - known:
            del self._models[model]
        return list(known)

    def _model(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, _nothing())


def _nothing() -> ModelCounts:
    return ModelCounts(dict.fromkeys(CAUSES, 0), dict.fromkeys(OUTCOMES, 0))
