"""The plugin manager: what may be registered, and where third-party hooks are found."""

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
from .signatures import fault_in_signature

_logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "monitor_plugin"


class PluginManager(pluggy.PluginManager):
    """A manager of the monitor's hooks, which refuses plugins that would not work as meant.

    Args:
        disabled: names of plugins that are left out, whoever registers them; a hook file's may
            stand there without `monitor_plugin_hooks.` before it.
    """

    def __init__(self, disabled: Collection[str] = ()) -> None:
        super().__init__(hookspecs.PROJECT_NAME)
        self.add_hookspecs(hookspecs)
        self._disabled = disabled
        self._met: set[str] = set()
        self._sources: dict[str, str] = {}

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin.

        Returns:
            Its name: without one that is given a module's or class's own, else that of its class,
            with a number where that is taken. None where it is disabled.

        Raises:
            PluginError: it implements a hook that does not exist, with a signature that the hook
                does not have, as a wrapper, or one that hosts call; it is not registered.
            ValueError: it is registered already (Pluggy).
        """
        return self.register_from("plugin_manager.register()", plugin, name)

    def register_from(self, source: str, plugin: object, name: str | None = None) -> str | None:
        """Register a plugin as `register` does, and note where it comes from."""
        name = name or self.get_canonical_name(plugin)
        if self.is_disabled(name):
            return None
        for hook, options, function in self._marked(plugin):
            if fault := _fault(hook, options, function):
                raise PluginError(name, f"plugin {name!r} was not registered: {fault}")
        try:
            registered = super().register(plugin, name)
        except pluggy.PluginValidationError as error:
            if self.is_registered(plugin):  # by an older Pluggy, in part
                self.unregister(plugin)
            raise PluginError(name, f"plugin {name!r} was not registered: {error}") from error
        self._sources[name] = source
        self._log_unmarked(name, plugin)
        return registered

    def _log_unmarked(self, name: str, plugin: object) -> None:
        """Tell of functions that are called as hooks are, and that nobody will call."""
        for hook in hookspecs.HOOK_NAMES:
            function = inspect.getattr_static(plugin, hook, None)
            if hook in hookspecs.HOST_CALLS or not inspect.isroutine(function):
                continue
            if self.parse_hookimpl_opts(plugin, hook) is None:
                message = "plugin %r: %s is not marked with hookimpl, and will not be called"
                _logger.warning(message, name, hook)

    def source_of(self, name: str) -> str:
        """Say where a registered plugin comes from."""
        return self._sources[name]

    def get_canonical_name(self, plugin: object) -> str:
        """Name a plugin for people, where Pluggy gives an instance a number."""
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
        """Whether a plugin of that name is left out; asked before its code is run."""
        hits = {name, name.removeprefix(HOOK_FILE_PREFIX)}.intersection(self._disabled)
        self._met |= hits
        return bool(hits)

    def log_unknown_disabled(self) -> None:
        """Log the names to be left out that no plugin had."""
        for name in self._disabled:
            if name not in self._met:
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
            except BaseException:  # whatever a third party's import raises, a SystemExit too
                _logger.exception("plugin %r of %s was not loaded", name, source)


def _distribution(entry_point: metadata.EntryPoint) -> str:
    found = entry_point.dist
    return f"{found.name} {found.version}" if found else entry_point.value


def _fault(hook: str, options: Any, function: Callable[..., Any]) -> str | None:
    if hook not in hookspecs.HOOK_NAMES:
        return f"there is no hook {hook!r}; the hooks are {', '.join(hookspecs.HOOK_NAMES)}"
    if hook in hookspecs.HOST_CALLS:
        return (
            f"{hook!r} is called by hosts and implemented by the monitor alone; "
            "implement 'monitor_backend_registered' or 'monitor_backend_gone'"
        )
    if options.get("hookwrapper") or options.get("wrapper"):
        return no_wrappers(hook)
    return fault_in_signature(hook, function)


def is_wrapper(implementation: Any) -> bool:
    """Whether a `pluggy.HookImpl` is a wrapper, of the old or of the new style."""
    return implementation.hookwrapper or getattr(implementation, "wrapper", False)


def no_wrappers(hook: str) -> str:
    """Say why a wrapper is refused."""
    return f"{hook!r} is a wrapper; implementations are called one by one, and cannot be wrapped"
