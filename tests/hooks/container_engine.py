"""A stand-in for the programs `docker` and `podman`, which answers as their documentation says.

`docker run` starts a real process outside the client's tree, in real control groups; a process of
its own, as containerd-shim is, waits for it. Files in the folder of the engine control it:

    hold-pull   while it exists, `run` waits for the image
    away        while it exists, each other subcommand fails: there is no daemon
    hang        while it exists, each other subcommand hangs
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ..support import eventually

SCRIPT = r'''#!{python} -SE
import datetime, json, os, signal, sys, time
STATE, GROUPS = {state!r}, {groups!r}
arguments = sys.argv[1:]
with open(STATE + "/calls", "a") as file:
    file.write(json.dumps(arguments) + "\n")

def exists(name):
    return os.path.exists(STATE + "/" + name)

def fail(text, code=1):
    print(text, file=sys.stderr, flush=True)
    os._exit(code)

def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")

def load(name):
    for entry in os.listdir(STATE):
        if entry.endswith(".json"):
            try:
                with open(STATE + "/" + entry) as file:
                    container = json.load(file)
            except FileNotFoundError:  # it was removed meanwhile
                continue
            if name in (container["Id"], container["Name"]):
                return container
    return None

def save(container):
    path = STATE + "/" + container["Id"] + ".json"
    with open(path + ".new", "w") as file:
        json.dump(container, file)
    os.rename(path + ".new", path)

def in_group(id):
    with open(GROUPS[0] + "/docker-" + id + "/cgroup.procs") as file:
        return [int(each) for each in file.read().split()]

def shim(container, command, rm, always, output):
    """Run the container, wait for it, and restart it if it shall be."""
    id, groups = container["Id"], [each + "/docker-" + container["Id"] for each in GROUPS]
    for each in groups:
        os.mkdir(each)
    while True:
        pid = os.fork()
        if not pid:
            for each in groups:
                with open(each + "/cgroup.procs", "w") as file:
                    file.write("0")
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.execvp(command[0], command)
        while pid not in in_group(id):
            time.sleep(0.005)
        container["State"] = dict(Status="running", Running=True, Pid=pid, StartedAt=now())
        save(container)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        container["State"] = dict(
            Status="exited", Running=False, Pid=0, ExitCode=128 - code if code < 0 else code,
            StartedAt=container["State"]["StartedAt"],
        )
        if not always or exists("stopped-" + id):
            break
        save(container)
    while left := in_group(id):
        for each in left:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)
    for each in groups:
        os.rmdir(each)
    container["Ended"] = True
    save(container)
    if rm:
        os.unlink(STATE + "/" + id + ".json")

def run(rest):
    options, flags = {{}}, []
    while rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if name in ("--rm", "-i", "-d", "--detach", "--init"):
            flags.append(name)
        else:
            options[name] = value if equals else rest.pop(0)
    image, command = rest[0], rest[1:]
    while exists("hold-pull"):
        time.sleep(0.01)
    name, id = options.get("--name", ""), os.urandom(32).hex()
    if name and load(name):
        fail("docker: Error response from daemon: Conflict. The container name is in use", 125)
    if "--cidfile" in options:
        try:
            with open(options["--cidfile"], "x") as file:
                file.write(id)
        except FileExistsError:
            fail("docker: container ID file found", 125)
    container = dict(Id=id, Name=name, Created=now(), State=dict(
        Status="created", Running=False, Pid=0, StartedAt="0001-01-01T00:00:00Z"))
    save(container)
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.close(reader)
            shim(container, command, "--rm" in flags, options.get("--restart") == "always", writer)
        os._exit(0)
    os.close(writer)

    def proxy(number, frame):
        running = load(id)
        if running and running["State"]["Pid"]:
            os.kill(running["State"]["Pid"], number)

    if not exists("deaf-clients"):
        signal.signal(signal.SIGTERM, proxy)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if set(flags) & {{"-d", "--detach"}}:
        print(id)
        return
    while data := os.read(reader, 4096):
        os.write(1, data)
    while exists("deaf-clients"):
        time.sleep(0.01)
    while (container := load(id)) and not container.get("Ended"):
        time.sleep(0.01)
    sys.exit(container["State"]["ExitCode"] if container else 0)

while arguments[0].startswith("-"):  # --context NAME
    del arguments[:2]
if arguments[0] == "container":
    del arguments[0]
subcommand = arguments.pop(0)
if subcommand == "run":
    run(arguments)
    sys.exit()
if exists("away"):
    print("[]")
    fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?")
while exists("hang"):
    time.sleep(0.01)
found = load(arguments[-1])
if subcommand == "inspect":
    print(json.dumps([found] if found else []))
    if not found:
        fail("Error response from daemon: No such container: " + arguments[-1])
elif subcommand == "stop":
    if not found:
        fail("Error response from daemon: No such container: " + arguments[-1])
    id, patience = found["Id"], float(arguments[arguments.index("-t") + 1])
    open(STATE + "/stopped-" + id, "w").close()
    number, deadline = signal.SIGTERM, time.monotonic()
    while (found := load(id)) and not found.get("Ended"):
        if time.monotonic() >= deadline and found["State"]["Pid"]:
            os.kill(found["State"]["Pid"], number)
            number, deadline = signal.SIGKILL, time.monotonic() + patience
        time.sleep(0.005)
    print(arguments[-1])
'''


class ContainerEngine:
    """The programs `docker` and `podman` in a folder of their own.

    Args:
        folder: the folder, which this makes.
        groups: the folders in which each container gets a control group.
    """

    def __init__(self, folder: Path, groups: list[str]) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(parents=True)
        self._groups = groups
        for name in ("docker", "podman"):
            script = SCRIPT.format(python=sys.executable, state=str(self.state), groups=groups)
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def set(self, name: str, is_set: bool = True) -> None:
        """Make or remove a file that controls the engine."""
        if is_set:
            (self.state / name).touch()
        else:
            (self.state / name).unlink()

    def calls(self, subcommand: str) -> list[list[str]]:
        """List the calls of a subcommand: their arguments."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if subcommand in call]

    def containers(self) -> list[dict[str, Any]]:
        """Return the containers that were not removed."""
        found = []
        for path in self.state.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append(json.loads(path.read_text()))
        return sorted(found, key=lambda each: str(each["Created"]))

    def running(self, count: int = 1) -> list[int]:
        """Wait until that many containers run, and return their main processes."""

        def run() -> list[int]:
            pids = [each["State"]["Pid"] for each in self.containers() if each["State"]["Pid"]]
            return pids if len(pids) == count else []

        return eventually(run)

    def processes(self) -> list[int]:
        """List the processes in the control groups of all containers."""
        found = []
        for group in Path(self._groups[0]).glob("docker-*/cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(each) for each in group.read_text().split()]
        return found

    def close(self) -> None:
        """End all containers; the shims end with them, and remove the control groups."""
        for name in ("hold-pull", "deaf-clients", "away", "hang"):
            (self.state / name).unlink(missing_ok=True)

        def ended() -> bool:
            for container in self.containers():
                self.set(f"stopped-{container['Id']}")
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not any(list(Path(each).glob("docker-*")) for each in self._groups)

        eventually(ended)
        for each in self._groups:
            Path(each).rmdir()
