"""Loads hook files that only root and the monitor's user can change."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from ..domain.errors import PluginError, SettingsError
from ..hookspecs import HOOK_FILE_PREFIX


def load_hook_files(
    folder: str | None,
    files: Sequence[str],
    register: Callable[[str, ModuleType, str], object],
    is_disabled: Callable[[str], bool],
) -> None:
    """Load and register the `*.py` files of a folder, by name, and then single files.

    Files of the folder whose names begin with `_` or `.` are skipped. Each file becomes the plugin
    and the module `monitor_plugin_hooks.<stem>`. `sys.path` does not change, and no compiled file
    is written.

    Args:
        folder: the setting `hooks_dir`.
        files: the setting `hook`.
        register: registers a plugin: path, module, name.
        is_disabled: whether a plugin name is disabled; the file of that name is not run.

    Raises:
        SettingsError: the folder cannot be read, or other users can change it.
        PluginError: a file cannot be read, other users can change it, it raised an error, or its
            hooks were refused. No module stays in `sys.modules`.
    """
    paths = [] if folder is None else _files_of(folder)
    paths += [str(Path(file).absolute()) for file in files]
    before: dict[str, ModuleType | None] = {}
    loaded: dict[str, str] = {}
    try:
        for path in dict.fromkeys(paths):
            name = HOOK_FILE_PREFIX + Path(path).name.removesuffix(".py")
            if not path.endswith(".py"):
                raise PluginError(name, f"hook file not loaded: {path}: its name must end in .py")
            if is_disabled(name):
                continue
            if name in loaded:
                other = loaded[name]
                raise PluginError(name, f"hook file not loaded: {path}: {other} has the same name")
            loaded[name] = path
            before[name] = sys.modules.get(name)
            _load(path, name, register)
    except BaseException:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:  # of another monitor
                sys.modules[name] = module
        raise


def _files_of(folder: str) -> list[str]:
    try:
        _check(folder, os.stat(folder), stat.S_ISDIR)
        names = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise SettingsError("hooks_dir", f"setting hooks_dir: {_text(error, folder)}") from None
    return [
        str(Path(folder, name).absolute())
        for name in names
        if name.endswith(".py") and not name.startswith(("_", "."))
    ]


def _load(path: str, name: str, register: Callable[[str, ModuleType, str], object]) -> None:
    try:
        # Check and run the same open file: the path may name another file later.
        # O_NONBLOCK: opening a pipe would block until it has a writer.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            folder = str(Path(path).resolve().parent)  # of the file, not of a link to it
            _check(folder, os.stat(folder), stat.S_ISDIR)
            _check(path, os.fstat(file.fileno()), stat.S_ISREG)
            source = file.read()
    except (OSError, ValueError) as error:
        raise PluginError(name, f"hook file not loaded: {_text(error, path)}") from None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec  # not None for a path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        register(path, module, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a third party's file may raise anything, even SystemExit
        why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(name, f"hook file {path} was not loaded: {why}") from error


def _check(path: str, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise ValueError if other users can change a path, or if it is of the wrong kind."""
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
    if not is_kind(found.st_mode):
        wanted = "folder" if is_kind is stat.S_ISDIR else "regular file"
        raise ValueError(f"{path} is not a {wanted}")
    if found.st_uid not in (0, os.geteuid()):
        raise ValueError(
            f"{path} ({mode}) belongs to user {found.st_uid}, who could run code in the monitor; "
            f"chown it to root or to the monitor's user, {os.geteuid()}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"{path} ({mode}) can be written by other users, who could run code in the monitor; "
            f"chmod go-w {path}"
        )


def _text(error: OSError | ValueError, path: str) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
