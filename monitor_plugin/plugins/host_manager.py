"""The monitor in a host's own plugin manager, whatever that manager's project is called."""

from __future__ import annotations

from typing import Any, Protocol

import pluggy

from ..domain.errors import PluginError
from ..hookspecs import HOOK_NAMES, HOST_CALLS, PROJECT_NAME, specs_for
from .manager import is_wrapper, no_wrappers
from .signatures import argument_names, fault_in_signature


class BackendRegistration(Protocol):
    """What a host reports to: `backends.registration.Registration`."""

    def spawned(self, model: str, pid: int, address: str) -> None:
        """Register a backend."""

    def exited(self, model: str, pid: int, exit_code: int | None) -> None:
        """Note that a backend ended."""


class HostCalls:
    """The plugin that implements the hooks that hosts call.

    Args:
        project_name: the project of the manager in which it is to be registered.
        registration: takes the host's word.
    """

    def __init__(self, project_name: str, registration: BackendRegistration) -> None:
        # First, so that another plugin of the host that raises costs no registration.
        marker = pluggy.HookimplMarker(project_name)(tryfirst=True)

        def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
            registration.spawned(model, pid, address)

        def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
            registration.exited(model, pid, exit_code)

        self.monitor_backend_spawned = marker(monitor_backend_spawned)
        self.monitor_backend_exited = marker(monitor_backend_exited)


class HostManager:
    """A host's own plugin manager, with our hooks, and the monitor's registration there.

    Args:
        manager: the host's; the hooks are added to it.

    Raises:
        PluginError: as `register`, or the manager does not take the hooks.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._calls: HostCalls | None = None
        self._check_free()
        _add_specs(manager)

    def register(self, registration: BackendRegistration) -> None:
        """Register the monitor as `monitor_plugin`.

        Raises:
            PluginError: a monitor is registered there, its name is blocked, or the manager, which
                may be of a class of the host's, takes no implementations of our hooks.
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
        """Take the monitor out again; the hooks' specs stay, as Pluggy cannot take them away."""
        calls, self._calls = self._calls, None
        if self._manager.is_registered(calls):  # and was not taken out, or blocked, by the host
            self._manager.unregister(calls)


def _add_specs(manager: pluggy.PluginManager) -> None:
    """Add the hooks to a host's own manager, with the markers of its project.

    Where a monitor was installed there before, they stand there already, and stay.

    Raises:
        PluginError: the host has other hooks by one of these names, or a plugin there implements
            one of ours with arguments that it does not have, or as a wrapper; none was added.
    """
    missing = []
    for name in HOOK_NAMES:
        hook = getattr(manager.hook, name, None)
        for implementation in hook.get_hookimpls() if hook else ():
            if fault := _fault(name, implementation):
                plugin_name = implementation.plugin_name
                raise PluginError(plugin_name, f"plugin {plugin_name!r}: {fault}")
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


def _fault(hook: str, implementation: Any) -> str | None:
    wraps = is_wrapper(implementation)
    if wraps and hook not in HOST_CALLS:
        return no_wrappers(hook)
    return fault_in_signature(hook, implementation.function, is_wrapper=wraps)
