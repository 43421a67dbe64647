"""A real circusd with the monitor as its plugin, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import zmq

from ..support import LIGHT_BACKEND, Client, Spawner, eventually, free_port, is_running

Options = Mapping[str, object]


def backend_command(*switches: str, addr: str) -> str:
    """Return the command line of a light backend."""
    return " ".join([f"{LIGHT_BACKEND} --addr {addr}", *switches])


def _section(name: str, options: Options) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in options.items()), "\n"])


class CircusHost:
    """Runs circusd, and ends it and all processes that it started.

    Args:
        spawner: starts circusd.
        watchers: the options of each watcher by name; `FOLDER` in them stands for `folder`.
        environment: more environment variables of circusd, which its processes inherit.
        sections: more sections of circus.ini.
        loglevel: circus' log level.
        port: the monitor's port; None for a free one.
        **options: more options of the plugin's section, besides `use` and `listen`.

    Attributes:
        folder: a folder with a short path, for sockets.
        client: an HTTP client of the monitor.
        process: the process of circusd.
        ini: the path of the configuration.
    """

    def __init__(
        self,
        spawner: Spawner,
        watchers: Mapping[str, Mapping[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
        sections: Mapping[str, Options] | None = None,
        loglevel: str = "warning",
        port: int | None = None,
        **options: object,
    ) -> None:
        self._spawner = spawner
        self._environment = dict(environment or {})
        self._id = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="circus-"))
        self.client = Client(f"http://127.0.0.1:{port or free_port()}")
        every: dict[str, Options] = {
            "circus": {
                "endpoint": f"ipc://{self.folder}/e",
                "pubsub_endpoint": f"ipc://{self.folder}/p",
                "check_delay": 0.5,
                "loglevel": loglevel,
                "logoutput": self.folder / "log",
            },
            "plugin:monitor": {
                "use": "monitor_plugin.hosts.circus.MonitorPlugin",
                "listen": f"127.0.0.1:{self.client.port}",
                **options,
            },
            **(sections or {}),
        }
        for name, given in {"other": {"cmd": "sleep 1000"}, **(watchers or {})}.items():
            every[f"watcher:{name}"] = {"copy_env": True, **given}
        self.ini = self.folder / "circus.ini"
        text = "".join(_section(name, each) for name, each in every.items())
        self.ini.write_text(text.replace("FOLDER", str(self.folder)))
        self.start()

    def start(self) -> None:
        """Start circusd."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MONITOR_")}
        self.process = self._spawner.process(
            *(sys.executable, "-m", "circus.circusd", str(self.ini)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment, **self._environment, "CIRCUS_HOST": self._id},
        )

    def call(self, command: str, **properties: object) -> dict[str, Any]:
        """Send a command to circusd, and return its answer."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"ipc://{self.folder}/e")
            dealer.send_json({"id": "1", "command": command, "properties": properties})
            assert dealer.poll(30_000), f"circusd did not answer {command!r}"
            answer: Any = dealer.recv_json()
        return dict(answer)

    def repeat_call(self, command: str, **properties: object) -> dict[str, Any]:
        """Send a command until circus accepts it; it refuses all while another command runs."""

        def answer() -> dict[str, Any] | None:
            received = self.call(command, **properties)
            return None if received.get("errno") == 5 else received

        return eventually(answer) or {}

    def control(self, *arguments: str) -> str:
        """Run circusctl with these arguments; return what it prints."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "circus.circusctl"),
                *("--endpoint", f"ipc://{self.folder}/e", *arguments),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def pids(self, watcher: str) -> list[int]:
        """Return the processes of a watcher."""
        return sorted(self.call("list", name=watcher).get("pids", []))

    def status(self, watcher: str) -> str | None:
        """Return a watcher's status, `active` or `stopped`; None if there is no such watcher."""
        status = self.call("status")["statuses"].get(watcher)
        return None if status is None else str(status)

    def log(self) -> str:
        """Return what circusd and its plugins logged."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def wait_found(self, model: str, replicas: int = 1) -> dict[str, Any]:
        """Wait until the monitor answers for that many backends of a model; return the answer."""

        def found() -> dict[str, Any] | None:
            try:
                answer = self.client.monitor(model)
            except OSError:
                return None
            if answer.headers.get("X-Monitor-Replicas") != str(replicas):
                return None
            return dict(answer.json)

        return eventually(found) or {}

    def wait_serving(self, model: str) -> None:
        """Wait until a model's backend serves; it handles signals as its switches say by then."""
        eventually(lambda: "state" in self.wait_found(model))

    def wait_managed(self) -> None:
        """Wait until circus has checked its watchers, and restarted processes that it misses."""
        (before,) = eventually(lambda: self.pids("other"))
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self.pids("other") not in ([], [before]))

    def plugin_pid(self) -> int:
        """Wait for the plugin's process, and return its PID."""
        return eventually(lambda: self.pids("plugin:monitor"))[0]

    def started(self) -> list[psutil.Process]:
        """List the running processes that circusd started, also before its last start."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.environ().get("CIRCUS_HOST") == self._id
                if ours and process.pid != self.process.pid and is_running(process.pid):
                    found.append(process)
        return found

    def end(self) -> int:
        """Send SIGTERM until circusd ends, as it ignores one during a command; return its code."""

        def code() -> list[int]:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return [self.process.wait(timeout=10)]
            return []

        return eventually(code, seconds=60)[0]

    def kill(self) -> None:
        """Kill circusd."""
        self.process.kill()
        self.process.wait(timeout=60)

    def close(self) -> None:
        """End everything."""
        self.kill()

        def ended() -> bool:
            for process in self.started():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return not self.started()

        eventually(ended)
        shutil.rmtree(self.folder)
