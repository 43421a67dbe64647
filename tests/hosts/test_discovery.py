"""Discovery of backends by rules, environments, command lines and sockets, all real."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from monitor_plugin import MonitorError
from monitor_plugin.hosts.discovery import (
    DiscoveredBackend,
    Discovery,
    Program,
    address_argument,
    configured_address,
    parse_rule,
    split_command,
)

from ..support import OVERWRITE_TITLE, Spawner, count_pidfds, eventually, free_port

# What a backend is to the discovery: a command line. It needs not serve.
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
ADDRESS = "127.0.0.1:50051"
# Overwrite their command line and environment: at once, or after a line of input.
SILENT = f"{OVERWRITE_TITLE}\nprint('done', flush=True)\nimport time\ntime.sleep(1000)"
SILENT_LATER = f"input()\n{SILENT}"
# Listens at `--addr`, the last argument, once the FIFO before it was written to.
SERVER = """
import signal, socket, sys
open(sys.argv[-3]).read()
host, _, port = sys.argv[-1].rpartition(":")
listening = socket.create_server((host, int(port)))
signal.pause()
"""


def found(
    pid: int, *rules: str, name: str = "g:llama", model: str = "llama"
) -> list[DiscoveredBackend]:
    discovery = Discovery([parse_rule(rule) for rule in rules])
    return discovery.find([Program(name, model, pid)])


def addresses(backends: list[DiscoveredBackend]) -> list[str]:
    return [each.address for each in backends]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("switches", [("--addr", ADDRESS), (f"--addr={ADDRESS}",)])
def test_backend_is_found_by_its_command_line(switches: tuple[str, ...], spawner: Spawner) -> None:
    """`--addr X` or `--addr=X` makes a backend, whose model has the display name of the program."""
    process = spawner.process(*SLEEPER, *switches)
    expected = [DiscoveredBackend("g:llama", "llama", process.pid, ADDRESS, [process.pid])]
    assert eventually(lambda: found(process.pid)) == expected


def test_backend_is_found_by_its_environment(spawner: Spawner) -> None:
    """MONITOR_ADDRESS and MONITOR_MODEL take precedence over the command line."""
    environment = {"MONITOR_MODEL": "org/m", "MONITOR_ADDRESS": ADDRESS}
    process = spawner.process(*SLEEPER, "--addr", "127.0.0.1:1", env=environment)
    expected = [DiscoveredBackend("g:llama", "org/m", process.pid, ADDRESS, [process.pid])]
    eventually(lambda: found(process.pid) == expected)
    other = spawner.process(*SLEEPER, env={"MONITOR_MODEL": "org/m"})
    process.kill()
    process.wait()
    assert found(process.pid) == found(other.pid) == []


@pytest.mark.parametrize(
    ("rule", "model", "address"),
    [
        ("llama=m@127.0.0.1:7", "m", "127.0.0.1:7"),
        ("g:llama=m@127.0.0.1:7", "m", "127.0.0.1:7"),
        ("g:*=m-*@unix:/run/*.sock", "m-llama", "unix:/run/llama.sock"),
        ("ll?m*=*", "a", ADDRESS),
        ("*=all", "all", ADDRESS),
    ],
)
def test_backend_is_found_by_a_rule(rule: str, model: str, address: str, spawner: Spawner) -> None:
    """A rule precedes everything else. If it has no address, the program must give one."""
    process = spawner.process(*SLEEPER, "--addr", ADDRESS, env={"MONITOR_MODEL": "other"})
    eventually(lambda: found(process.pid))
    expected = [DiscoveredBackend("g:llama", model, process.pid, address, [process.pid])]
    assert found(process.pid, "another=x@127.0.0.1:9", rule, "*=late@127.0.0.1:9") == expected


def test_programs_without_an_address_are_not_backends(spawner: Spawner) -> None:
    """Nor are programs that have ended, or the one that runs the monitor."""
    process = spawner.process(*SLEEPER)
    rule = "g:llama=m@127.0.0.1:7"
    assert found(process.pid, "other:*=m@127.0.0.1:7", "g:llama=m") == []
    eventually(lambda: found(process.pid, rule))
    assert found(os.getpid(), rule) == found(os.getppid(), rule) == []
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert found(process.pid, rule) == []  # a zombie
    process.wait()
    assert found(process.pid, rule) == []


@pytest.mark.parametrize(
    ("command", "rules", "model"),
    [
        (("serve", "--addr", ADDRESS), (), "llama"),
        (("serve", f"--addr={ADDRESS}"), (), "llama"),
        (("sh", "-c", f"exec serve --addr {ADDRESS}"), (), "llama"),
        (("sh", "-c", "exec serve --addr $HERE"), (), "llama"),
        (("serve",), (), None),
        ((), (), None),
        (("serve",), ("g:llama=m",), "m"),
        (("serve",), ("other=x", "ll*=m-*@127.0.0.1:7"), "m-ama"),
        (("serve", "--addr", ADDRESS), ("g:*=of/rule",), "of/rule"),
        (("serve", "--addr", ADDRESS), ("g:*=" + "x" * 256,), None),
    ],
)
def test_model_of_a_program_that_never_ran_is_that_of_its_rule_or_command(
    command: tuple[str, ...], rules: tuple[str, ...], model: str | None
) -> None:
    """A program with neither is no model, nor is one whose model has an invalid name."""
    discovery = Discovery([parse_rule(rule) for rule in rules])
    assert discovery.model_of("g:llama", "llama", command) == model


def test_model_of_a_program_is_remembered_after_its_process(spawner: Spawner) -> None:
    """The model is forgotten when the host has no such program. The monitor is no model."""
    environment = {"MONITOR_MODEL": "org/m", "MONITOR_ADDRESS": ADDRESS}
    process = spawner.process(*SLEEPER, env=environment)
    program, own = Program("g:llama", "llama", process.pid), Program("mon", "mon", os.getpid())
    discovery = Discovery([parse_rule("mon=monitor")])
    assert discovery.model_of("g:llama", "llama", ()) is None
    eventually(lambda: discovery.find([program, own]))
    process.kill()
    process.wait()
    for pid in (process.pid, 0):
        assert discovery.find([program._replace(pid=pid), own]) == []
        assert discovery.model_of("g:llama", "llama", ()) == "org/m"
        assert discovery.model_of("g:llama", "llama", ("serve", "--addr", ADDRESS)) == "org/m"
        assert discovery.model_of("mon", "mon", ()) is None
    discovery.find([own])
    assert discovery.model_of("g:llama", "llama", ()) is None


def test_command_line_of_the_configuration_gives_the_address(spawner: Spawner) -> None:
    """It precedes that of the process, and is enough if the process overwrites its own."""
    process = spawner.process(*SLEEPER, "--addr", "127.0.0.1:1")
    eventually(lambda: found(process.pid))
    program = Program("g:llama", "llama", process.pid, ["backend", "--addr", ADDRESS])
    assert addresses(Discovery().find([program])) == [ADDRESS]
    rule = parse_rule("llama=m@127.0.0.1:7")
    assert addresses(Discovery([rule]).find([program])) == ["127.0.0.1:7"]
    silent = spawner.python(SILENT, "--addr", "127.0.0.1:1", env={"MONITOR_ADDRESS": "127.0.0.1:2"})
    assert silent.stdout
    silent.stdout.readline()
    assert found(silent.pid) == []
    assert addresses(Discovery().find([program._replace(pid=silent.pid)])) == [ADDRESS]


def test_address_is_remembered_while_the_process_runs(spawner: Spawner) -> None:
    """The process may overwrite its command line and its environment, or lose its configuration."""
    environment = {"MONITOR_MODEL": "org/m", "MONITOR_ADDRESS": ADDRESS}
    declared = spawner.python(SILENT_LATER, stdin=subprocess.PIPE, env=environment)
    plain = spawner.python(SILENT_LATER, "--addr", ADDRESS, stdin=subprocess.PIPE)
    configured = spawner.sleeper()
    programs = [
        Program("a", "a", declared.pid),
        Program("b", "b", plain.pid),
        Program("c", "c", configured.pid, ["backend", "--addr", ADDRESS]),
    ]
    discovery = Discovery()
    before = eventually(lambda: three if len(three := discovery.find(programs)) == 3 else [])
    assert [each.model for each in before] == ["org/m", "b", "c"]
    for process in (declared, plain):
        assert process.stdin
        assert process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        process.stdout.readline()
    # As after `supervisorctl reread`: the process has its old address until it is restarted.
    programs[2] = programs[2]._replace(command=["backend", "--addr", "127.0.0.1:9"])
    assert discovery.find(programs) == before
    assert Discovery().find(programs[:2]) == []
    assert discovery.find(programs[1:]) == before[1:]
    assert discovery.find(programs) == before[1:]


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "unix:rel", "$ADDRESS"])
def test_program_with_an_invalid_address_is_found(address: str, spawner: Spawner) -> None:
    """The others are found too. The monitor refuses the registration, and says why."""
    invalid = spawner.process(*SLEEPER, env={"MONITOR_ADDRESS": address})
    valid = spawner.process(*SLEEPER, env={"MONITOR_ADDRESS": ADDRESS})
    programs = [Program("a", "a", invalid.pid), Program("b", "b", valid.pid)]
    discovery = Discovery()
    eventually(lambda: addresses(discovery.find(programs)) == [address, ADDRESS])


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("backend --addr 127.0.0.1:1", "127.0.0.1:1"),
        ("sh -c 'echo a; exec backend --addr=unix:/x/#1;:'", "unix:/x/#1"),
        ("bash -lc 'su me -c \"backend --addr [::1]:1&&:\"'", "[::1]:1"),
        ("sh -c '(backend --addr 127.0.0.1:1)|cat'", "127.0.0.1:1"),
        ("sh -c 'backend --addr 127.0.0.1:1 \"it is'", None),
        ("sh -c 'exec backend \"$@\"' sh --addr 127.0.0.1:1", "127.0.0.1:1"),
        ("backend 'it is", None),
        ("backend --comment 'use --addr X'", None),
        ("sh -c :", None),
        ("", None),
    ],
)
def test_address_is_found_in_a_configured_command(command: str, address: str | None) -> None:
    """Also in a shell script, up to the next operator of the shell."""
    assert configured_address(split_command(command)) == address


def test_discovery_holds_no_pidfds(spawner: Spawner) -> None:
    """Only the monitor reports how members have ended."""
    process = spawner.process("sh", "-c", "sleep 1000 & echo $!; wait", "sh", "--addr", ADDRESS)
    assert process.stdout
    child, before = int(process.stdout.readline()), count_pidfds()
    discovery = Discovery()
    (backend,) = discovery.find([Program("g:llama", "llama", process.pid)])
    assert backend.members == [process.pid, child]
    assert count_pidfds() == before


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("sh -c 'backend --addr 127.0.0.1:$PORT'", "127.0.0.1:50051"),
        ("sh -c 'backend --addr \"127.0.0.1:${PORT}\"'", "127.0.0.1:50051"),
        ("sh -c 'backend --addr 127.0.0.1:$OTHER'", None),
        ("sh -c 'backend --addr 127.0.0.1:${PORT:-1}'", None),
        ("sh -c 'backend --addr $(cat address)'", None),
        ("sh -c 'backend --addr `cat address`'", None),
        ("backend --addr 127.0.0.1:$(circus.wid)", None),
        ("backend --addr 127.0.0.1:((circus.wid))", None),
    ],
)
def test_variables_in_a_configured_command_are_those_of_the_process(
    command: str, address: str | None, spawner: Spawner
) -> None:
    """What a shell would compute is not known; a command line of the process precedes it."""
    process = spawner.process(*SLEEPER, env={"PORT": "50051"})
    eventually(lambda: b"import" in command_line(process.pid))
    program = Program("g:llama", "llama", process.pid, split_command(command))
    expected = [] if address is None else [address]
    assert addresses(Discovery().find([program])) == expected
    other = spawner.process(*SLEEPER, "--addr", "127.0.0.1:9", env={"PORT": "50051"})
    eventually(lambda: b"import" in command_line(other.pid))
    assert addresses(Discovery().find([program._replace(pid=other.pid)])) == ["127.0.0.1:9"]


@pytest.mark.parametrize("launcher", ["uv", "conda", "sh", "python"])
def test_process_that_listens_is_found_whatever_started_it(
    launcher: str, spawner: Spawner, tmp_path: Path
) -> None:
    """Until it listens there is none. Launchers need no certain name, and may have children."""
    script = tmp_path / launcher
    server = shlex.join([sys.executable, "-c", SERVER])
    script.write_text(f'#!/bin/sh\nsleep 1000 &\n({server} "$@"; :) & wait')
    script.chmod(0o755)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    address = f"127.0.0.1:{free_port()}"
    process = spawner.process(str(script), "run", str(fifo), "--addr", address)
    discovery = Discovery()

    def find() -> DiscoveredBackend | None:
        return next(iter(discovery.find([Program("g:llama", "llama", process.pid)])), None)

    early = eventually(lambda: it if (it := find()) and len(it.members) == 4 else None)
    assert early
    assert (early.pid, early.address, early.listener) == (process.pid, address, None)
    fifo.write_text("go")
    late = eventually(lambda: it if (it := find()) and it.listener else None)
    assert late
    assert late.listener
    assert late.listener in late.members
    assert command_line(late.listener).startswith(sys.executable.encode())
    assert late._replace(listener=None) == early


@pytest.mark.parametrize("rule", ["", "x", "=m", "x=", "x=@127.0.0.1:7", "x=m@"])
def test_invalid_rule_raises_an_error_that_quotes_it(rule: str) -> None:
    """A rule has a name and a model, and perhaps an address."""
    with pytest.raises(MonitorError, match="is not NAME=MODEL@ADDRESS or NAME=MODEL"):
        parse_rule(rule)


def test_rule_accepts_any_character_in_a_model_name() -> None:
    """A model name may have `=`, `@` and `:`; in NAME, only `*` and `?` are special."""
    assert parse_rule("a.b=org/x@y=z@unix:/s").match("a.b") == ("org/x@y=z", "unix:/s")
    assert parse_rule("a.b=m").match("axb") is None


def test_last_addr_argument_counts() -> None:
    """It is also the last one that counts for the backend. An `--addr` without a value is none."""
    assert address_argument(["x", "--addr", "a:1", "--addr=b:2"]) == "b:2"
    assert address_argument(["x", "--addr=a:1", "--addr"]) == "a:1"
    assert (
        address_argument(["x", "--addr"])
        is address_argument(["x", "--addr="])
        is address_argument(["--address", "y"])
        is None
    )
