"""The processes of a program that the monitor does not stop with its backend."""

from __future__ import annotations

import os
import signal
import threading

from monitor_plugin.hosts.process_trees import ProcessTrees

from ..support import Spawner, descriptors, eventually, is_running


def test_trees_end_after_their_roots(spawner: Spawner) -> None:
    """The host ends the roots; their members are ended here, and no descriptor is left open."""
    before = descriptors()
    launchers = [spawner.process("sh", "-c", "sleep 1000 & echo $!; wait") for _ in range(2)]
    pids = [int(each.stdout.readline()) for each in launchers if each.stdout]
    with ProcessTrees() as trees:
        for launcher in launchers:
            trees.add(launcher.pid)
            trees.add(launcher.pid)
            launcher.kill()
            launcher.wait()
        trees.rescan()
        assert sorted(trees.alive()) == sorted(pids)
        trees.end(30, threading.Event())
        assert trees.alive() == []
    assert not any(map(is_running, pids))
    for launcher in launchers:
        assert launcher.stdout
        launcher.stdout.close()
    assert descriptors() <= before


def test_member_that_ignores_sigterm_is_killed(spawner: Spawner) -> None:
    """That takes little time, also if the host has used up the time of the stop."""
    process = spawner.process("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done")
    assert process.stdout
    process.stdout.readline()
    with ProcessTrees() as trees:
        trees.add(process.pid)
        trees.end(-1, threading.Event())
        assert process.wait(30) == -signal.SIGKILL
        eventually(lambda: trees.alive() == [])


def test_closing_monitor_ends_no_member_by_sigkill(spawner: Spawner) -> None:
    """The members that still run are listed. A process that does not run has none."""
    ended = spawner.process("true")
    ended.wait()
    deaf = spawner.process("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done")
    assert deaf.stdout
    deaf.stdout.readline()
    closing = threading.Event()
    closing.set()
    with ProcessTrees() as trees:
        trees.add(ended.pid)
        assert trees.alive() == []
        trees.add(deaf.pid)
        trees.end(1000, closing)
        assert deaf.pid in trees.alive()
    os.kill(deaf.pid, 0)
