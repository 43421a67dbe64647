"""Finds the backends among a host's programs, with their models, addresses and processes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from string import Template
from typing import NamedTuple

import psutil

from ..domain.errors import InvalidRequest, MonitorError
from ..domain.model_name import validate_model_name
from ..processes.members import Members, MemberTable
from ..processes.process_table import read_ancestry, read_row
from ..processes.sockets import SocketTable

_ADDR = "--addr"


class Program(NamedTuple):
    """A program that a host runs.

    Attributes:
        name: its full name in the host.
        display_name: its name for people, which is also the default name of its model.
        pid: its process; 0 if it does not run.
        command: the command line in the host's configuration; empty if it is not known.
        environment: the variables that the host's configuration sets, as far as they are known.
    """

    name: str
    display_name: str
    pid: int
    command: Sequence[str] = ()
    environment: Mapping[str, str] = {}


class DiscoveredBackend(NamedTuple):
    """A backend that was found.

    Attributes:
        program: the full name of its program.
        model: its model.
        pid: the program's own process, which the host started.
        address: its address.
        members: the processes that belong to the program, its own process first.
        listener: the first of them that listens at the address; None if none is seen to.
    """

    program: str
    model: str
    pid: int
    address: str
    members: Sequence[int] = ()
    listener: int | None = None


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


class Discovery:
    """Finds the backends among the programs that a host runs. Not thread-safe.

    The model and the address of a program come, in this order, from:
    1. the first rule that matches the program's display name or full name;
    2. the variables MONITOR_MODEL and MONITOR_ADDRESS in the environment of the program's process,
       or else in that of the host's configuration;
    3. the program's display name, and `--addr ADDRESS` or `--addr=ADDRESS` in the command line of
       the host's configuration, also in the script of `sh -c SCRIPT`;
    4. the same in the command line of the program's process or of another of its members, parents
       before their children;
    5. the same in a script of the configuration that has `$NAME` in it, from the environment of the
       program's process.

    A program may overwrite its command line and its environment (`setproctitle`), and its
    configuration may change while it runs. So what was found is remembered while its process runs,
    and its model while the host has the program.

    Args:
        rules: the operator's rules.
        searches_members: whether 4. considers all members, and not the program's process alone.
            It must not where a program may run what is not its own, as sshd and cron do.
    """

    def __init__(self, rules: Sequence[BackendRule] = (), *, searches_members: bool = True) -> None:
        self._rules = rules
        self._searches_members = searches_members
        self._member_table = MemberTable()
        self._sockets = SocketTable()
        self._processes: dict[int, _ProgramProcess] = {}
        self._models: dict[str, str] = {}  # by the full names of the programs
        self._own_names: set[str] = set()

    def find(self, programs: Sequence[Program]) -> list[DiscoveredBackend]:
        """Find the programs that are backends, except the one that contains the calling process.

        Reads /proc.

        Args:
            programs: all programs of the host, also those that do not run.

        Raises:
            OSError: no file descriptor is free.
        """
        own = {pid for pid, _ in read_ancestry(os.getpid())}
        names = {each.name for each in programs}
        self._own_names = {each.name for each in programs if each.pid in own}
        programs = [each for each in programs if each.pid and each.pid not in own]
        self._follow(programs)
        snapshot = self._member_table.snapshot(0.0)
        found = []
        for program in programs:
            process = self._processes.get(program.pid)
            if process is None:
                continue
            pids = process.members.pids_in(snapshot)
            if program.pid not in pids or snapshot.rows[program.pid].is_zombie:
                continue
            process.read(program, pids if self._searches_members else [program.pid])
            model, address = self._declaration(program, process)
            if address:
                listener = None
                with contextlib.suppress(ValueError):  # the registration says what is wrong
                    listener = self._sockets.find_listener(address, pids)
                found.append(
                    DiscoveredBackend(program.name, model, program.pid, address, pids, listener)
                )
        self._models = {name: each for name, each in self._models.items() if name in names}
        self._models.update((each.program, each.model) for each in found)
        return found

    def model_of(
        self,
        name: str,
        display_name: str,
        command: Sequence[str],
        environment: Mapping[str, str] = {},
    ) -> str | None:
        """Return the model of a program that need not run; None if no model of it is known.

        The model comes from, in this order:
        1. the first rule that matches;
        2. the last `find` that found a backend of the program;
        3. MONITOR_MODEL in the environment of the host's configuration, or else the display name,
           if the command line or the environment of the configuration has an address.

        So no model is known if only the environment of the program's process names the model or the
        address, and no process of the program was seen.

        Args:
            name: the full name of the program.
            display_name: its name for people.
            command: its command line in the host's configuration; empty if it is not known.
            environment: the variables of the host's configuration, as far as they are known.
        """
        if name in self._own_names:
            return None
        rule = self._match_rule(name, display_name)
        configured = None
        if environment.get("MONITOR_ADDRESS") or configured_address(command):
            configured = environment.get("MONITOR_MODEL") or display_name
        model = rule[0] if rule else self._models.get(name, configured)
        with contextlib.suppress(InvalidRequest):  # no client could name it
            return None if model is None else validate_model_name(model)
        return None

    def _match_rule(self, name: str, display_name: str) -> tuple[str, str | None] | None:
        """Return model and address of the first rule that matches a program; None if none does."""
        names = (display_name, name)
        matches = (rule.match(each) for rule in self._rules for each in names)
        return next((each for each in matches if each), None)

    def _follow(self, programs: Iterable[Program]) -> None:
        """Follow the members of these programs, and of no others."""
        previous, self._processes = self._processes, {}
        for program in programs:
            row = read_row(program.pid)
            if row is None:
                continue
            process = previous.get(program.pid)
            if process is None or process.members.root != (program.pid, row.started):
                process = _ProgramProcess(Members((program.pid, row.started)))
            self._processes[program.pid] = process
        for process in previous.values():
            self._member_table.forget(process.members)
        for process in self._processes.values():
            self._member_table.track(process.members)

    def _declaration(self, program: Program, process: _ProgramProcess) -> tuple[str, str | None]:
        """Return the model of a program, and its address; None if nothing gives an address."""
        model, address = self._match_rule(program.name, program.display_name) or (None, None)
        return (
            model or process.model or program.display_name,
            address or process.address or process.configured or process.addr or process.expanded,
        )


class _ProgramProcess:
    """What is known of a process of a program, for as long as it runs.

    Attributes:
        members: the processes that belong to it.
        model, address: the variables of its environment.
        configured: the address in the host's configuration.
        addr: the address in a command line of the members.
        expanded: the address in the host's configuration after the expansion of variables.
    """

    def __init__(self, members: Members) -> None:
        self.members = members
        self.model: str | None = None
        self.address: str | None = None
        self.configured: str | None = None
        self.addr: str | None = None
        self.expanded: str | None = None

    def read(self, program: Program, pids: Iterable[int]) -> None:
        """Read the environment of the process, and the command lines of its members."""
        variables, configured = _environment(program.pid), program.environment
        expansions = {**configured, **variables}
        self.model = variables.get("MONITOR_MODEL") or self.model or configured.get("MONITOR_MODEL")
        self.address = (
            variables.get("MONITOR_ADDRESS") or self.address or configured.get("MONITOR_ADDRESS")
        )
        if self.configured is None and (address := configured_address(program.command)):
            if _is_literal(address):
                self.configured = address
            elif _is_literal(address := Template(address).safe_substitute(expansions)):
                self.expanded = address
        if not (self.address or self.configured):
            addresses = (address_argument(_arguments(pid)) for pid in pids)
            self.addr = next((each for each in addresses if each), self.addr)


def split_command(command: str) -> list[str]:
    """Split a command line of a configuration; return nothing if its quotes are not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _split_script(script: str) -> list[str]:
    """Split a shell script. Operators of the shell, such as `;` and `&&`, become arguments too."""
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return []


def _is_literal(address: str) -> bool:
    """Whether an address of a configuration has nothing that a shell or a host replaces."""
    return not any(each in address for each in "$`(")


def configured_address(command: Sequence[str]) -> str | None:
    """Return the address in a command line of a configuration; None if there is none.

    The script of `sh -c SCRIPT` counts too.
    """
    address = address_argument(command)
    if address is None:
        scripts = (
            argument
            for option, argument in pairwise(command)
            if re.fullmatch("-[a-z]*c", option) and _ADDR in argument
        )
        addresses = (configured_address(_split_script(script)) for script in scripts)
        address = next((each for each in addresses if each), None)
    return address


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
