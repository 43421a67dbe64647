"""The plugin manager: validates, registers and lists plugins, and loads entry points."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection
from importlib import metadata
from typing import Any

import pluggy

from .. import hookspecs
from ..domain.errors import PluginError
from ..domain.models import HookFigures, LoadedPlugin
from ..hookspecs import HOOK_FILE_PREFIX
from .event_queue import EVENT_HOOKS, EventQueue
from .executor import HookExecutor
from .signatures import validate_signature

_logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "monitor_plugin"


class PluginManager(pluggy.PluginManager):
    """The manager of the monitor's hooks, which refuses plugins with wrong implementations.

    Args:
        disabled: the names of plugins not to register. The names of hook files may omit the prefix
            `monitor_plugin_hooks.`.
    """

    def __init__(self, disabled: Collection[str] = ()) -> None:
        super().__init__(hookspecs.PROJECT_NAME)
        self.add_hookspecs(hookspecs)
        self._disabled = disabled
        self._matched_names: set[str] = set()
        self._sources: dict[str, str] = {}

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin.

        Returns:
            The plugin's name; None if the plugin is disabled. The default of `name` is the name of
            the module or class; for an instance, its class name, with a number if that is taken.

        Raises:
            PluginError: an implementation has an unknown hook, a hook that hosts call, or a wrong
                signature, or is a wrapper. The plugin is not registered.
            ValueError: the plugin is already registered (Pluggy).
        """
        return self.register_from("plugin_manager.register()", plugin, name)

    def register_from(self, source: str, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin as `register` does, and record its source."""
        name = name or self.get_canonical_name(plugin)
        if self.is_disabled(name):
            return None
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                hook = options.get("specname") or attribute
                try:
                    _validate_implementation(hook, options, getattr(plugin, attribute))
                except ValueError as error:
                    message = f"plugin {name!r} was not registered: {error}"
                    raise PluginError(name, message) from None
        try:
            registered = super().register(plugin, name)
        except pluggy.PluginValidationError as error:
            if self.is_registered(plugin):  # older versions of Pluggy leave it registered
                self.unregister(plugin)
            raise PluginError(name, f"plugin {name!r} was not registered: {error}") from error
        self._sources[name] = source
        self._log_unmarked(name, plugin)
        return registered

    def _log_unmarked(self, name: str, plugin: object) -> None:
        """Warn of functions that have a hook's name but no marker, and are not called."""
        for hook in hookspecs.HOOK_NAMES:
            function = inspect.getattr_static(plugin, hook, None)
            if hook in hookspecs.HOST_CALLS or not inspect.isroutine(function):
                continue
            if self.parse_hookimpl_opts(plugin, hook) is None:
                message = "plugin %r: %s is not marked with hookimpl, and will not be called"
                _logger.warning(message, name, hook)

    def get_canonical_name(self, plugin: object) -> str:
        """Name an instance after its class; Pluggy would use the number of its `id`."""
        base = getattr(plugin, "__name__", None)
        if isinstance(base, str):
            return base
        base = name = type(plugin).__name__
        number = 1
        while self.get_plugin(name) not in (None, plugin):
            number += 1
            name = f"{base}-{number}"
        return name

    def is_disabled(self, name: str) -> bool:
        """Whether a plugin name is disabled; the plugin need not be loaded."""
        hits = {name, name.removeprefix(HOOK_FILE_PREFIX)}.intersection(self._disabled)
        self._matched_names |= hits
        return bool(hits)

    def log_unknown_disabled(self) -> None:
        """Warn of disabled names that match no plugin."""
        for name in self._disabled:
            if name not in self._matched_names:
                _logger.warning("setting disable_hook: there is no plugin %r", name)

    def register_monitor(self, plugin: object) -> None:
        """Register the monitor's own implementations of the hooks that hosts call."""
        super().register(plugin, hookspecs.PROJECT_NAME)

    def load_entry_points(self) -> None:
        """Register the plugins of installed packages; log and skip those that fail."""
        for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
            name, package = entry_point.name, entry_point.dist
            source = f"{package.name} {package.version}" if package else entry_point.value
            if self.is_blocked(name) or self.is_disabled(name):
                continue
            if self.has_plugin(name):
                message = "plugin %r of %s was not loaded: another plugin has that name"
                _logger.warning(message, name, source)
                continue
            try:
                self.register_from(source, entry_point.load(), name)
            except KeyboardInterrupt:
                raise
            except BaseException:  # a third party's import may raise anything, even SystemExit
                _logger.exception("plugin %r of %s was not loaded", name, source)

    def list_plugins(
        self, executor: HookExecutor, events: EventQueue, host: pluggy.PluginManager | None
    ) -> list[LoadedPlugin]:
        """List the registered plugins, in order, with the figures of their hooks.

        The plugins of a host's own manager follow, if they implement a hook of the monitor.
        """

        def listed_plugin(name: str, source: str, plugin: object) -> LoadedPlugin:
            hooks = tuple(figures.get(id(plugin), ()))
            has_events = any(each.name in EVENT_HOOKS for each in hooks)
            return LoadedPlugin(name, source, hooks, events.figures(plugin) if has_events else None)

        figures: dict[int, list[HookFigures]] = {}
        for hook in hookspecs.HOOK_NAMES:
            if hook not in hookspecs.HOST_CALLS:
                for plugin, found in executor.figures(hook):
                    figures.setdefault(id(plugin), []).append(found)
        listed = [
            listed_plugin(name, self._sources[name], plugin)
            for name, plugin in self.list_name_plugin()
            if plugin is not None and name != hookspecs.PROJECT_NAME
        ]
        if host is not None:
            source = f"plugin manager of {host.project_name!r}"
            for name, plugin in host.list_name_plugin():
                if id(plugin) in figures:
                    listed.append(listed_plugin(name, source, plugin))
        return listed


def _validate_implementation(hook: str, options: Any, function: Callable[..., Any]) -> None:
    if hook not in hookspecs.HOOK_NAMES:
        names = ", ".join(hookspecs.HOOK_NAMES)
        raise ValueError(f"there is no hook {hook!r}; the hooks are {names}")
    if hook in hookspecs.HOST_CALLS:
        raise ValueError(
            f"{hook!r} is called by hosts and implemented by the monitor alone; "
            "implement 'monitor_backend_registered' or 'monitor_backend_gone'"
        )
    wraps = options.get("hookwrapper") or options.get("wrapper")
    validate_signature(hook, function, is_wrapper=wraps)
