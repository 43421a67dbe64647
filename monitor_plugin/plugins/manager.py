"""The plugin manager: checks the plugins that are registered, and loads entry points."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from importlib import metadata
from typing import Any

import pluggy

from .. import hookspecs
from ..domain.errors import PluginError
from ..hookspecs import HOOK_FILE_PREFIX
from .signatures import validate_signature

_logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "monitor_plugin"


class PluginManager(pluggy.PluginManager):
    """The manager of the monitor's hooks. It refuses plugins that could not be called.

    Args:
        disabled: names of plugins that are not registered. A hook file's name may be given without
            its prefix `monitor_plugin_hooks.`.
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
            The plugin's name; None if the plugin is disabled. Without `name`, a module or a class
            has its own name, and an instance that of its class, with a number if that is taken.

        Raises:
            PluginError: the plugin implements an unknown hook, a hook that hosts call, a hook with
                a wrong signature, or a wrapper. It is not registered.
            ValueError: the plugin is registered already (Pluggy).
        """
        return self.register_from("plugin_manager.register()", plugin, name)

    def register_from(self, source: str, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin as `register` does, and record its source."""
        name = name or self.get_canonical_name(plugin)
        if self.is_disabled(name):
            return None
        for hook, options, function in self._marked(plugin):
            try:
                _validate_implementation(hook, options, function)
            except ValueError as error:
                message = f"plugin {name!r} was not registered: {error}"
                raise PluginError(name, message) from None
        try:
            registered = super().register(plugin, name)
        except pluggy.PluginValidationError as error:
            if self.is_registered(plugin):  # older versions of Pluggy register it in part
                self.unregister(plugin)
            raise PluginError(name, f"plugin {name!r} was not registered: {error}") from error
        self._sources[name] = source
        self._log_unmarked(name, plugin)
        return registered

    def _log_unmarked(self, name: str, plugin: object) -> None:
        """Log functions that have the name of a hook and no marker; they will not be called."""
        for hook in hookspecs.HOOK_NAMES:
            function = inspect.getattr_static(plugin, hook, None)
            if hook in hookspecs.HOST_CALLS or not inspect.isroutine(function):
                continue
            if self.parse_hookimpl_opts(plugin, hook) is None:
                message = "plugin %r: %s is not marked with hookimpl, and will not be called"
                _logger.warning(message, name, hook)

    def source_of(self, name: str) -> str:
        """Return the source of a registered plugin."""
        return self._sources[name]

    def get_canonical_name(self, plugin: object) -> str:
        """Name an instance by its class; Pluggy would use the number of its `id`."""
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
        """Whether a plugin of that name is disabled; its code need not have run yet."""
        hits = {name, name.removeprefix(HOOK_FILE_PREFIX)}.intersection(self._disabled)
        self._matched_names |= hits
        return bool(hits)

    def log_unknown_disabled(self) -> None:
        """Log the disabled names that no plugin had."""
        for name in self._disabled:
            if name not in self._matched_names:
                _logger.warning("setting disable_hook: no plugin is called %r", name)

    def register_monitor(self, plugin: object) -> None:
        """Register the monitor's own implementations of the hooks that hosts call."""
        super().register(plugin, hookspecs.PROJECT_NAME)

    def _marked(self, plugin: object) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                name = options.get("specname") or attribute
                yield name, options, getattr(plugin, attribute)

    def load_entry_points(self) -> None:
        """Register the plugins of installed packages; one that fails is logged and left out."""
        for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
            name, source = entry_point.name, _distribution(entry_point)
            if self.is_blocked(name) or self.is_disabled(name):
                continue
            if self.has_plugin(name):
                message = "plugin %r of %s was not loaded: another one has that name"
                _logger.warning(message, name, source)
                continue
            try:
                self.register_from(source, entry_point.load(), name)
            except KeyboardInterrupt:
                raise
            except BaseException:  # a third party's import may raise anything, also a SystemExit
                _logger.exception("plugin %r of %s was not loaded", name, source)


def _distribution(entry_point: metadata.EntryPoint) -> str:
    found = entry_point.dist
    return f"{found.name} {found.version}" if found else entry_point.value


def _validate_implementation(hook: str, options: Any, function: Callable[..., Any]) -> None:
    if hook not in hookspecs.HOOK_NAMES:
        names = ", ".join(hookspecs.HOOK_NAMES)
        raise ValueError(f"there is no hook {hook!r}; the hooks are {names}")
    if hook in hookspecs.HOST_CALLS:
        raise ValueError(
            f"{hook!r} is called by hosts and implemented by the monitor alone; "
            "implement 'monitor_backend_registered' or 'monitor_backend_gone'"
        )
    if options.get("hookwrapper") or options.get("wrapper"):
        raise ValueError(no_wrappers(hook))
    validate_signature(hook, function)


def is_wrapper(implementation: Any) -> bool:
    """Whether a `pluggy.HookImpl` is a wrapper, of the old or of the new style."""
    return implementation.hookwrapper or getattr(implementation, "wrapper", False)


def no_wrappers(hook: str) -> str:
    """Return the message with which a wrapper is refused."""
    return f"{hook!r} is a wrapper; implementations are called one by one, and cannot be wrapped"
