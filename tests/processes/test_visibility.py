from __future__ import annotations

import os
import sys

import pytest

from monitor_plugin.processes import visibility
from monitor_plugin.processes.visibility import find_unseen

from ..support import Spawner, refuse_descriptors

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")

# Prints what another user, nobody, cannot see, in a mount namespace with its own /proc.
AS_NOBODY = """
import os, subprocess, sys
from monitor_plugin.processes.visibility import find_unseen
options = sys.argv[1:] or ["rw"]
subprocess.run(["mount", "-t", "proc", "-o", *options, "proc", "/proc"], check=True)
os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
print(find_unseen())
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["hidepid=1"], "the processes of other users are hidden (/proc is mounted with hidepid"),
        (["hidepid=2"], "the processes of other users are hidden (/proc is mounted with hidepid"),
        (["hidepid=2,gid=65534"], "the descriptors of other users' processes may not be read"),
        ([], "the descriptors of other users' processes may not be read"),
    ],
)
def test_what_another_user_hides_is_said(
    spawner: Spawner, options: list[str], expected: str
) -> None:
    """All of it with hidepid, and descriptors without."""
    command = ["unshare", "--mount", sys.executable, "-c", AS_NOBODY, *options]
    output = spawner.process(*command).communicate(timeout=60)[0]
    if not output:
        pytest.skip("mount namespaces are not allowed here")
    assert output.startswith(expected)


def test_nothing_is_claimed_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor goes on."""
    refuse_descriptors(monkeypatch, visibility, "read_row")
    assert find_unseen() is None
