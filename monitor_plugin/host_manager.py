"""The monitor in a host's own plugin manager, whatever that manager's project is called."""

from __future__ import annotations

import inspect

import pluggy

from . import hookspecs
from .errors import PluginError
from .hookspecs import HOOK_NAMES, HOST_CALLS, PROJECT_NAME, specs_for
from .lifecycle import Lifecycle
from .plugins import is_wrapper, no_wrappers


class HostCalls:
    """The plugin that implements the hooks that hosts call.

    Args:
        project_name: the project of the manager in which it is to be registered.
        lifecycle: takes the host's word.
    """

    def __init__(self, project_name: str, lifecycle: Lifecycle) -> None:
        marker = pluggy.HookimplMarker(project_name)

        def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
            lifecycle.spawned(model, pid, address)

        def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
            lifecycle.exited(model, pid, exit_code)

        self.monitor_backend_spawned = marker(monitor_backend_spawned)
        self.monitor_backend_exited = marker(monitor_backend_exited)


class HostManager:
    """A host's own plugin manager, and the monitor's registration there.

    Args:
        manager: the host's.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._calls: HostCalls | None = None

    def register(self, lifecycle: Lifecycle) -> None:
        """Add the hooks to the manager, and the monitor as `monitor_plugin`.

        Raises:
            PluginError: a monitor is registered there, its name is blocked, or the manager does
                not take the hooks; the monitor is not registered.
        """
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
        _add_specs(self._manager)
        self._calls = HostCalls(project, lifecycle)
        self._manager.register(self._calls, PROJECT_NAME)

    def unregister(self) -> None:
        """Take the monitor out again; the hooks' specs stay, as Pluggy cannot take them away."""
        calls, self._calls = self._calls, None
        if calls is not None:
            self._manager.unregister(calls)


def _add_specs(manager: pluggy.PluginManager) -> None:
    """Add the hooks to a host's own manager, with the markers of its project.

    Where a monitor was installed there before, they stand there already, and stay.

    Raises:
        PluginError: the host has other hooks by one of these names, or a plugin there implements
            one of ours with arguments that it does not have, or as a wrapper.
    """
    missing = []
    for name in HOOK_NAMES:
        hook = getattr(manager.hook, name, None)
        for implementation in hook.get_hookimpls() if hook else ():
            if name not in HOST_CALLS and is_wrapper(implementation):
                plugin_name = implementation.plugin_name
                raise PluginError(plugin_name, f"plugin {plugin_name!r}: {no_wrappers(name)}")
        if hook is None or not hook.has_spec():
            missing.append(name)
        elif tuple(hook.spec.argnames) != _argument_names(name):
            message = f"the plugin manager has a hook {name!r} of its own, with other arguments"
            raise PluginError(None, message)
    if missing:
        try:
            manager.add_hookspecs(specs_for(manager.project_name, missing))
        except pluggy.PluginValidationError as error:
            message = f"the plugin manager does not take the hooks: {error}"
            raise PluginError(manager.get_name(error.plugin), message) from error


def _argument_names(hook: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)
