"""Merges the states of a host's programs into the states of its models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..domain.known_models import KnownModel

# Those that an operator should see first come first.
_ORDER = ("failed", "waiting", "starting", "running", "exited", "stopped")


class ProgramState(NamedTuple):
    """The state of a program that is a model: see `KnownModel`. `name` is its name for people."""

    model: str
    name: str
    state: str
    detail: str | None


def merge_states(programs: Iterable[ProgramState]) -> list[KnownModel]:
    """List the models of these programs, each once.

    A model of several programs has the state that an operator should see first, and the detail
    names its program.
    """
    by_model: dict[str, list[ProgramState]] = {}
    for program in programs:
        by_model.setdefault(program.model, []).append(program)
    return [_merge(model, same) for model, same in by_model.items()]


def _merge(model: str, programs: list[ProgramState]) -> KnownModel:
    first = min(programs, key=lambda each: (_ORDER.index(each.state), each.detail is None))
    detail = first.detail
    if detail and len(programs) > 1:
        detail = f"{first.name}: {detail}"
    return KnownModel(model, first.state, detail, can_start=True)
