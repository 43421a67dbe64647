"""The models that hosts can run, as the hook `monitor_list_models` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..backends.registry import Registry
from ..concurrency.single_flight import SingleFlight
from ..domain.known_models import KnownModel
from ..plugins.hooks import Hooks

_MAX_AGE_SECONDS = 1.0


class _Listing(NamedTuple):
    """What hosts have listed.

    Attributes:
        models: the known models by name; of several hosts the first one counts.
        outdated: the names of those whose plugin's hook has failed since.
        states: the states of each model with all hosts; None for a host whose hook has failed.
    """

    models: dict[str, KnownModel]
    outdated: set[str]
    states: dict[str, set[str | None]]


class KnownModels:
    """Lists the models that hosts can run. Safe to call from any thread.

    If a plugin's hook fails, its last models are still listed.

    Args:
        registry: the registered backends.
        hooks: list the models of each host.
    """

    def __init__(self, registry: Registry, hooks: Hooks) -> None:
        self._registry = registry
        self._hooks = hooks
        self._by_plugin: dict[str, Sequence[KnownModel]] = {}  # for `_ask` alone
        self._models = SingleFlight(_MAX_AGE_SECONDS, self._ask)

    def known(self) -> list[KnownModel]:
        """List the known models, each once, as the hosts listed them within the last second."""
        if not self._hooks.may_list_models():
            return []
        return list(self._models.get().models.values())

    def without_backend(self, model: str | None = None) -> list[KnownModel]:
        """List the known models of which no backend is registered.

        Args:
            model: list only this model; None lists all.
        """
        loaded = {each.backend.model for each in self._registry.records(model)}
        known = [each for each in self.known() if model in (None, each.model)]
        return [each for each in known if each.model not in loaded]

    def find(self, model: str) -> KnownModel | None:
        """Find a model, as its host listed it within the last second; None if no host knows it."""
        return next((each for each in self.known() if each.model == model), None)

    def find_current(self, model: str) -> KnownModel | None:
        """Find a model as `find` does; None also if the last call of its host's hook has failed."""
        known = self.find(model)
        return None if known is None or model in self._models.get().outdated else known

    def is_stopped(self, model: str, oldest: float) -> bool:
        """Whether a host lists a model as stopped, and no host lists it in another state.

        Args:
            model: the model's name.
            oldest: hosts are called again if they were last called before (monotonic seconds).
        """
        if not self._hooks.may_list_models():
            return False
        self._models.get_since(oldest)
        return self._models.get().states.get(model) == {"stopped"}

    def may_start_unlisted(self) -> bool:
        """Whether a host may start a model that is not listed, because no host lists its models."""
        return self._hooks.may_start_model() and not self._hooks.may_list_models()

    def _ask(self) -> _Listing:
        answers = self._hooks.list_models()
        self._by_plugin = {
            name: self._by_plugin.get(name, ()) if models is None else models
            for name, models in answers.items()
        }
        found = _Listing({}, set(), {})
        for name, models in self._by_plugin.items():
            for each in models:
                state = None if answers[name] is None else each.state
                found.states.setdefault(each.model, set()).add(state)
                if found.models.setdefault(each.model, each) is each and answers[name] is None:
                    found.outdated.add(each.model)
        return found
