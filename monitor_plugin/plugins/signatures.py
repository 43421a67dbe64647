"""Validates the signatures of implementations against the hooks' specs."""

from __future__ import annotations

import inspect
from typing import Any

from .. import hookspecs

_STAR = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def is_wrapper(implementation: Any) -> bool:
    """Whether a `pluggy.HookImpl` is a wrapper, of the old or the new style."""
    return implementation.hookwrapper or getattr(implementation, "wrapper", False)


def argument_names(hook: str) -> tuple[str, ...]:
    """Return the names of a hook's arguments, in order."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


def signature_of(hook: str, first: str = "") -> str:
    """Format a hook's signature: `monitor_closing() -> None`, with a `first` argument if given."""
    arguments, _, result = str(inspect.signature(getattr(hookspecs, hook))).rpartition(" -> ")
    arguments = ", ".join(part for part in (first, arguments[1:-1]) if part)
    return f"{hook}({arguments}) -> {result}".replace("'", "")


def validate_signature(hook: str, function: Any, *, is_wrapper: bool = False) -> None:
    """Check that an implementation can be called with some or all arguments of its hook.

    Args:
        hook: the hook's name.
        function: a function, or a method bound to the plugin.
        is_wrapper: whether it is a wrapper (a generator), which only the hooks of hosts may have.

    Raises:
        ValueError: it cannot be called so; the message has the expected signature.
    """
    if is_wrapper and hook not in hookspecs.HOST_CALLS:
        message = "is a wrapper; implementations are called one by one, and cannot be wrapped"
        raise ValueError(f"{hook!r} {message}")
    is_method = inspect.ismethod(function)
    try:
        found = inspect.signature(function.__func__ if is_method else function)
    except (TypeError, ValueError):  # a built-in function without a signature
        return
    parameters = list(found.parameters.values())
    first = parameters[0].name if parameters else None
    if not is_method and first == "self" and "." in function.__qualname__:
        message = "is a method of a class; register an instance instead of the class"
        raise ValueError(f"{hook!r} {message}")
    try:
        if not is_wrapper:
            _validate_kind(function)
        if is_method:
            # Without a `self` the first argument would silently be the plugin.
            bound = parameters.pop(0) if parameters else None
            if bound is None or bound.kind in _STAR or bound.name in argument_names(hook):
                raise ValueError("it is a method without self")
        for parameter in parameters:
            _validate_parameter(hook, parameter)
    except ValueError as error:
        expected = signature_of(hook, "self" if is_method else "")
        raise ValueError(f"{hook!r}: {error}; it should be: def {expected}") from None


def _validate_kind(function: Any) -> None:
    if inspect.iscoroutinefunction(function):
        raise ValueError("it is a coroutine function (async def), which nothing would await")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError("it is a generator (it has a yield), which nothing would run")


def _validate_parameter(hook: str, parameter: inspect.Parameter) -> None:
    name, has_default = parameter.name, parameter.default is not parameter.empty
    known = name in argument_names(hook)
    if parameter.kind in _STAR:
        star = _STAR[parameter.kind]
        raise ValueError(f"it takes {star}{name}; arguments are passed by their names alone")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        message = "is positional-only; arguments are passed by their names"
    elif known and parameter.kind is parameter.KEYWORD_ONLY:
        message = "is keyword-only, and would not be passed"
    elif known and has_default:
        message = "has a default, and would not be passed"
    elif not known and not has_default:
        raise ValueError(f"the hook has no argument {name!r}")
    else:
        return
    raise ValueError(f"its argument {name!r} {message}")
