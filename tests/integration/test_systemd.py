"""A real systemd, with the monitor as one of its services, and real backends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from ..support import LIGHT_BACKEND, Client, eventually, free_port, is_running
from ..systemd_machine import SystemdMachine

pytestmark = [pytest.mark.slow, pytest.mark.once]

MONITOR = f"{sys.executable} -m monitor_plugin.cli systemd"
SLEEPER = "sleep 100000"
# The ports of replicas end in their numbers.
PORTS = f"127.0.0.{os.getpid() % 200 + 20}:2000"


def address() -> str:
    return f"127.0.0.1:{free_port()}"


def service(command: str, *lines: str, starts: int = 0) -> str:
    """Return the text of a unit; by default its process is started again whenever it ends.

    Args:
        command: its command line.
        lines: more lines of the section `[Service]`, which take precedence.
        starts: how often systemd starts it within 10 s; 0: without a limit.
    """
    limit = f"StartLimitBurst={starts}" if starts else "StartLimitIntervalSec=0"
    options = {"ExecStart": command, "Restart": "always", "RestartSec": "100ms"}
    options |= dict(line.split("=", 1) for line in lines)
    section = [f"{name}={value}" for name, value in options.items()]
    return "\n".join(["[Unit]", limit, "[Service]", *section, ""])


def declares(model: str, at: str) -> str:
    return f'Environment=MONITOR_MODEL="{model}" MONITOR_ADDRESS={at}'


# Uses more memory than its unit may, once the file is there.
GREEDY = """
import os, time
while not os.path.exists("/tmp/eat"):
    time.sleep(0.05)
