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

from ..support import Client, Spawner, eventually, free_port, is_running

Options = Mapping[str, object]


def backend_command(*switches: str, addr: str) -> str:
    """The command line of a small demo backend."""
    command = f"{sys.executable} -m monitor_plugin.demo.backend --addr {addr}"
    return " ".join([command, "--weights-mib 2 --kv-cache-mib 1", *switches])


def _section(name: str, options: Options) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in options.items()), "\n"])


class CircusHost:
    """Runs circusd, and ends it and all that it started.

    Args:
        spawner: starts it.
        watchers: the options of each watcher by name; `FOLDER` in them stands for `folder`.
        environment: of circusd, and so of all that it starts.
        sections: more of circus.ini.
        loglevel: circus' own.
        port: on which the monitor is to listen; None for any free one.
        **options: those of the plugin's section, besides `use` and `listen`.

    Attributes:
        folder: a short path, for sockets.
        client: speaks HTTP to the monitor.
        process: circusd's.
        ini: its configuration.
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
        self._mark = uuid.uuid4().hex
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
            env={**environment, **self._environment, "CIRCUS_HOST": self._mark},
        )

    def call(self, command: str, **properties: object) -> dict[str, Any]:
        """Send a command to circusd, and give its answer."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"ipc://{self.folder}/e")
            dealer.send_json({"id": "1", "command": command, "properties": properties})
            assert dealer.poll(30_000), f"circusd did not answer {command!r}"
            answer: Any = dealer.recv_json()
        return dict(answer)

    def patient_call(self, command: str, **properties: object) -> dict[str, Any]:
        """Send a command again and again, as circus refuses it while it runs another."""

        def answer() -> dict[str, Any] | None:
            given = self.call(command, **properties)
            return None if given.get("errno") == 5 else given

        return eventually(answer) or {}

    def pids(self, watcher: str) -> list[int]:
        """List the processes of a watcher."""
        return sorted(self.call("list", name=watcher).get("pids", []))

    def status(self, watcher: str) -> str | None:
        """Say whether a watcher is active or stopped; None where there is none."""
        status = self.call("status")["statuses"].get(watcher)
        return None if status is None else str(status)

    def log(self) -> str:
        """What circusd and its plugins wrote."""
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def wait_found(self, model: str, replicas: int = 1) -> dict[str, Any]:
        """Wait until the monitor answers for so many backends of a model, and give the answer."""

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
        """Wait until a model's backend answers by itself: by then it ignores what it is to."""
        eventually(lambda: "state" in self.wait_found(model))

    def wait_managed(self) -> None:
        """Wait until circus has looked after its watchers, and so undone what it does not know."""
        (before,) = eventually(lambda: self.pids("other"))
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self.pids("other") not in ([], [before]))

    def plugin_pid(self) -> int:
        """Wait for the plugin's process, and give its PID."""
        return eventually(lambda: self.pids("plugin:monitor"))[0]

    def started(self) -> list[psutil.Process]:
        """List the processes that circusd started, of this time and before, and that run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                marked = process.environ().get("CIRCUS_HOST") == self._mark
                if marked and process.pid != self.process.pid and is_running(process.pid):
                    found.append(process)
        return found

    def end(self) -> int:
        """End circusd by SIGTERM, which it forgets while it runs a command; gives its code."""

        def code() -> list[int]:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return [self.process.wait(timeout=10)]
            return []

        return eventually(code, seconds=60)[0]

    def kill(self) -> None:
        """End circusd by SIGKILL."""
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
