"""Finds the folders of control groups, from /proc/PID/cgroup and the mounts of control groups."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .kernel_files import read_text

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
        """Whether this is a group of version 1 with this controller; for "", of version 2."""
        return controller in self.controllers.split(",")


class Mount(NamedTuple):
    """A mount of a hierarchy of control groups.

    Attributes:
        controllers: the options of the mount, which contain the controllers; empty in version 2.
        root: the names in the path of the topmost group that the mount shows. In a container this
            is often the container's own group.
        folder: the folder of the topmost group.
        namespace: the names from the topmost group to the monitor's control group namespace, if the
            mount begins above that namespace. In `root`, the kernel writes `..` for each name.
    """

    controllers: Collection[str]
    root: Sequence[str]
    folder: str
    namespace: Sequence[str] = ()

    def shows(self, group: Group) -> bool:
        """Whether this is a mount of the hierarchy of a group."""
        if not group.controllers:
            return not self.controllers
        return group.controllers.split(",")[0] in self.controllers

    def names_of(self, group: Group) -> list[str] | None:
        """Return the names from the mount's folder to a group; None if the group is not shown.

        Both the path of the group and `root` begin at the monitor's control group namespace.
        """
        names, root = _names(group.path), self.root
        if self.namespace:
            parts = list(self.namespace)
            for name in names:
                if name != "..":
                    parts.append(name)
                elif not parts:
                    return None
                else:
                    parts.pop()
            return parts
        below = names[len(root) :]
        return below if names[: len(root)] == root and ".." not in below else None


def parse_groups(text: str) -> list[Group]:
    """Parse /proc/PID/cgroup: a line for each hierarchy, `HIERARCHY:CONTROLLERS:PATH`."""
    # `splitlines` would also split at other characters, which names may have.
    return [Group(*line.split(":", 2)[1:]) for line in text.split("\n") if line]


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
    for line in text.split("\n"):
        # proc(5): ID PARENT DEVICE ROOT FOLDER OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            root, folder = map(_unescape, fields.split(" ")[3:5])
            controllers = options.split(" ")[-1].split(",") if kind == "cgroup" else ()
            # A later mount on the same folder hides an earlier one.
            mounts[folder] = Mount(controllers, _names(root), folder)
    return [each._replace(namespace=_find_namespace(each, proc)) for each in mounts.values()]


def _find_namespace(mount: Mount, proc: Path | str) -> list[str]:
    """Find the names from a mount's topmost group to the monitor's control group namespace.

    Searches the folders at the depth of the namespace for the monitor's own group.

    Returns:
        An empty list if the mount does not begin above the namespace, or if no folder is found.
    """
    if set(mount.root) != {".."}:
        return []
    try:
        groups = parse_groups(read_text(f"{proc}/self/cgroup"))
        (own,) = [_names(group.path) for group in groups if mount.shows(group)]
        if ".." in own:  # the monitor was moved out of its namespace
            return []
        pattern = [*("*" for _ in mount.root), *map(glob.escape, own), "cgroup.procs"]
        for file in Path(mount.folder).glob("/".join(pattern)):
            if str(os.getpid()) in read_text(str(file)).split():
                return list(file.relative_to(mount.folder).parts[: len(mount.root)])
    except (OSError, ValueError):
        pass
    return []


def find_folders(group: Group, mounts: Iterable[Mount]) -> list[str]:
    """Find the folders of a control group and of the groups above it, its own folder first.

    Returns:
        The folders in the mount that shows the most levels; empty if no mount shows the group. A
        folder may be missing, because its group may have been removed.
    """
    found: list[str] = []
    for mount in mounts:
        names = mount.names_of(group) if mount.shows(group) else None
        if names is not None:
            parts = [mount.folder, *names]
            folders = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
            found = max(found, folders, key=len)
    return found


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _unescape(text: str) -> str:
    """Decode the octal escapes of /proc/PID/mountinfo: a backslash and 040 for a space."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
