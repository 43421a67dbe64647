"""Lists the loaded plugins, with their sources and the figures of their hooks."""

from __future__ import annotations

import pluggy

from ..domain.models import HookFigures, LoadedPlugin
from ..hookspecs import HOOK_NAMES, HOST_CALLS, PROJECT_NAME
from .executor import HookExecutor
from .manager import PluginManager


def list_plugins(
    executor: HookExecutor, manager: PluginManager, host: pluggy.PluginManager | None
) -> list[LoadedPlugin]:
    """List the plugins in the order of their registration.

    All plugins of the monitor's `manager` are listed, and those of the `host`'s own manager that
    implement a hook of the monitor.
    """
    figures: dict[int, list[HookFigures]] = {}
    for hook in HOOK_NAMES:
        if hook not in HOST_CALLS:
            for plugin, found in executor.figures(hook):
                figures.setdefault(id(plugin), []).append(found)
    listed = []
    for each in (manager,) if host is None else (manager, host):
        for name, plugin in each.list_name_plugin():
            hooks = tuple(figures.get(id(plugin), ()))
            if each is manager and plugin is not None and name != PROJECT_NAME:
                listed.append(LoadedPlugin(name, manager.source_of(name), hooks))
            elif each is host and hooks:
                source = f"plugin manager of {host.project_name!r}"
                listed.append(LoadedPlugin(name, source, hooks))
    return listed
