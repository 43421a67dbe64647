from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import monitor_plugin
from monitor_plugin.domain import errors


def test_package_exports_the_documented_names() -> None:
    """The list changes on purpose only."""
    assert monitor_plugin.__all__ == [
        "Backend",
        "BackendExit",
        "BackendUnreadable",
        "ClusterError",
        "EventFigures",
        "Freed",
        "Gpu",
        "GpuUse",
        "HookFigures",
        "HostExit",
        "HostUnit",
        "InvalidBackend",
        "InvalidRequest",
        "KnownModel",
        "ListenError",
        "LoadedPlugin",
        "LogTail",
        "LogUnavailable",
        "Memory",
        "ModelNotLoaded",
        "Monitor",
        "MonitorError",
        "NodeForbidden",
        "NodeUnreachable",
        "OutcomeUnknown",
        "PidNotHeld",
        "PluginError",
        "PostMortem",
        "Reading",
        "RequestFailed",
        "Sample",
        "Settings",
        "SettingsError",
        "ShutdownFailed",
        "ShutdownRefused",
        "StartFailed",
        "State",
        "Status",
        "TooManyShutdowns",
        "TooManyStarts",
        "hookimpl",
        "hookspec",
        "install",
    ]
    assert all(hasattr(monitor_plugin, name) for name in monitor_plugin.__all__)


def _family() -> dict[str, Any]:
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in classes if kind.__module__ == errors.__name__}


def test_tree_in_the_docstring_has_every_error() -> None:
    """The tree at the top of the module names every error, and each is public."""
    drawn = set(re.findall(r"^ *│? *[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE))
    assert drawn | {"MonitorError"} == set(_family())
    assert set(_family()) <= set(monitor_plugin.__all__)


@pytest.mark.parametrize("name", sorted(_family()))
def test_every_error_is_a_monitor_error(name: str) -> None:
    """One `except` catches all."""
    assert issubclass(_family()[name], errors.MonitorError)


@pytest.mark.parametrize(
    ("error", "builtin", "message", "facts"),
    [
        (
            errors.SettingsError("listen", "bad"),
            ValueError,
            "bad",
            {"setting": "listen"},
        ),
        (
            errors.ListenError("127.0.0.1:1", "taken"),
            OSError,
            "taken",
            {"listen": "127.0.0.1:1"},
        ),
        (
            errors.PidNotHeld("x", 5, [6, 7]),
            errors.InvalidRequest,
            "model 'x' has no backend with PID 5; it has 6, 7",
            {"model": "x", "pid": 5, "pids": (6, 7)},
        ),
        (errors.PluginError(None, "no"), Exception, "no", {"plugin_name": None}),
        (
            errors.InvalidBackend("no", model=1, pid="x", address=None),
            ValueError,
            "no",
            {"model": 1, "pid": "x", "address": None},
        ),
        (errors.InvalidRequest("no"), ValueError, "no", {}),
        (
            errors.ModelNotLoaded("a b"),
            LookupError,
            "model 'a b' is not loaded",
            {"model": "a b"},
        ),
        (
            errors.ModelNotLoaded("m", "its process 7 ended 1 s ago"),
            LookupError,
            "model 'm' is not loaded: its process 7 ended 1 s ago",
            {"model": "m"},
        ),
        (
            errors.BackendUnreadable("m", 7, "it has ended"),
            Exception,
            "model 'm': process 7 cannot be read: it has ended",
            {"model": "m", "pid": 7},
        ),
        (
            errors.ShutdownRefused("m", "guard", "in use"),
            Exception,
            "model 'm' was not stopped: plugin 'guard' refused: in use",
            {"model": "m", "plugin_name": "guard", "reason": "in use"},
        ),
        (
            errors.ShutdownFailed("m", "7 is left", [7]),
            Exception,
            "model 'm' could not be stopped: 7 is left",
            {"model": "m", "reason": "7 is left", "pids": (7,)},
        ),
        (errors.ShutdownFailed("m", "no"), Exception, None, {"pids": ()}),
        (
            errors.TooManyShutdowns(8, 5),
            Exception,
            "8 shutdowns are under way, which is as many as are taken at once; "
            "nothing was stopped, try again in 5 s",
            {"retry_after_seconds": 5},
        ),
        (
            errors.RequestFailed("http://x", "no", 500, "model_not_loaded"),
            Exception,
            "no",
            {"url": "http://x", "status": 500, "type": "model_not_loaded"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_has_its_facts_as_attributes(
    error: errors.MonitorError,
    builtin: type[Exception],
    message: str | None,
    facts: dict[str, object],
) -> None:
    """Each error says what happened, and has the facts as attributes."""
    assert isinstance(error, builtin)
    assert message is None or str(error) == message
    assert {name: getattr(error, name) for name in facts} == facts
