"""The plugin manager: what may be registered, and where third-party hooks are found."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pluggy

from . import hookspecs
from .errors import PluginError

_logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "monitor_plugin"


class PluginManager(pluggy.PluginManager):
    """A manager of the monitor's hooks, which refuses plugins that would not work as meant."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT_NAME)
        self.add_hookspecs(hookspecs)

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin.

        Raises:
            PluginError: it implements a hook that does not exist, with arguments that the hook
                does not have, as a wrapper, or one that hosts call; it is not registered.
            ValueError: it is registered already (Pluggy).
        """
        shown = name or self.get_canonical_name(plugin)
        for hook, options in self._marked(plugin):
            if fault := _fault(hook, options):
                raise PluginError(shown, f"plugin {shown!r} was not registered: {fault}")
        try:
            return super().register(plugin, name)
        except pluggy.PluginValidationError as error:
            if self.is_registered(plugin):  # by an older Pluggy, in part
                self.unregister(plugin)
            raise PluginError(shown, f"plugin {shown!r} was not registered: {error}") from error

    def register_monitor(self, plugin: object) -> None:
        """Register the monitor's own implementations of the hooks that hosts call."""
        super().register(plugin, hookspecs.PROJECT_NAME)

    def _marked(self, plugin: object) -> Iterator[tuple[str, Any]]:
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                yield options.get("specname") or attribute, options

    def load_entry_points(self) -> None:
        """Register the plugins of installed packages; one that fails is logged and left out."""
        for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
            if self.has_plugin(entry_point.name) or self.is_blocked(entry_point.name):
                continue
            try:
                self.register(entry_point.load(), entry_point.name)
            except Exception:  # whatever a third party's import raises: the monitor runs without it
                _logger.exception(
                    "plugin %r (%s) was not loaded", entry_point.name, entry_point.value
                )


def _fault(hook: str, options: Any) -> str | None:
    if hook not in hookspecs.HOOK_NAMES:
        return f"there is no hook {hook!r}; the hooks are {', '.join(hookspecs.HOOK_NAMES)}"
    if hook in hookspecs.HOST_CALLS:
        return (
            f"{hook!r} is called by hosts and implemented by the monitor alone; "
            "implement 'monitor_backend_registered' or 'monitor_backend_gone'"
        )
    if options.get("hookwrapper") or options.get("wrapper"):
        return no_wrappers(hook)
    return None


def is_wrapper(implementation: Any) -> bool:
    """Whether a `pluggy.HookImpl` is a wrapper, of the old or of the new style."""
    return implementation.hookwrapper or getattr(implementation, "wrapper", False)


def no_wrappers(hook: str) -> str:
    """Say why a wrapper is refused."""
    return f"{hook!r} is a wrapper; implementations are called one by one, and cannot be wrapped"
