"""Registers the monitor in a host's own plugin manager, of any project name."""

from __future__ import annotations

from typing import Any, Protocol

import pluggy

from ..domain.errors import PluginError
from ..hookspecs import HOOK_NAMES, HOST_CALLS, PROJECT_NAME, specs_for
from .manager import is_wrapper, no_wrappers
from .signatures import argument_names, validate_signature


class BackendRegistration(Protocol):
    """The part of `backends.registration.Registration` that gets a host's reports."""

    def spawned(self, model: str, pid: int, address: str) -> None:
        """Register a backend."""

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Note that a backend ended."""


class HostCalls:
    """The plugin that implements the hooks that hosts call.

    Args:
        project_name: the project of the manager in which it is to be registered.
        registration: gets the host's reports.
    """

    def __init__(self, project_name: str, registration: BackendRegistration) -> None:
        # First, so that a plugin of the host that raises does not prevent a registration.
        marker = pluggy.HookimplMarker(project_name)(tryfirst=True)

        def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
            registration.spawned(model, pid, address)

        def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
            registration.exited(model, pid, exit_code)

        self.monitor_backend_spawned = marker(monitor_backend_spawned)
        self.monitor_backend_exited = marker(monitor_backend_exited)


class HostManager:
    """A host's own plugin manager, to which the monitor's hooks are added.

    Args:
        manager: the host's manager.

    Raises:
        PluginError: as `register`, or the hooks cannot be added.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._calls: HostCalls | None = None
        self._check_free()
        _add_specs(manager)

    def register(self, registration: BackendRegistration) -> None:
        """Register the monitor as `monitor_plugin`.

        Raises:
            PluginError: a monitor is registered already, its name is blocked, or the manager (its
                class may be the host's own) does not accept the implementations.
        """
        self._check_free()
        project = self._manager.project_name
        self._calls = HostCalls(project, registration)
        self._manager.register(self._calls, PROJECT_NAME)
        for name in HOST_CALLS:
            hook = getattr(self._manager.hook, name)
            if not any(each.plugin is self._calls for each in hook.get_hookimpls()):
                self.unregister()
                message = f"the plugin manager of {project!r} takes no implementation of {name!r}"
                raise PluginError(PROJECT_NAME, message)

    def _check_free(self) -> None:
        project = self._manager.project_name
        if self._manager.has_plugin(PROJECT_NAME):
            raise PluginError(
                PROJECT_NAME,
                f"the plugin manager of {project!r} has a plugin 'monitor_plugin' already; "
                "close that monitor first",
            )
        if self._manager.is_blocked(PROJECT_NAME):
            raise PluginError(
                PROJECT_NAME,
                f"the plugin manager of {project!r} blocks the name 'monitor_plugin'; "
                "unblock it to use the monitor",
            )

    def unregister(self) -> None:
        """Unregister the monitor. The specs stay, because Pluggy cannot remove them."""
        calls, self._calls = self._calls, None
        if self._manager.is_registered(calls):  # the host may have unregistered it
            self._manager.unregister(calls)


def _add_specs(manager: pluggy.PluginManager) -> None:
    """Add the specs that are missing to a host's manager, with the markers of its project.

    An earlier installation of a monitor may have added them.

    Raises:
        PluginError: the host has a different hook of the same name, or a plugin implements a hook
            with a wrong signature or as a wrapper. No spec was added.
    """
    missing = []
    for name in HOOK_NAMES:
        hook = getattr(manager.hook, name, None)
        for implementation in hook.get_hookimpls() if hook else ():
            try:
                _validate_implementation(name, implementation)
            except ValueError as error:
                plugin_name = implementation.plugin_name
                raise PluginError(plugin_name, f"plugin {plugin_name!r}: {error}") from None
        if hook is None or not hook.has_spec():
            missing.append(name)
        elif tuple(hook.spec.argnames) != argument_names(name) or hook.is_historic():
            message = (
                f"the plugin manager has a hook {name!r} of its own, historic or with other "
                f"arguments than {', '.join(argument_names(name))}"
            )
            raise PluginError(None, message)
    if missing:
        manager.add_hookspecs(specs_for(manager.project_name, missing))


def _validate_implementation(hook: str, implementation: Any) -> None:
    wraps = is_wrapper(implementation)
    if wraps and hook not in HOST_CALLS:
        raise ValueError(no_wrappers(hook))
    validate_signature(hook, implementation.function, is_wrapper=wraps)
