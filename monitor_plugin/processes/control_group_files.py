"""Where the control groups of a process are: /proc/PID/cgroup, and the mounts that show folders."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_READ_BYTES = 65536
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Group(NamedTuple):
    """A control group, as a line of /proc/PID/cgroup names it.

    Attributes:
        controllers: the controllers of its hierarchy, such as `cpu,cpuacct`; empty in version 2.
        path: its path in the hierarchy. In a container, the path begins at the container's control
            group namespace, and a group outside of that namespace begins with `/..`.
    """

    controllers: str
    path: str

    def has(self, controller: str) -> bool:
        """Whether it is a group of version 1 with this controller; of version 2, if empty."""
        return controller in self.controllers.split(",")


class Mount(NamedTuple):
    """A mount of a hierarchy of control groups.

    Attributes:
        controllers: the options of the mount, which contain the controllers; empty in version 2.
        root: the path of the group that the mount begins with, as names. In a container this is
            often the container's own group.
        folder: the folder of that group.
    """

    controllers: Collection[str]
    root: Sequence[str]
    folder: str


def read_text(path: str) -> str:
    """Read a file of /proc or of a control group.

    Raises:
        OSError: it cannot be read, or the process or the group is gone.
    """
    # A text file object takes twice as long, and the limits of 200 backends are in 1,000 files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="surrogateescape")


def parse_groups(text: str) -> list[Group]:
    """Parse /proc/PID/cgroup: a line for each hierarchy, `HIERARCHY:CONTROLLERS:PATH`."""
    return [Group(*line.split(":", 2)[1:]) for line in text.splitlines()]


def read_mounts(proc: Path | str = "/proc") -> list[Mount]:
    """Read the mounts of control groups that the monitor sees; none if they cannot be read.

    Args:
        proc: the mount point of /proc.
    """
    try:
        text = read_text(f"{proc}/self/mountinfo")
    except OSError:
        return []
    mounts = {}
    for line in text.splitlines():
        # proc(5): ID PARENT DEVICE ROOT FOLDER OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            root, folder = map(_unescape, fields.split(" ")[3:5])
            controllers = options.split(" ")[-1].split(",") if kind == "cgroup" else ()
            # A later mount on the same folder hides an earlier one.
            mounts[folder] = Mount(controllers, _names(root), folder)
    return list(mounts.values())


def find_folders(group: Group, mounts: Iterable[Mount]) -> list[str]:
    """Find the folders of a control group and of the groups above it, its own folder first.

    Returns:
        As many levels as a mount shows; empty if none shows the group. The folders may be missing,
        because a group may have been removed.
    """
    path = _names(group.path)
    found: list[str] = []
    for mount in mounts:
        if group.controllers:
            is_mounted = group.controllers.split(",")[0] in mount.controllers
        else:
            is_mounted = not mount.controllers
        below = path[len(mount.root) :]
        # Paths of both files begin at the monitor's own control group namespace.
        if is_mounted and path[: len(mount.root)] == mount.root and ".." not in below:
            parts = [mount.folder, *below]
            folders = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
            found = max(found, folders, key=len)
    return found


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _unescape(text: str) -> str:
    """Decode the octal escapes of /proc/PID/mountinfo: a backslash and 040 for a space."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
