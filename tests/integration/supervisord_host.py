"""A real supervisord in its own session, with the monitor as its event listener."""

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
SLEEPER = "sleep 100000"
INTERFACE = """
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# Records the calls of the hooks, and prints text that must not reach supervisord's event protocol.
HOOKS = """
import json, os, time
import monitor_plugin

def record(**call):
    print("this is no event protocol", flush=True)
    os.write(1, b"nor is this")
    with open({calls!r}, "a") as file:
        file.write(json.dumps(call) + "\\n")

@monitor_plugin.hookimpl
def monitor_started(monitor):
    record(started=os.getpid())

@monitor_plugin.hookimpl
def monitor_backend_registered(backend):
    record(registered=backend.model, pid=backend.pid)

@monitor_plugin.hookimpl
def monitor_backend_gone(backend, exit):
    record(gone=backend.model, pid=backend.pid, signal=exit.signal, cause=exit.cause)
"""


def program(name: str, command: str, *lines: str) -> str:
    """Return a program's section; by default it is RUNNING at once, and restarted when it ends."""
    options = {"autorestart": "true", "startsecs": "0", "command": command}
    options |= dict(line.split("=", 1) for line in lines)
    return "\n".join([f"[program:{name}]", *(f"{k}={v}" for k, v in options.items()), ""])


def sleeper(name: str, *lines: str) -> str:
    """Return the section of a backend that is an idle process and serves no gRPC."""
    address = f'environment=MONITOR_ADDRESS="127.0.0.1:{free_port()}"'
    return program(name, SLEEPER, address, *lines)


class Host:
    """A supervisord, which `start` starts.

    Args:
        folder: the folder of all its files.
        sections: the sections of its programs.
        server: its HTTP server: `unix`, `inet`, or None for no server.
        credentials: the name and the password of that server.
        flags: more flags of the monitor's command.
        environment: the monitor's environment, in the form of supervisord's option.
        retries: how often supervisord restarts a monitor that ends at once.
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
        text += f"childlogdir={folder}\n"  # by default the system's temporary folder
        login = "username={}\npassword={}\n".format(*credentials) if credentials else ""
        if server == "unix":
            self.url = f"unix://{folder}/s"
            text += f"[unix_http_server]\nfile={folder}/s\n{login}{INTERFACE}"
        elif server == "inet":
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            text += f"[inet_http_server]\nport=127.0.0.1:{port}\n{login}{INTERFACE}"
        if server:
            self.supervisord = SupervisordClient(self.url, *(credentials or ()))
            text += f"[supervisorctl]\nserverurl={self.url}\n{login}"
        if monitored:
            hooks = folder / "hooks"
            hooks.mkdir(mode=0o755)
            (hooks / "record.py").write_text(HOOKS.format(calls=str(folder / "calls")))
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
        """Write the configuration with these programs."""
        self.configuration.write_text(self._text + sections)

    def start(self) -> Host:
        with open(self.folder / "supervisord.log", "wb") as log:
            self.process = subprocess.Popen(
                [PROGRAMS / "supervisord", "-c", self.configuration],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        return self

    @property
    def log(self) -> str:
        return (self.folder / "supervisord.log").read_text()

    @property
    def monitor_log(self) -> str:
        path = self.folder / "monitor.log"
        return path.read_text() if path.exists() else ""

    def hook_calls(self, kind: str) -> list[dict[str, Any]]:
        """List the calls of the monitor's hooks: `started`, `registered` or `gone`."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if kind in call]

    def control(self, *arguments: str) -> str:
        command = [str(PROGRAMS / "supervisorctl"), "-c", str(self.configuration), *arguments]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
        return ended.stdout

    def begin(self, name: str) -> None:
        """Start a program, without a wait until it is RUNNING."""
        self.supervisord.call("startProcess", name, False)

    def info(self, name: str) -> dict[str, Any]:
        """Wait until supervisord answers, and return its information on a program."""

        def info() -> dict[str, Any] | None:
            with contextlib.suppress(SupervisordError):
                return dict(self.supervisord.call("getProcessInfo", name))
            return None

        return eventually(info) or {}

    def state(self, name: str) -> str:
        return str(self.info(name)["statename"])

    def pid(self, name: str) -> int:
        """Wait until a program has a process, and return its PID."""
        return eventually(lambda: int(self.info(name)["pid"]))

    def known(self, *models: str) -> bool:
        """Whether all of these models are registered."""
        try:
            return all(self.client.monitor(model).status == 200 for model in models)
        except OSError:
            return False

    def backends(self, model: str) -> list[int]:
        """Return the PIDs of a model's backends; none while the monitor does not answer."""
        try:
            answer = self.client.request("GET", f"/backends?model={model}").json
        except OSError:
            return []
        return [each["pid"] for each in answer["backends"]]

    def replicas(self, model: str) -> int:
        """Return the number of backends of a model that the monitor knows."""
        try:
            return int(self.client.monitor(model).headers.get("X-Monitor-Replicas", 0))
        except OSError:
            return 0

    def close(self) -> None:
        """Kill supervisord and all processes of its session."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        end_session(self.process.pid)


def end_session(leader: int) -> None:
    """Kill all processes of a session; its process group alone has none of the programs."""
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
