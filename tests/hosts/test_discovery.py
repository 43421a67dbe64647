"""Discovery of backends by rules, environments, command lines and wrappers, all real."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from monitor_plugin import MonitorError
from monitor_plugin.hosts import discovery
from monitor_plugin.hosts.discovery import (
    DiscoveredBackend,
    Program,
    address_argument,
    find_backends,
    parse_rule,
)

from ..support import Spawner, eventually

# What a backend is to the discovery: a command line. It needs not serve.
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(1000)")
ADDRESS = "127.0.0.1:50051"


def found(
    pid: int, *rules: str, name: str = "g:llama", model: str = "llama"
) -> list[DiscoveredBackend]:
    return find_backends([Program(name, model, pid)], [parse_rule(rule) for rule in rules])


def children(pid: int) -> list[int]:
    """Return the children that have called `exec`, and are no copies of their parent any more."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if command_line(child) not in (b"", command_line(pid))]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("switches", [("--addr", ADDRESS), (f"--addr={ADDRESS}",)])
def test_backend_is_found_by_its_command_line(switches: tuple[str, ...], spawner: Spawner) -> None:
    """`--addr X` or `--addr=X` makes a backend, whose model has the display name of the program."""
    process = spawner.process(*SLEEPER, *switches)
    expected = [DiscoveredBackend("g:llama", "llama", process.pid, ADDRESS)]
    assert eventually(lambda: found(process.pid)) == expected


def test_backend_is_found_by_its_environment(spawner: Spawner) -> None:
    """MONITOR_ADDRESS and MONITOR_MODEL take precedence over the command line."""
    environment = {"MONITOR_MODEL": "org/m", "MONITOR_ADDRESS": ADDRESS}
    process = spawner.process(*SLEEPER, "--addr", "127.0.0.1:1", env=environment)
    expected = [DiscoveredBackend("g:llama", "org/m", process.pid, ADDRESS)]
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
    expected = [DiscoveredBackend("g:llama", model, process.pid, address)]
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


def test_child_of_a_shell_is_the_backend(spawner: Spawner) -> None:
    """If the shell does not `exec`, the descendant with `--addr` is the backend."""
    command = shlex.join([*SLEEPER, "--addr", ADDRESS])
    shell = spawner.process("sh", "-c", f"(:; {command}; :); :")
    expected = eventually(lambda: found(shell.pid))[0]
    assert expected.address == ADDRESS
    assert expected.pid not in (shell.pid, *children(shell.pid))


@pytest.mark.parametrize("name", ["sh", "fish", "tcsh", "su"])
def test_script_that_passes_its_arguments_on_is_not_the_backend(
    name: str, spawner: Spawner, tmp_path: Path
) -> None:
    """The shell has `--addr` too, and comes first, but is never the backend."""
    wrapper = tmp_path / name  # what it is called is what it is known by
    wrapper.symlink_to("/bin/sh")
    script = tmp_path / "run.sh"
    script.write_text(f'read line; {shlex.join(SLEEPER)} "$@"; :')
    shell = spawner.process(str(wrapper), str(script), "--addr", ADDRESS, stdin=subprocess.PIPE)
    assert found(shell.pid, "llama=m@127.0.0.1:7") == []
    assert shell.stdin
    shell.stdin.write("go\n")
    shell.stdin.flush()
    assert eventually(lambda: found(shell.pid))[0].pid in children(shell.pid)


def test_short_lived_child_of_a_script_is_not_the_backend(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of a wrapper without `--addr` is the backend when it is no longer short-lived."""
    rule = "llama=m@127.0.0.1:7"
    shell = spawner.process("sh", "-c", "sleep 1000; :")
    (child,) = eventually(lambda: children(shell.pid))
    monkeypatch.setattr(discovery, "_SHORT_LIVED_SECONDS", 1000)
    assert found(shell.pid, rule) == []
    monkeypatch.setattr(discovery, "_SHORT_LIVED_SECONDS", 0)
    assert [each.pid for each in found(shell.pid, rule)] == [child]
    crowd = spawner.process("sh", "-c", "sleep 1000 & sleep 1000; :")
    eventually(lambda: len(children(crowd.pid)) == 2)
    assert [each.pid for each in found(crowd.pid, rule)] == [crowd.pid]


def test_worker_with_its_own_address_is_not_the_backend(spawner: Spawner) -> None:
    """A program that declares its address is the backend, whatever its descendants listen at."""
    worker = f"import subprocess; subprocess.run({[*SLEEPER, '--addr', '127.0.0.1:1']})"
    command = (sys.executable, "-S", "-c", worker)
    process = spawner.process(*command, env={"MONITOR_ADDRESS": ADDRESS})
    eventually(lambda: children(process.pid))
    rule = "llama=m@127.0.0.1:7"
    expected = [DiscoveredBackend("g:llama", "llama", process.pid, ADDRESS)]
    assert found(process.pid) == expected
    assert found(process.pid, rule) == [
        DiscoveredBackend("g:llama", "m", process.pid, "127.0.0.1:7")
    ]
    same = spawner.process(*command, env={"MONITOR_ADDRESS": "127.0.0.1:1"})
    eventually(lambda: [each.pid for each in found(same.pid)] == children(same.pid))


def test_child_of_a_script_with_a_wait_loop_is_the_backend(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long-lived child is the backend; the newest child, a `sleep`, is always short-lived."""
    loop = "sleep 1000 & while kill -0 $!; do sleep 999; done"
    shell = spawner.process("sh", "-c", loop, env={"MONITOR_ADDRESS": ADDRESS})
    backend, newest = eventually(lambda: two if len(two := children(shell.pid)) == 2 else [])
    monkeypatch.setattr(discovery, "_is_short_lived", lambda pid: pid == newest)
    assert [each.pid for each in found(shell.pid)] == [backend]


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
