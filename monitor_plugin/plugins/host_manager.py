"""Registers the monitor in a host's own plugin manager, whatever its project name."""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from ..domain.errors import PluginError
from ..hookspecs import HOOK_NAMES, HOST_CALLS, PROJECT_NAME, specs_for
from .signatures import argument_names, is_wrapper, validate_signature

Spawned = Callable[[str, int, str], None]
Exited = Callable[[str, int, "int | None"], None]


class HostCalls:
    """Implements the hooks that hosts call, for managers of the Pluggy project `project_name`."""

    def __init__(self, project_name: str, spawned: Spawned, exited: Exited) -> None:
        # First, so that a plugin of the host that raises does not prevent a registration.
        marker = pluggy.HookimplMarker(project_name)(tryfirst=True)

        def monitor_backend_spawned(model: str, pid: int, address: str) -> None:
            spawned(model, pid, address)

        def monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None:
            exited(model, pid, exit_code)

        self.monitor_backend_spawned = marker(monitor_backend_spawned)
        self.monitor_backend_exited = marker(monitor_backend_exited)


class HostManager:
    """A host's own plugin manager, to which the monitor's hooks are added.

    Raises:
        PluginError: as in `register`, or the hooks cannot be added.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._calls: HostCalls | None = None
        self._check_free()
        _add_specs(manager)

    def register(self, spawned: Spawned, exited: Exited) -> None:
        """Register the monitor as the plugin `monitor_plugin`.

        Raises:
            PluginError: another monitor is registered, the name is blocked, or the manager (its
                class may be the host's own) does not accept the implementations.
        """
        self._check_free()
        project = self._manager.project_name
        self._calls = HostCalls(project, spawned, exited)
        self._manager.register(self._calls, PROJECT_NAME)
        for name in HOST_CALLS:
            hook = getattr(self._manager.hook, name)
            if not any(each.plugin is self._calls for each in hook.get_hookimpls()):
                self.unregister()
                message = f"the plugin manager of {project!r} ignores implementations of {name!r}"
                raise PluginError(PROJECT_NAME, message)

    def _check_free(self) -> None:
        project = self._manager.project_name
        if self._manager.has_plugin(PROJECT_NAME):
            problem = "already has a plugin 'monitor_plugin'; close that monitor first"
        elif self._manager.is_blocked(PROJECT_NAME):
            problem = "blocks the name 'monitor_plugin'; unblock it to use the monitor"
        else:
            return
        raise PluginError(PROJECT_NAME, f"the plugin manager of {project!r} {problem}")

    def unregister(self) -> None:
        """Unregister the monitor. The specs stay, because Pluggy cannot remove them."""
        calls, self._calls = self._calls, None
        # Pluggy takes None for the plugin of each name that the host has blocked. The host may have
        # unregistered the monitor itself.
        if calls is not None and self._manager.is_registered(calls):
            self._manager.unregister(calls)


def _add_specs(manager: pluggy.PluginManager) -> None:
    """Add the missing specs to a host's manager; an earlier monitor may have added them.

    Raises:
        PluginError: the host has a different hook of the same name, or one of its plugins
            implements a hook with a wrong signature or as a wrapper. No spec is added.
    """
    missing = []
    for name in HOOK_NAMES:
        hook = getattr(manager.hook, name, None)
        for implementation in hook.get_hookimpls() if hook else ():
            try:
                wraps = is_wrapper(implementation)
                validate_signature(name, implementation.function, is_wrapper=wraps)
            except ValueError as error:
                plugin_name = implementation.plugin_name
                raise PluginError(plugin_name, f"plugin {plugin_name!r}: {error}") from None
        if hook is None or not hook.has_spec():
            missing.append(name)
        elif tuple(hook.spec.argnames) != argument_names(name) or hook.is_historic():
            message = (
                f"the plugin manager has its own hook {name!r}, which is historic or has other "
                f"arguments than {', '.join(argument_names(name))}"
            )
            raise PluginError(None, message)
    if missing:
        manager.add_hookspecs(specs_for(manager.project_name, missing))
