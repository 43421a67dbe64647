"""Whether an implementation of a hook can be called as its spec says."""

from __future__ import annotations

import inspect
from typing import Any

from .. import hookspecs

_STAR = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def argument_names(hook: str) -> tuple[str, ...]:
    """Give the arguments of a hook, in their order."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


def signature_of(hook: str, first: str = "") -> str:
    """Write a hook's signature as Python does: `monitor_closing() -> None`.

    Args:
        hook: the hook's name.
        first: what stands before its arguments: `self`, say.
    """
    arguments, _, result = str(inspect.signature(getattr(hookspecs, hook))).rpartition(" -> ")
    arguments = ", ".join(part for part in (first, arguments[1:-1]) if part)
    return f"{hook}({arguments}) -> {result}".replace("'", "")


def fault_in_signature(hook: str, function: Any, *, is_wrapper: bool = False) -> str | None:
    """Say what keeps an implementation from being called as meant, and what it should be.

    It may take fewer arguments than the spec has, but none that the spec does not have.

    Args:
        hook: the hook's name.
        function: a function, or a method bound to the plugin.
        is_wrapper: it is one of Pluggy's wrappers, and so a generator.
    """
    is_method = inspect.ismethod(function)
    try:
        found = inspect.signature(function.__func__ if is_method else function)
    except (TypeError, ValueError):  # built in: nothing is known of it
        return None
    parameters = list(found.parameters.values())
    fault = None if is_wrapper else _fault_in_kind(function)
    if is_method:
        # Without a `self` the first argument would silently be the plugin.
        bound = parameters.pop(0) if parameters else None
        if bound is None or bound.kind in _STAR or bound.name in argument_names(hook):
            fault = fault or "it is a method without self"
    elif parameters and parameters[0].name == "self" and "." in function.__qualname__:
        return f"{hook!r} is a method of a class; register an instance instead of the class"
    for each in parameters:
        fault = fault or _fault_in_parameter(hook, each)
    if fault is None:
        return None
    first = "self" if is_method else ""
    return f"{hook!r}: {fault}; it should be: def {signature_of(hook, first)}"


def _fault_in_kind(function: Any) -> str | None:
    if inspect.iscoroutinefunction(function):
        return "it is a coroutine function (async def), which nothing would await"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "it is a generator (it has a yield), which nothing would run"
    return None


def _fault_in_parameter(hook: str, parameter: inspect.Parameter) -> str | None:
    name, has_default = parameter.name, parameter.default is not parameter.empty
    known = name in argument_names(hook)
    if parameter.kind in _STAR:
        return f"it takes {_STAR[parameter.kind]}{name}; arguments are passed by their names alone"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return f"its argument {name!r} is positional-only; arguments are passed by their names"
    if known and parameter.kind is parameter.KEYWORD_ONLY:
        return f"its argument {name!r} is keyword-only, and would not be passed"
    if known and has_default:
        return f"its argument {name!r} has a default, and would not be passed"
    if not known and not has_default:
        return f"the hook has no argument {name!r}"
    return None
