"""Loads hook files, after a check that other users cannot change them."""

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
    """Load and register each `*.py` of a folder, in order, and then single files.

    Files of the folder whose names begin with `_` or `.` are skipped. Each file becomes the module
    `monitor_plugin_hooks.<stem>`, and is registered under that name. `sys.path` does not change,
    and no compiled file is written.

    Args:
        folder: the setting `hooks_dir`.
        files: the setting `hook`.
        register: registers a plugin by its path and its name, or raises.
        is_disabled: whether the file of a module name is disabled, and so not run.

    Raises:
        SettingsError: the folder cannot be read, or users other than root and the monitor's own
            may change it.
        PluginError: the same of a file, or the file raised, or its hooks were refused. No file
            stays in `sys.modules`.
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
                raise PluginError(
                    name, f"hook file not loaded: {path}: {loaded[name]} has the same name"
                )
            loaded[name] = path
            before[name] = sys.modules.get(name)
            _load(path, name, register)
    except BaseException:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:  # another monitor's
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
        # The open file is checked and run, because its path may name another file later.
        # O_NONBLOCK, because opening a pipe would wait for a writer.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            folder = str(Path(path).resolve().parent)  # of the file itself, not of a link to it
            _check(folder, os.stat(folder), stat.S_ISDIR)
            _check(path, os.fstat(file.fileno()), stat.S_ISREG)
            source = file.read()
    except (OSError, ValueError) as error:
        raise PluginError(name, f"hook file not loaded: {_text(error, path)}") from None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        register(path, module, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a third party's file may raise anything, also a SystemExit
        why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        raise PluginError(name, f"hook file {path} was not loaded: {why}") from error


def _check(path: str, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Check that only root and the monitor's user may change a file or folder.

    Raises:
        ValueError: other users may change it, or it is not of that kind.
    """
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
    if not is_kind(found.st_mode):
        wanted = "folder" if is_kind is stat.S_ISDIR else "regular file"
        raise ValueError(f"{path} is no {wanted}")
    if found.st_uid not in (0, os.geteuid()):
        raise ValueError(
            f"{path} ({mode}) belongs to user {found.st_uid}, and must to root or to the monitor's "
            f"user, {os.geteuid()}: its code would run; chown it"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"{path} ({mode}) can be written by others than its owner, and its code would run; "
            f"chmod go-w {path}"
        )


def _text(error: OSError | ValueError, path: str) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
