"""Follows and ends the processes of a program while its host stops the program."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from ..processes.members import Members, MemberTable
from ..processes.process_table import read_row
from ..processes.process_tree import ProcessTree

# The share of a tree's time that its processes have until SIGKILL: `ProcessTree.stop` takes up to
# 2.5 times its grace.
_GRACE_SHARE = 1 / 3
_MIN_GRACE_SECONDS = 0.2


class ProcessTrees:
    """Processes that a host started, with their members. Not thread-safe.

    A host ends the processes that it started, and often not those that they started. The monitor
    ends the members of the registered backend. The others are followed here, from before the stop.
    For example: a launcher was killed, its server lives on and holds the address, and the launcher
    that the host started again was refused.
    """

    def __init__(self) -> None:
        self._member_table = MemberTable()
        self._trees: dict[int, ProcessTree] = {}
        self._resources = ExitStack()

    def __enter__(self) -> ProcessTrees:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def add(self, pid: int) -> None:
        """Find the members of a process, if it runs. A second call does nothing.

        Raises:
            OSError: no file descriptor is free.
        """
        row = None if pid in self._trees else read_row(pid)
        if row:
            tree = ProcessTree(Members((pid, row.started)), self._member_table)
            self._trees[pid] = self._resources.enter_context(tree)

    def rescan(self) -> None:
        """Find members that are new.

        Raises:
            OSError: no file descriptor is free.
        """
        for tree in self._trees.values():
            tree.rescan()

    def end(self, seconds: float, interrupted: threading.Event) -> None:
        """End all members, in about `seconds`, or stop waiting when `interrupted` is set.

        Raises:
            OSError: no file descriptor is free.
        """
        deadline = time.monotonic() + seconds
        for number, tree in enumerate(self._trees.values()):
            share = (deadline - time.monotonic()) / (len(self._trees) - number)
            tree.stop(max(_MIN_GRACE_SECONDS, share * _GRACE_SHARE), interrupted)

    def alive(self) -> list[int]:
        """List the members that have not ended."""
        return [process.pid for tree in self._trees.values() for process in tree.alive()]