eaten = bytearray(200 << 20)
time.sleep(1000)
"""


class Host(SystemdMachine):
    """A systemd whose services a monitor watches, which is one of its services.

    Attributes:
        client: asks the monitor.
        ruled: the port, and the name, of the instance of `ruled@`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ruled = free_port()
        self.client = Client(f"http://127.0.0.1:{free_port()}")

    def run_monitor(self, *flags: str) -> None:
        listen = self.client.url.removeprefix("http://")
        flags = ("--listen", listen, "--stop-timeout-seconds", "2", *flags)
        self.write_unit("monitor.service", service(f"{MONITOR} {' '.join(flags)}"))
        self.reload()
        self.begin("monitor")

    def begin(self, *units: str) -> None:
        """Start units, without a wait."""
        self.run("systemctl", "start", "--no-block", *units)

    def state(self, unit: str) -> str:
        return f"{self.show(unit, 'ActiveState')} {self.show(unit, 'SubState')}"

    def answer(self) -> dict[str, Any]:
        """Return the list of backends; empty while the monitor does not answer."""
        with contextlib.suppress(OSError):
            return dict(self.client.request("GET", "/backends").json)
        return {"backends": [], "models": [], "ended": []}

    def pids(self, model: str) -> list[int]:
        """Return the PIDs of the backends of a model, as seen from outside."""
        found = [each["pid"] for each in self.answer()["backends"] if each["model"] == model]
        return sorted(map(self.outer_pid, found))

    def model(self, model: str) -> tuple[str, str | None] | None:
        """Return the state of a model without a backend, and its detail."""
        found = [each for each in self.answer()["models"] if each["model"] == model]
        return (found[0]["state"], found[0]["detail"]) if found else None

    def main_pids(self, *units: str) -> list[int]:
        """Return the PIDs of the main processes of units that have one, as seen from outside."""
        found = [int(self.show(each, "MainPID")) for each in units]
        return sorted(self.outer_pid(pid) for pid in found if pid)

    def ended(self, model: str) -> list[dict[str, Any]]:
        return [each for each in self.answer()["ended"] if each["model"] == model]

    def is_known(self, *models: str) -> bool:
        return {each["model"] for each in self.answer()["backends"]} >= set(models)

    def processes(self, unit: str) -> list[int]:
        """Return the PIDs of the processes of a unit, as seen from outside."""
        files = (
            file for each in self._groups for file in each.glob(f"**/{unit}.service/cgroup.procs")
        )
        return sorted({int(pid) for file in files for pid in file.read_text().split()})

    def load(self, model: str) -> Any:
        return self.client.request("POST", "/backend/load", {"model": model})


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A systemd with services of each kind. Each test leaves it unchanged."""
    host = Host()
    try:
        host.start()
        worker = f"sh -c '{SLEEPER} & exec {LIGHT_BACKEND} --addr {address()}'"
        host.write_unit("plain.service", service(f"{LIGHT_BACKEND} --addr {address()}"))
        at = address()
        host.write_unit(
            "declared.service", service(f"{LIGHT_BACKEND} --add {at}", declares("org/named", at))
        )
        host.write_unit(
            "replica@.service",
            service(f"{LIGHT_BACKEND} --add {PORTS}%i", declares("replicas", f"{PORTS}%i")),
        )
        host.write_unit("ruled@.service", service(f"{LIGHT_BACKEND} --add 127.0.0.1:%i"))
        host.write_unit("keeps.service", service(worker, "KillMode=process"))
        forking = f"sh -c '{LIGHT_BACKEND} --addr {address()} & sleep 0.1'"
        host.write_unit("forks.service", service(forking, "Type=forking"))
        at = address()
        both = f"sh -c '{SLEEPER} & {LIGHT_BACKEND} --add {at} & sleep 0.1'"
        host.write_unit("pair.service", service(both, "Type=forking", declares("pair", at)))
        host.write_unit(
            "prepared.service",
            service(
                f"{LIGHT_BACKEND} --addr {address()}",
                "ExecStartPre=sh -c 'while [ ! -e /tmp/go ]; do sleep 0.1; done'",
            ),
        )
        host.write_unit(
            "fails.service", service("sh -c 'exit 3'", declares("fails", address()), starts=3)
        )
        host.write_unit(
            "limited.service", service("true", declares("limited", address()), starts=3)
        )
        host.write_unit(
            "waits.service",
            service("sh -c 'exit 4'", "RestartSec=1h", declares("waits", address())),
        )
        host.write_unit(
            "deaf.service",
            service(f"{LIGHT_BACKEND} --addr {address()} --ignore-sigterm", "TimeoutStopSec=60"),
        )
        host.path("/tmp/greedy.py").write_text(GREEDY)
        greedy = f"{sys.executable} -S -E /tmp/greedy.py"
        host.write_unit(
            "greedy.service",
            service(greedy, "MemoryMax=50M", "MemorySwapMax=0", declares("greedy", address())),
        )
        script = "trap 'sleep 1; exit 0' TERM; touch /tmp/slow; while :; do sleep 0.1; done"
        host.write_unit("slow.service", service(f'bash -c "{script}"', declares("slow", address())))
        host.write_unit("other.service", service(SLEEPER))
        at = address()
        host.write_unit("unused.service", service(f"{LIGHT_BACKEND} --add {at}"))
        host.write_unit("unused.service.d/model.conf", f"[Service]\n{declares('unused', at)}\n")
        host.run_monitor("--backend", "ruled@*.service=ruled-*@127.0.0.1:*")
        host.begin("plain", "declared", "replica@1", "replica@2", f"ruled@{host.ruled}", "keeps")
        host.begin(
            "forks", "pair", "prepared", "fails", "limited", "waits", "deaf", "other", "greedy"
        )
        yield host
    finally:
        host.close()


@pytest.mark.parametrize("model", ["plain", "org/named", "keeps", "forks"])
def test_services_with_an_address_become_backends(model: str, host: Host) -> None:
    """`--addr` and `Environment=` are found, also in the child of a shell and of `Type=forking`."""
    unit = model.rpartition("/")[2].replace("named", "declared")
    eventually(lambda: host.pids(model) == host.main_pids(unit))


def test_service_without_a_main_process_is_a_backend(host: Host) -> None:
    """The process that serves is registered, and all of them are stopped."""
    eventually(lambda: len(host.processes("pair")) == 2)
    assert host.show("pair", "MainPID") == "0"
    pids = host.processes("pair")
    (server,) = (pid for pid in pids if b"--add" in Path(f"/proc/{pid}/cmdline").read_bytes())
    eventually(lambda: host.pids("pair") == [server])
    (sleeper,) = {*pids} - {server}
    os.kill(sleeper, signal.SIGKILL)  # the oldest one
    eventually(lambda: not is_running(sleeper))
    assert host.pids("pair") == [server]
    assert host.client.shutdown("pair").status == 200
    assert host.state("pair") == "inactive dead"
    assert not is_running(server)


def test_rule_names_the_model_of_an_instance(host: Host) -> None:
    eventually(lambda: host.is_known(f"ruled-{host.ruled}"))
    assert host.client.monitor(f"ruled-{host.ruled}").json["state"] == 2


def test_instances_of_a_template_are_replicas(host: Host) -> None:
    pids = host.main_pids("replica@1", "replica@2")
    eventually(lambda: host.pids("replicas") == pids)


def test_services_without_an_address_are_no_backends(host: Host) -> None:
    """Nor is the monitor itself one."""
    eventually(lambda: host.is_known("plain"))
    answer = host.answer()
    names = {each["model"] for kind in ("backends", "models") for each in answer[kind]}
    assert names.isdisjoint({"other", "monitor", "dbus"})


@pytest.mark.parametrize(
    ("model", "units"),
    [
        ("plain", ["plain"]),
        ("replicas", ["replica@1", "replica@2"]),
        ("keeps", ["keeps"]),
        ("forks", ["forks"]),
    ],
)
def test_stopped_model_is_not_restarted(model: str, units: list[str], host: Host) -> None:
    """systemd stops the services of a model, also what `KillMode=process` spares, and they stay."""
    eventually(lambda: host.pids(model) == host.main_pids(*units))
    pids = [pid for each in units for pid in host.processes(each)]
    answer = host.client.shutdown(model)
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert [host.state(each) for each in units] == ["inactive dead"] * len(units)
    assert not any(map(is_running, pids))
    eventually(lambda: host.model(model) == ("stopped", None))
    answer = host.load(model)
    assert (answer.status, answer.json["loaded"]) == (200, [model])
    eventually(lambda: host.pids(model) == host.main_pids(*units))


def test_service_is_starting_until_it_has_a_process(host: Host) -> None:
    """While its `ExecStartPre=` runs, it is no backend."""
    eventually(lambda: host.model("prepared") == ("starting", None))
    assert host.state("prepared") == "activating start-pre"
    host.path("/tmp/go").touch()
    eventually(lambda: host.pids("prepared") == host.main_pids("prepared"))


def test_failed_service_has_the_reason_of_systemd(host: Host) -> None:
    """A service that ends again and again hits its start limit, and a start is refused."""
    limit = "it was started too often; systemctl reset-failed limited.service allows a start"
    eventually(lambda: host.model("limited") == ("failed", f"start-limit-hit: {limit}"))
    assert host.state("limited") == "failed failed"
    eventually(
        lambda: host.model("fails") == ("failed", "exit-code: its process exited with code 3")
    )
    for model, reason in (("limited", limit), ("fails", "exited with code 3")):
        answer = host.load(model)
        assert answer.status == 500
        assert reason in answer.json["message"]


def test_service_that_waits_for_its_restart_is_waiting(host: Host) -> None:
    detail = "exit-code: its process exited with code 4"
    eventually(lambda: host.model("waits") == ("waiting", detail))
    assert host.state("waits") == "activating auto-restart"


def test_service_that_is_not_loaded_can_be_started(host: Host) -> None:
    """A service that nothing has started yet is listed because of a part of its file."""
    eventually(lambda: host.model("unused") == ("stopped", None))
    assert "unused.service" not in host.run("systemctl", "list-units", "--all", "--plain")
    assert host.load("unused").status == 200
    eventually(lambda: host.pids("unused") == host.main_pids("unused"))
    assert host.client.shutdown("unused").status == 200


def test_late_stop_is_an_error(host: Host) -> None:
    """It names the limit that systemd gives the service, and systemd goes on."""
    eventually(lambda: host.is_known("deaf"))
    pid = host.main_pid("deaf")
    answer = host.client.shutdown("deaf")
    assert answer.status == 500
    message = answer.json["error"]["message"]
    assert "it has 60 s to end itself (TimeoutStopSec=)" in message
    assert "nothing was signalled" in message or "deactivating (stop-sigterm)" in message
    assert is_running(pid)
    assert host.state("deaf") == "deactivating stop-sigterm"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: host.state("deaf") == "failed failed")
    host.begin("deaf")
    eventually(lambda: host.is_known("deaf"))


def test_killed_backend_is_replaced_by_its_successor(host: Host) -> None:
    eventually(lambda: host.is_known("org/named"))
    old = host.main_pid("declared")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: host.pids("org/named") not in ([], [old]))
    assert host.pids("org/named") == host.main_pids("declared")
    end = eventually(
        lambda: next((each for each in host.ended("org/named") if each["host_exit"]), None)
    )
    assert end
    assert (end["cause"], end["signal"]) == ("killed", signal.SIGKILL)
    assert end["description"] == "was killed by SIGKILL (systemd: signal)"
    assert end["host_exit"]["result"] == "signal"


@pytest.mark.parametrize(
    "command",
    [
        ("systemctl", "daemon-reload"),
        ("systemctl", "daemon-reexec"),
        ("systemctl", "restart", "monitor"),
        ("systemctl", "restart", "dbus"),
    ],
)
def test_restarts_change_nothing(command: tuple[str, ...], host: Host) -> None:
    """Neither of systemd, nor of the bus, nor of the monitor; later changes are seen."""
    units = ["plain", "declared", "keeps", "forks", "replica@1", "replica@2"]
    models = ["plain", "org/named", "keeps", "forks", "replicas"]

    def pids() -> list[int]:
        return sorted(pid for each in models for pid in host.pids(each))

    expected = host.main_pids(*units)
    eventually(lambda: pids() == expected)
    ended = len(host.answer()["ended"])
    host.run(*command)
    host.begin("unused")  # what happens after the command is seen, so the command was seen before
    eventually(lambda: host.is_known("unused"))
    host.run("systemctl", "stop", "unused")
    eventually(lambda: host.model("unused") == ("stopped", None))
    assert pids() == expected
    assert len(host.answer()["ended"]) <= ended + 1


@pytest.mark.parametrize(
    "command", [("systemctl", "daemon-reexec"), ("systemctl", "restart", "dbus")]
)
def test_stop_outlasts_a_restart_of_systemd_or_of_the_bus(
    command: tuple[str, ...], host: Host
) -> None:
    """The end of the job is seen, although the signal may have been sent to nobody."""
    host.begin("slow")
    eventually(host.path("/tmp/slow").exists)  # it has its handler of SIGTERM
    eventually(lambda: host.is_known("slow"))
    with futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(host.client.shutdown, "slow")
        eventually(lambda: host.state("slow") == "deactivating stop-sigterm")
        host.run(*command)
        assert asking.result(60).status == 200
    assert host.state("slow") == "inactive dead"
    host.path("/tmp/slow").unlink()


def test_removed_service_is_forgotten(host: Host) -> None:
    """A file that is added or removed counts from the next `daemon-reload`, as for systemd."""
    host.write_unit("brief.service", service(SLEEPER, declares("brief", address())))
    host.reload()
    eventually(lambda: host.model("brief") == ("stopped", None))
    host.path("/run/systemd/system/brief.service").unlink()
    host.reload()
    eventually(lambda: host.model("brief") is None)
    host.run(
        *("systemd-run", "--unit=transient", "--quiet", f"--setenv=MONITOR_ADDRESS={address()}"),
        *SLEEPER.split(),
    )
    eventually(lambda: host.pids("transient") == host.main_pids("transient"))
    host.run("systemctl", "stop", "transient")
    eventually(lambda: host.model("transient") is None and not host.is_known("transient"))


def test_memory_limit_of_a_service_kills_its_backend(host: Host) -> None:
    """systemd removes its control group soon, with the count of such kills."""
    eventually(lambda: host.is_known("greedy"))
    pid = int(host.show("greedy", "MainPID"))
    host.path("/tmp/eat").touch()
    end = eventually(lambda: next(iter(host.ended("greedy")), None))
    host.path("/tmp/eat").unlink()
    assert end
    assert (end["pid"], end["signal"]) == (pid, signal.SIGKILL)
    assert end["cause"] in ("oom", "killed")
    eventually(lambda: host.is_known("greedy"))


def test_log_is_that_of_the_journal(host: Host) -> None:
    eventually(lambda: host.is_known("plain"))
    path = "/backend/log?model=plain&stream=stdout"
    eventually(lambda: b"serving on" in host.client.request("GET", path).body)


def test_monitor_without_rights_stops_nothing(host: Host) -> None:
    """systemd refuses, the monitor says what is missing, and no signal is sent."""
    visitor = Client(f"http://127.0.0.1:{free_port()}")
    flags = f"--listen {visitor.url.removeprefix('http://')}"
    host.write_unit("visitor.service", service(f"{MONITOR} {flags}", "User=nobody"))
    host.reload()
    host.begin("visitor")

    def is_known() -> bool:
        with contextlib.suppress(OSError):
            return visitor.monitor("plain").status == 200
        return False

    eventually(is_known)
    pids = host.pids("plain")
    for path in ("/backend/shutdown", "/backend/load"):
        model = "plain" if "shutdown" in path else "unused"
        answer = visitor.request("POST", path, {"model": model})
        assert answer.status == 500
        assert b"org.freedesktop.systemd1.manage-units" in answer.body
    assert host.state("plain") == "active running"
    assert host.main_pids("plain") == pids
    assert host.state("unused") == "inactive dead"
    host.run("systemctl", "stop", "visitor")


def test_manager_of_a_user_is_a_host(host: Host) -> None:
    """The monitor is a service of it, and stops and starts its services without polkit."""
    user = Client(f"http://127.0.0.1:{free_port()}")
    at = address()

    def run(*command: str) -> str:
        login = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        return host.run(*login, "env", "XDG_RUNTIME_DIR=/run/user/65534", *command)

    def start(unit: str, *command: str) -> None:
        flags = ("--property=Restart=always", f"--setenv=MONITOR_LISTEN={user.url[7:]}")
        run("systemd-run", "--user", f"--unit={unit}", "--quiet", *flags, *command)

    host.run("systemctl", "start", "user@65534")
    start("monitor", *MONITOR.split(), "--user")
    start("own", *LIGHT_BACKEND.split(), "--addr", at)

    def is_known() -> bool:
        with contextlib.suppress(OSError):
            return user.monitor("own").status == 200
        return False

    eventually(is_known)
    assert user.monitor("plain").status == 500
    assert user.shutdown("own").status == 200
    assert run("systemctl", "--user", "show", "-P", "LoadState", "own") == "not-found"
    assert not host.is_known("own")
    host.run("systemctl", "stop", "user@65534")
