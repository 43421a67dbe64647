"""A PID that has been reused is never sampled and never signalled, shown by PIDs that are reused.

What is done stands in `reuse_in_namespace.py`, which runs in a PID namespace of its own.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ..support import Spawner
from .reuse_in_namespace import SCENE_SECONDS

MIB = 1024 * 1024

HANDLE = pytest.mark.parametrize("handle", ["pidfd", "killed", "polled", "no-pidfds"])
# Unwatched: no background task notices the exit, so that each operation must notice it itself.
WATCHING = pytest.mark.parametrize("prefix", ["", "unwatched_"], ids=["watched", "unwatched"])


class Namespace:
    """A PID namespace in which scenes are played."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors

    def play(self, scene: str, handle: str) -> Any:
        """Play a scene, and return what was observed."""
        assert self._process.stdin is not None
        assert self._process.poll() is None, "it ended at an earlier scene"
        self._process.stdin.write(f"{scene} {handle}\n")
        self._process.stdin.flush()
        line = self.line(2 * SCENE_SECONDS)
        assert line, f"it ended: {self._errors.read_text()}"
        seen = json.loads(line)
        assert "fault" not in seen, seen["fault"]
        return seen

    def line(self, seconds: float) -> str:
        """Read a line; an empty one means that the process ended."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()  # and by --kill-child all that is in it
        return self._process.stdout.readline()


def _unavailable(reason: str, *, forbidden: bool = False) -> NoReturn:
    """Skip the test; in CI, fail unless the reason cannot be avoided there either."""
    if "CI" in os.environ and not forbidden:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A PID namespace, which ends after the module with all processes in it."""
    if not shutil.which("unshare"):
        _unavailable("needs the program unshare (util-linux)")
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    errors = tmp_path_factory.mktemp("namespace") / "errors"
    spawner = Spawner()
    try:
        with errors.open("w") as file:
            process = spawner.process(
                *("unshare", *as_root, "--pid", "--fork", "--mount-proc", "--kill-child"),
                *(sys.executable, "-m", "tests.integration.reuse_in_namespace"),
                stdin=subprocess.PIPE,
                stderr=file,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "LC_ALL": "C"},  # for error messages in English
            )
        namespace = Namespace(process, errors)
        if namespace.line(60) != "ready\n":
            said = errors.read_text().strip()
            forbidden = re.search("^(?!.*failed to execute).*(not permitted|denied)", said, re.M)
            _unavailable(
                f"no PID namespace with PIDs of one's choice: {said}", forbidden=bool(forbidden)
            )
        yield namespace
        # The first process of a namespace ends after all others.
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0, errors.read_text()
    finally:
        spawner.close()


@HANDLE
def test_process_with_a_reused_pid_has_ended(namespace: Namespace, handle: str) -> None:
    """The handle reports the end and the exit code of its own process, and sends no signal."""
    seen = namespace.play("process", handle)
    assert seen["ended"] is True
    assert seen["sent"] is False
    assert seen["fate"] == "unharmed"
    # Some kernels still know the reaped process's exit code, -9. The newcomer's is 7.
    assert seen["exit_code"] in (None, -9)
    assert seen["exit_code_once_the_newcomer_exited"] in (None, -9)
    assert "got SIGTERM" in seen["fate_of_one_that_is_signalled"]


@HANDLE
@pytest.mark.parametrize("scene", ["sampler", "sampler_during_sample"], ids=["before", "during"])
def test_newcomer_is_not_sampled(namespace: Namespace, scene: str, handle: str) -> None:
    """A PID that is reused before or during a sample gives no figures."""
    seen = namespace.play(scene, handle)
    assert seen["sample"] == "ProcessGone"
    assert seen.get("fate", "unharmed") == "unharmed"
    assert seen.get("fates", ["unharmed"]) == ["unharmed"]


@HANDLE
def test_tree_with_a_reused_root_pid_has_no_members(namespace: Namespace, handle: str) -> None:
    """The new process does not join the tree, although it leads a session and has a child."""
    seen = namespace.play("tree_root", handle)
    assert seen["members"] == []
    assert seen["fate"] == "unharmed"


@HANDLE
def test_process_with_a_members_pid_does_not_join_the_tree(
    namespace: Namespace, handle: str
) -> None:
    """It is neither measured nor stopped with the tree, and the root is."""
    seen = namespace.play("tree_member", handle)
    assert seen["members_are_the_root"]
    assert 0 < seen["memory"] < 48 * MIB
    assert seen["root"] == -15
    assert seen["fate"] == "unharmed"


@HANDLE
def test_pid_reused_just_before_the_signal_is_not_signalled(
    namespace: Namespace, handle: str
) -> None:
    """The new process is not signalled, although the member was just found to run."""
    seen = namespace.play("tree_listed", handle)
    assert seen["fates"] == ["unharmed"]


@HANDLE
def test_pid_reused_during_the_grace_period_is_not_killed(
    namespace: Namespace, handle: str
) -> None:
    """A process that got a PID between SIGTERM and SIGKILL lives; the last member is killed."""
    seen = namespace.play("tree_grace", handle)
    assert seen["left"] == []
    assert seen["fates"] == ["unharmed"]


@HANDLE
@WATCHING
@pytest.mark.parametrize("first", ["read", "shutdown"])
def test_monitor_does_not_touch_the_newcomer(
    namespace: Namespace, first: str, prefix: str, handle: str
) -> None:
    """For readings and shutdowns, a backend whose PID is reused at once is not loaded."""
    seen = namespace.play(f"{prefix}monitor_{first}", handle)
    assert seen["read"] == "ModelNotLoaded"
    assert seen["shutdown"] == "ModelNotLoaded"
    assert seen["backends"] == 0
    assert seen["fate"] == "unharmed"


@HANDLE
@WATCHING
def test_newcomer_can_be_registered_itself(namespace: Namespace, prefix: str, handle: str) -> None:
    """It is registered with the same PID, and then read and stopped as another backend."""
    seen = namespace.play(f"{prefix}monitor_register", handle)
    assert seen["same_pid"]
    assert seen["later_by"] > 0
    assert seen["read_is_the_newcomer"]
    assert seen["rss"] > 64 * MIB
    assert seen["fate"] == "unharmed"
    assert seen["shutdown"] == "None"
    assert seen["fate_after_its_own_shutdown"] == "ended with -15"


@HANDLE
@pytest.mark.parametrize("hook", ["query_status", "memory_components", "call_metadata"])
def test_pid_reused_during_a_reading_gives_no_figures(
    namespace: Namespace, hook: str, handle: str
) -> None:
    """Whichever hook runs when the PID is reused."""
    seen = namespace.play(f"during_{hook}", handle)
    assert seen["outcome"] == "ModelNotLoaded"
    assert seen["backends"] == 0
    assert seen["fates"] == ["unharmed"]


@HANDLE
@pytest.mark.parametrize("hook", ["before_shutdown", "stop_backend"])
def test_pid_reused_during_a_shutdown_is_not_signalled(
    namespace: Namespace, hook: str, handle: str
) -> None:
    """Whichever hook runs when the PID is reused."""
    seen = namespace.play(f"during_{hook}", handle)
    assert seen["outcome"] == "None"
    assert seen["backends"] == 0
    assert seen["fates"] == ["unharmed"]
