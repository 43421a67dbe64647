"""A real supervisord in a session of its own, with the monitor as its event listener."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from monitor_plugin.hosts.supervisord.client import SupervisordClient, SupervisordError

from ..support import Client, eventually, free_port

PROGRAMS = Path(sys.executable).parent
LISTENER = str(PROGRAMS / "monitor-plugin")
BACKEND = f"{sys.executable} -m monitor_plugin.demo.backend --weights-mib 1 --kv-cache-mib 1"
SLEEPER = "sleep 100000"
INTERFACE = """
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# Records the calls of hooks, and prints to standard output, which must not reach the protocol.
HOOKS = """
import json, os, time
import monitor_plugin

def tell(**fact):
    print("this is no event protocol", flush=True)
    os.write(1, b"nor is this")
    with open({told!r}, "a") as file:
        file.write(json.dumps(fact) + "\\n")

@monitor_plugin.hookimpl
def monitor_started(monitor):
    tell(started=os.getpid())

@monitor_plugin.hookimpl
def monitor_backend_registered(backend):
    tell(registered=backend.model, pid=backend.pid)

@monitor_plugin.hookimpl
def monitor_backend_gone(backend, exit):
    tell(gone=backend.model, pid=backend.pid, signal=exit.signal, cause=exit.cause)
"""


def program(name: str, command: str, *lines: str) -> str:
    """Return the section of a program, which by default starts fast and is restarted on exit."""
    defaults = ["autorestart=true", "startsecs=0"]
    given = {line.partition("=")[0] for line in lines}
    kept = [line for line in defaults if line.partition("=")[0] not in given]
    return "\n".join([f"[program:{name}]", f"command={command}", *kept, *lines, ""])


def sleeper(name: str, *lines: str) -> str:
    """Return the section of a light program that has an address, but does not serve there."""
    address = f'environment=MONITOR_ADDRESS="127.0.0.1:{free_port()}"'
    return program(name, SLEEPER, address, *lines)


class Host:
    """A supervisord, which `start` starts.

    Args:
        folder: the folder of all its files.
        sections: the sections of its programs.
        server: the section of its HTTP server, with INTERFACE; None for none.
        url: of that server.
        credentials: a name and a password for that server.
        flags: flags of the monitor's command.
        environment: the environment of the monitor, in supervisord's syntax.
        retries: how often supervisord starts a monitor again that ends at once.
        monitored: whether the monitor is among the programs.
    """

    def __init__(
        self,
        folder: Path,
        sections: str,
        *,
        server: str | None = "unix",
        credentials: tuple[str, str] | None = None,
        flags: str = "",
        environment: str = "",
        retries: int = 3,
        monitored: bool = True,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        text = "[supervisord]\nnodaemon=true\nloglevel=debug\nlogfile=/dev/null\n"
        text += f"logfile_maxbytes=0\npidfile={folder}/pid\n"
        wanted = "username={}\npassword={}\n".format(*credentials) if credentials else ""
        if server == "unix":
            self.url = f"unix://{folder}/s"
            text += f"[unix_http_server]\nfile={folder}/s\n{wanted}{INTERFACE}"
        elif server == "inet":
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            text += f"[inet_http_server]\nport=127.0.0.1:{port}\n{wanted}{INTERFACE}"
        if server:
            self.supervisord = SupervisordClient(self.url, *(credentials or ()))
            text += f"[supervisorctl]\nserverurl={self.url}\n{wanted}"
        if monitored:
            hooks = folder / "hooks"
            hooks.mkdir(mode=0o755)
            (hooks / "tell.py").write_text(HOOKS.format(told=str(folder / "told")))
            flags = f"--listen 127.0.0.1:{self.port} --hooks-dir {hooks} {flags}"
            text += f"[eventlistener:monitor]\ncommand={LISTENER} supervisord {flags}\n"
            text += "events=PROCESS_STATE\nbuffer_size=1000\nstartsecs=5\nautorestart=true\n"
            text += f"startretries={retries}\n"
            text += f"stderr_logfile={folder}/monitor.log\n"
            text += f"environment={environment}\n" if environment else ""
        self._text = text
        self.configuration = folder / "supervisord.conf"
        self.write(sections)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, sections: str) -> None:
        """Write the configuration with these sections of programs."""
        self.configuration.write_text(self._text + sections)

    def start(self) -> Host:
        with open(self.folder / "supervisord.log", "wb") as log:
            self.process = subprocess.Popen(
                [PROGRAMS / "supervisord", "-c", self.configuration],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def log(self) -> str:
        return (self.folder / "supervisord.log").read_text()

    @property
    def monitor_log(self) -> str:
        path = self.folder / "monitor.log"
        return path.read_text() if path.exists() else ""

    def told(self, what: str) -> list[dict[str, Any]]:
        """Return the recorded calls of hooks of a kind: `started`, `registered` or `gone`."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [fact for fact in map(json.loads, lines) if what in fact]

    def control(self, *arguments: str) -> str:
        command = [str(PROGRAMS / "supervisorctl"), "-c", str(self.configuration), *arguments]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
        return ended.stdout

    def begin(self, name: str) -> None:
        """Start a program, without waiting until it is RUNNING."""
        self.supervisord.call("startProcess", name, False)

    def info(self, name: str) -> dict[str, Any]:
        """Return supervisord's information on a program, as soon as it answers."""
        info: dict[str, Any] = {}

        def ask() -> bool:
            with contextlib.suppress(SupervisordError):
                info.update(self.supervisord.call("getProcessInfo", name))
            return bool(info)

        eventually(ask)
        return info

    def state(self, name: str) -> str:
        return str(self.info(name)["statename"])

    def pid(self, name: str) -> int:
        """Return the PID of a program, when it has one."""
        return eventually(lambda: int(self.info(name)["pid"]))

    def known(self, *models: str) -> bool:
        """Whether all of these models are registered."""
        try:
            return all(self.client.monitor(model).status == 200 for model in models)
        except OSError:
            return False

    def replicas(self, model: str) -> int:
        """Return the number of registered backends of a model."""
        try:
            return int(self.client.monitor(model).headers.get("X-Monitor-Replicas", 0))
        except OSError:
            return 0

    def close(self) -> None:
        """End supervisord and the remaining processes of its session."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        end_session(self.process.pid)


def end_session(leader: int) -> None:
    """Kill all processes of a session, in which each program has its own process group."""
    deadline = time.monotonic() + 30
    while left := _session(leader):
        assert time.monotonic() < deadline, f"cannot be killed: {left}"
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _session(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text("latin-1").rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    members.append(int(entry.name))
    return members
