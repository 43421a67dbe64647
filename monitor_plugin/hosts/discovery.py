"""Finds the backends among a host's programs, with their models and addresses."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from ..domain.errors import MonitorError
from ..processes.process_table import ProcessRow, take_snapshot

# Programs that start another one, whose arguments are often a part of their own.
_WRAPPERS = (
    frozenset(("ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "rbash", "sh"))
    | frozenset(("dumb-init", "env", "nice", "nohup", "runuser", "setpriv", "setsid", "stdbuf"))
    | frozenset(("su", "sudo", "tcsh", "time", "timeout", "tini", "zsh"))
)
_ADDR = "--addr"
# A script runs short-lived programs before the one that serves, such as `dirname` and `mkdir`.
_SHORT_LIVED_SECONDS = 1.5


class Program(NamedTuple):
    """A program that a host runs.

    Attributes:
        name: its full name in the host.
        display_name: its name for people, which is also the default name of its model.
        pid: its process.
    """

    name: str
    display_name: str
    pid: int


class DiscoveredBackend(NamedTuple):
    """A backend that was found, with the full name of its program."""

    program: str
    model: str
    pid: int
    address: str


class BackendRule(NamedTuple):
    """An operator's rule: programs with such names are backends of that model and address.

    Attributes:
        pattern: matches the whole name of a program.
        model: the model; `*` stands for the text that the first `*` of the rule's name matched.
        address: the same for the address; None if the program gives it.
    """

    pattern: re.Pattern[str]
    model: str
    address: str | None

    def match(self, name: str) -> tuple[str, str | None] | None:
        """Return model and address for a program's name; None if the rule does not match."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        star = match[1] if match.lastindex else "*"
        address = None if self.address is None else self.address.replace("*", star)
        return self.model.replace("*", star), address


def parse_rule(text: str) -> BackendRule:
    """Parse `NAME=MODEL@ADDRESS` or `NAME=MODEL`.

    In NAME, `*` matches any text and `?` one character. In MODEL and ADDRESS, `*` is replaced by
    what the first `*` of NAME matched: `llama:llama_*=llama@127.0.0.1:500*`.

    Raises:
        MonitorError: the text has neither form.
    """
    name, equals, rest = text.partition("=")
    model, at, address = rest.rpartition("@")
    if not at:
        model, address = rest, ""
    if not (name and equals and model) or (at and not address):
        raise MonitorError(f"{text!r} is not NAME=MODEL@ADDRESS or NAME=MODEL")
    wild = {"*": "(.*)", "?": "."}
    pattern = "".join(wild.get(letter, re.escape(letter)) for letter in name)
    return BackendRule(re.compile(pattern, re.DOTALL), model, address or None)


def find_backends(
    programs: Iterable[Program], rules: Sequence[BackendRule]
) -> list[DiscoveredBackend]:
    """Find the programs that are backends, except the one that contains the calling process.

    Model and address come, in this order, from:
    1. the first rule that matches the program's display name or full name;
    2. the variables MONITOR_MODEL and MONITOR_ADDRESS in the program's environment;
    3. the program's display name, and `--addr ADDRESS` or `--addr=ADDRESS` in the command line of
       the program or of a descendant.

    If the program is a shell or another wrapper, the PID is that of the process which it started:
    the one with `--addr`, or its only child that is not short-lived. While there is no such process
    the program is left out; a later call finds it. Reads /proc.
    """
    snapshot = take_snapshot()
    found = []
    for program in programs:
        tree = snapshot.tree(program.pid)
        if os.getpid() in tree:
            continue
        server, addr = _find_server(tree)
        variables = _environment(program.pid)
        model, address = variables.get("MONITOR_MODEL"), variables.get("MONITOR_ADDRESS")
        names = (program.display_name, program.name)
        matches = (rule.match(name) for rule in rules for name in names)
        if match := next((each for each in matches if each), None):
            model, address = match[0], match[1] or address
        if address not in (None, addr) and not _is_wrapper(_arguments(program.pid)):
            server = None  # `addr` is the address of one of its workers
        address = address or addr
        if address and (pid := server or _skip_wrappers(program.pid, snapshot.rows)):
            model = model or program.display_name
            found.append(DiscoveredBackend(program.name, model, pid, address))
    return found


def _find_server(tree: Sequence[int]) -> tuple[int | None, str | None]:
    """Return the process that has `--addr`, and the address.

    If only wrappers have `--addr`, the process is None.
    """
    wrapper_address = None
    for pid in tree:  # parents before their children
        arguments = _arguments(pid)
        address = address_argument(arguments)
        if address is not None:
            if not _is_wrapper(arguments):
                return pid, address
            wrapper_address = wrapper_address or address
    return None, wrapper_address


def _skip_wrappers(pid: int, rows: Mapping[int, ProcessRow]) -> int | None:
    """Return the only long-lived child of a wrapper; None if there is none.

    If a wrapper has several such children, it is returned itself. Otherwise it must not be: once it
    were registered, it would hold the address, and the child could not be registered later.
    """
    while arguments := _arguments(pid):
        if not _is_wrapper(arguments):
            return pid
        # A script that waits in a loop always has a short-lived child: `sleep`.
        children = [
            child for child, row in rows.items() if row.parent == pid and not _is_short_lived(child)
        ]
        if not children:
            return None
        if len(children) > 1:
            return pid
        (pid,) = children
    return None


def _is_wrapper(arguments: Sequence[str]) -> bool:
    return bool(arguments) and Path(arguments[0]).name.lstrip("-") in _WRAPPERS


def _is_short_lived(pid: int) -> bool:
    try:
        age = time.time() - psutil.Process(pid).create_time()
    except (psutil.Error, OSError):
        return True
    return 0 <= age < _SHORT_LIVED_SECONDS  # negative if the clock was set back


def address_argument(arguments: Sequence[str]) -> str | None:
    """Return X of the last `--addr X` or `--addr=X` in a command line; None if there is none."""
    address = None
    for number, argument in enumerate(arguments):
        if argument == _ADDR:
            address = next(iter(arguments[number + 1 : number + 2]), address)
        elif argument.startswith(_ADDR + "="):
            address = argument.removeprefix(_ADDR + "=")
    return address or None


def _arguments(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []


def _environment(pid: int) -> dict[str, str]:
    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):  # such as a process of another user
        return {}
