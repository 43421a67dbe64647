"""`/backend/members`, with real process trees."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from monitor_plugin import Monitor
from monitor_plugin.api.schemas import MembersAnswer

from ..support import Client, Spawner, eventually, load_sleeper, read_line, register, send_line
from .test_app import assert_error

PATH = "/backend/members"

# A server with a worker that uses a core, a shell with a sleeper, and a zombie. Prints their PIDs.
TREE = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "while True: pass", "--token=s3cret"])
shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=-1, text=True)
zombie = subprocess.Popen(["sleep", "1000"])
zombie.kill()
os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
print(worker.pid, shell.pid, shell.stdout.readline().strip(), zombie.pid, flush=True)
time.sleep(1000)
"""

# Has a grandchild, a daemon in a session of its own, whose parent ends at a line of the input: so
# a sweep can see the daemon before.
DAEMON = """
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    daemon = os.fork()
    if daemon == 0:
        time.sleep(1000)
    print(daemon, flush=True)
    sys.stdin.readline()
    os._exit(0)
os.wait()
print("alone", flush=True)
time.sleep(1000)
"""


def members_of(client: Client, query: str) -> list[dict[str, Any]]:
    """Return the members of the only backend of an answer."""
    (backend,) = client.request("GET", f"{PATH}?{query}").json["backends"]
    members = backend["members"]
    assert isinstance(members, list)
    return members


def test_members_of_a_tree_are_listed_with_their_own_figures(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The root comes first. A zombie has no figures. No part of a command line is in the answer."""
    monitor = make_monitor(sweep_interval_seconds=0.2)
    client = Client(monitor.url)
    root = spawner.python(TREE)
    worker, shell, sleeper, zombie = map(int, read_line(root).split())
    register(monitor, root.pid, "org/a model")
    eventually(lambda: len(members_of(client, "model=org/a%20model")) == 5)
    eventually(lambda: (members_of(client, "model=org/a%20model")[1]["cpu_percent"] or 0) > 0)
    answer = client.request("GET", f"{PATH}?model=org/a%20model")
    assert b"s3cret" not in answer.body
    assert b"while" not in answer.body
    (backend,) = answer.json["backends"]
    assert backend["model"] == "org/a model"
    assert (backend["pid"], backend["address"]) == (root.pid, "127.0.0.1:1")
    members = {each["pid"]: each for each in backend["members"]}
    assert backend["members"][0]["pid"] == root.pid
    assert {pid: each["parent"] for pid, each in members.items()} == {
        root.pid: os.getpid(),
        worker: root.pid,
        shell: root.pid,
        sleeper: shell,
        zombie: root.pid,
    }
    assert members[shell]["name"] == "sh"
    assert members[sleeper]["name"] == members[zombie]["name"] == "sleep"
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {each["user"] for each in members.values()} == {user}
    assert [pid for pid, each in members.items() if each["is_zombie"]] == [zombie]
    for pid, member in members.items():
        assert set(member) == {
            "pid", "parent", "name", "user", "is_zombie", "rss", "cpu_percent", "threads",
            "created_at",
        }  # fmt: skip
        if pid != zombie:
            assert member["rss"] > 0
            assert member["threads"] == 1
    for figure in ("rss", "cpu_percent", "threads"):
        assert members[zombie][figure] is None
    decoded = msgspec.json.decode(answer.body, type=MembersAnswer).backends[0]
    for each in decoded.members:
        assert each.created_at
        assert abs(each.created_at.timestamp() - psutil.Process(each.pid).create_time()) < 0.1
    (listed,) = client.request("GET", "/backends").json["backends"]
    assert members[root.pid]["created_at"] == listed["created_at"]


def test_daemon_stays_a_member_without_a_parent_among_them(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The parent is the process that has adopted the daemon."""
    monitor = make_monitor(sweep_interval_seconds=0.2)
    client = Client(monitor.url)
    root = spawner.python(DAEMON, stdin=-1)
    daemon = int(read_line(root))
    register(monitor, root.pid)
    eventually(lambda: daemon in [each["pid"] for each in members_of(client, "model=m")])
    send_line(root)
    assert read_line(root) == "alone"

    def is_adopted() -> bool:
        members = members_of(client, "model=m")
        assert [each["pid"] for each in members if each["pid"] in (root.pid, daemon)] == [
            root.pid,
            daemon,
        ]
        return len(members) == 2 and members[1]["parent"] != root.pid

    eventually(is_adopted)


def test_members_of_replicas_are_listed_apart(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """`pid` selects one backend. A replica that has ended is left out."""
    first, second = (load_sleeper(monitor, spawner) for _ in range(2))
    load_sleeper(monitor, spawner, "other")
    backends = client.request("GET", f"{PATH}?model=m").json["backends"]
    assert [each["pid"] for each in backends] == [first.pid, second.pid]
    assert [[member["pid"] for member in each["members"]] for each in backends] == [
        [first.pid],
        [second.pid],
    ]
    (only,) = members_of(client, f"model=m&pid={second.pid}")
    assert only["pid"] == second.pid
    first.kill()
    first.wait()
    assert members_of(client, "model=m")[0]["pid"] == second.pid


def test_members_of_an_unknown_model_are_refused(
    monitor: Monitor, client: Client, spawner: Spawner
) -> None:
    """The errors are those of `/backend/monitor`."""
    process = load_sleeper(monitor, spawner)
    for query in ("model=none", "model=m&pid=1", "model=m&pid=x", "model=", "model=m&model=m"):
        answer = client.request("GET", f"{PATH}?{query}")
        asked = client.request("GET", f"/backend/monitor?{query}")
        assert (answer.status, answer.body) == (asked.status, asked.body)
        assert answer.status >= 400
    assert_error(client.request("GET", PATH), 400, "invalid_request")
    assert client.request("POST", f"{PATH}?model=m").status == 405
    process.kill()
    process.wait()
    answer = client.request("GET", f"{PATH}?model=m")
    assert_error(answer, 500, "model_not_loaded")
    assert "SIGKILL" in answer.json["error"]["message"]
