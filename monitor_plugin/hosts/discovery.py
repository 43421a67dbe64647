"""Which of a host's programs are backends, and their models and addresses."""

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

# A wrapper's arguments are often its child's as well.
_WRAPPERS = (
    frozenset(("ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "rbash", "sh"))
    | frozenset(("dumb-init", "env", "nice", "nohup", "runuser", "setpriv", "setsid", "stdbuf"))
    | frozenset(("su", "sudo", "tcsh", "time", "timeout", "tini", "zsh"))
)
_ADDR = "--addr"
# A script runs others before the one that serves: `dirname`, `mkdir`.
_SETTLED_SECONDS = 1.5


class Program(NamedTuple):
    """A program that a host runs.

    Attributes:
        name: its full name there.
        model: its name for people, after which its model is called where nothing else is said.
        pid: its process.
    """

    name: str
    model: str
    pid: int


class Found(NamedTuple):
    """A backend that was found: the program's full name, and what the monitor is to be told."""

    name: str
    model: str
    pid: int
    address: str


class Rule(NamedTuple):
    """What an operator says of programs: a pattern of names, the model, perhaps the address."""

    pattern: re.Pattern[str]
    model: str
    address: str | None

    def apply(self, name: str) -> tuple[str, str | None] | None:
        """Give model and address of a program, `*` being what it matched; None: another's."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        star = match[1] if match.lastindex else "*"
        address = None if self.address is None else self.address.replace("*", star)
        return self.model.replace("*", star), address


def parse_rule(text: str) -> Rule:
    """Parse `NAME=MODEL@ADDRESS` or `NAME=MODEL`, the address then being told as for others.

    In NAME, `*` stands for any text and `?` for one character; in MODEL and ADDRESS, `*` is what
    the first `*` of NAME stood for: `llama:llama_*=llama@127.0.0.1:500*`.

    Raises:
        MonitorError: it is neither.
    """
    name, equals, rest = text.partition("=")
    model, at, address = rest.rpartition("@")
    if not at:
        model, address = rest, ""
    if not (name and equals and model) or (at and not address):
        raise MonitorError(f"{text!r} is not NAME=MODEL@ADDRESS or NAME=MODEL")
    wild = {"*": "(.*)", "?": "."}
    pattern = "".join(wild.get(letter, re.escape(letter)) for letter in name)
    return Rule(re.compile(pattern, re.DOTALL), model, address or None)


def find_backends(programs: Iterable[Program], rules: Sequence[Rule]) -> list[Found]:
    """Tell which programs are backends; the others are left out, and the one that this runs in.

    The first rule that fits (the name for people, or else the full one) says the model, and perhaps
    the address; else the variables MONITOR_MODEL and MONITOR_ADDRESS in the program's environment;
    else the program's own name, and `--addr ADDRESS` or `--addr=ADDRESS` on the command line, its
    own or that of a descendant.

    Where a shell or another wrapper stands between, the PID is that of the process which it
    started: the one with `--addr`, or its only child that is old enough not to be one of a script's
    steps. Until there is one the program is left out; so ask again. Reads /proc.
    """
    snapshot = take_snapshot()
    found = []
    for program in programs:
        tree = snapshot.tree(program.pid)
        if os.getpid() in tree:
            continue
        server, addr = _server(tree)
        variables = _environment(program.pid)
        model, address = variables.get("MONITOR_MODEL"), variables.get("MONITOR_ADDRESS")
        names = (program.model, program.name)
        applied = (rule.apply(name) for rule in rules for name in names)
        if ruled := next((each for each in applied if each), None):
            model, address = ruled[0], ruled[1] or address
        if address not in (None, addr) and not _is_wrapper(_arguments(program.pid)):
            server = None  # it says its own address: the other is that of one of its workers
        address = address or addr
        if address and (pid := server or _behind_wrappers(program.pid, snapshot.rows)):
            found.append(Found(program.name, model or program.model, pid, address))
    return found


def _server(tree: Sequence[int]) -> tuple[int | None, str | None]:
    """Find the process that has `--addr`, and what it says; of wrappers the latter alone."""
    said = None
    for pid in tree:  # parents before their children
        arguments = _arguments(pid)
        address = addr_of(arguments)
        if address is not None:
            if not _is_wrapper(arguments):
                return pid, address
            said = said or address
    return None, said


def _behind_wrappers(pid: int, rows: Mapping[int, ProcessRow]) -> int | None:
    """Go from a wrapper to its only child that stays; None where there is none.

    A wrapper is taken for a backend only where it has several such children, for want of a
    better one: it could not be replaced later, as the address would be its own for as long as it
    runs.
    """
    while arguments := _arguments(pid):
        if not _is_wrapper(arguments):
            return pid
        # Those alone that stay: a script that waits in a loop always has a fresh `sleep`.
        children = [c for c, row in rows.items() if row.parent == pid and _is_settled(c)]
        if not children:
            return None
        if len(children) > 1:
            return pid
        (pid,) = children
    return None


def _is_wrapper(arguments: Sequence[str]) -> bool:
    return bool(arguments) and Path(arguments[0]).name.lstrip("-") in _WRAPPERS


def _is_settled(pid: int) -> bool:
    try:
        age = time.time() - psutil.Process(pid).create_time()
    except (psutil.Error, OSError):
        return False
    return not 0 <= age < _SETTLED_SECONDS  # negative: the clock was set


def addr_of(arguments: Sequence[str]) -> str | None:
    """Find `--addr X` or `--addr=X` in a command line, the last one where there are several."""
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
    except (psutil.Error, OSError):  # another user's
        return {}
