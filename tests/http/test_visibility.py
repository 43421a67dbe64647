"""What the monitor says where it cannot see all processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from monitor_plugin import Monitor
from monitor_plugin import monitor as monitor_module

from ..support import Client, Spawner, load_sleeper, logged, program

# Runs a command as nobody in a mount namespace with its own /proc. The capability lets it read
# Python's modules, wherever they are.
AS_NOBODY = """
mount -t proc -o "$0" proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \
    --inh-caps +dac_read_search --ambient-caps +dac_read_search -- "$@"
"""

# Starts a monitor with a backend, and prints the URL.
MONITOR = """
import logging, subprocess, sys, threading
from monitor_plugin import Monitor, Settings
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with Monitor(Settings(listen="127.0.0.1:0", respawn_watch_seconds=0)) as monitor:
    sleeper = subprocess.Popen(["sleep", "1000"])
    threading.Thread(target=sleeper.wait).start()
    monitor.hook.monitor_backend_spawned(model="m", pid=sleeper.pid, address="127.0.0.1:1")
    print(monitor.url, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
@pytest.mark.parametrize("hidepid", [1, 2])
def test_hidden_processes_are_reported_everywhere(spawner: Spawner, hidepid: int) -> None:
    """In the log at the start and after a shutdown, in `/readyz`, and in a header."""
    program("setpriv")
    command = ["unshare", "--mount", "sh", "-c", AS_NOBODY, f"hidepid={hidepid}"]
    process = spawner.process(
        *(*command, sys.executable, "-c", MONITOR), stdin=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    started = process.stdout.readline()
    if started.startswith(("unshare:", "mount:")):
        pytest.skip("mount namespaces are not allowed here")
    reason, _, advice = started.strip().removeprefix("not everything can be seen: ").partition("; ")
    assert "run the monitor as root" in advice
    assert reason.startswith("the processes of other users are hidden (/proc is mounted with hidep")
    client = Client(process.stdout.readline().strip())
    ready = client.request("GET", "/readyz")
    assert (ready.status, ready.json) == (200, {"status": "ready", "unseen": reason})
    checks = client.request("GET", "/readyz?verbose").json["checks"]
    (check,) = [each for each in checks if each["name"] == "other_users"]
    assert (check["ok"], check["message"]) == (False, reason)
    answer = client.shutdown("m")
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert answer.headers["X-Monitor-Verified"] == "partly"
    output = process.communicate("\n", timeout=60)[0]
    assert f"the stop of model 'm' is verified in part: {reason}" in output


@pytest.mark.parametrize("unseen", [None, "the backs of mirrors"])
def test_answers_name_what_is_unseen_only_where_something_is(
    make_monitor: Callable[..., Monitor],
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unseen: str | None,
) -> None:
    """Where everything is seen, bodies and headers have nothing new."""
    monkeypatch.setattr(monitor_module, "find_unseen", lambda: unseen)
    monitor = make_monitor(respawn_watch_seconds=0)
    client = Client(monitor.url)
    named = {"unseen": unseen} if unseen else {}
    assert client.request("GET", "/healthz").json == {"status": "ok"}
    expected = json.dumps({"status": "ready", **named}, separators=(",", ":"))
    assert client.request("GET", "/readyz").body.decode() == expected
    failed = client.shutdown("m")
    assert "X-Monitor-Verified" not in failed.headers
    load_sleeper(monitor, spawner)
    answer = client.shutdown("m")
    assert answer.body == b'{"message":"model stopped"}'
    assert answer.headers["X-Monitor-Verified"] == (unseen and "partly")
    assert len([each for each in logged(caplog) if unseen and unseen in each]) == 2 * len(named)
