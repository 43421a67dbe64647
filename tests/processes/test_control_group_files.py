from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor_plugin.processes.control_group_files import (
    Group,
    find_folders,
    parse_groups,
    read_mounts,
)

# As in a container of version 1 with the machine's control group namespace; the fields before ` - `
# are not the same in number.
CONTAINER = r"""
25 1 0:22 / /proc rw,nosuid - proc proc rw
30 1 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:26 /docker/ID /sys/fs/cgroup/cpu,cpuacct ro master:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 /docker/ID /sys/fs/cgroup/memory ro,nosuid master:9 shared:7 - cgroup cgroup rw,memory
33 30 0:28 /docker/ID /sys/fs/cgroup/systemd ro - cgroup cgroup rw,xattr,name=systemd
34 30 0:29 / /sys/fs/cgroup/uni\040fied ro - cgroup2 cgroup2 rw,nsdelegate
"""


def folders(tmp_path: Path, mountinfo: str, group: Group) -> list[str]:
    file = tmp_path / "self" / "mountinfo"
    file.parent.mkdir(exist_ok=True)
    file.write_text(mountinfo.lstrip())
    return find_folders(group, read_mounts(tmp_path))


def test_groups_are_parsed_with_any_names() -> None:
    """Version 2 has a line without controllers. Unicode's line breaks do not end a line."""
    text = "12:cpu,cpuacct:/a\n1:name=systemd:/b:c/d\n0::/e (deleted)\n2:pids:/f\x0bg\u2028h\n"
    groups = [
        Group("cpu,cpuacct", "/a"),
        Group("name=systemd", "/b:c/d"),
        Group("", "/e (deleted)"),
        Group("pids", "/f\x0bg\u2028h"),
    ]
    assert parse_groups(text) == groups
    assert parse_groups("") == []
    assert [group.has("cpu") for group in groups] == [True, False, False, False]
    assert [group.has("") for group in groups] == [False, False, True, False]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Group("memory", "/docker/ID"), ["memory"]),
        (Group("memory", "/docker/ID/a/b"), ["memory/a/b", "memory/a", "memory"]),
        (Group("cpu,cpuacct", "/docker/ID"), ["cpu,cpuacct"]),
        (Group("name=systemd", "/docker/ID/x"), ["systemd/x", "systemd"]),
        (Group("", "/a"), ["uni fied/a", "uni fied"]),
        (Group("", "/"), ["uni fied"]),
        (Group("memory", "/docker/IDENTITY"), []),
        (Group("memory", "/docker"), []),
        (Group("memory", "/"), []),
        (Group("pids", "/docker/ID"), []),
    ],
)
def test_folders_of_a_container_begin_at_the_root_of_the_mount(
    tmp_path: Path, group: Group, expected: list[str]
) -> None:
    """A group that the mount does not show has no folder."""
    assert folders(tmp_path, CONTAINER, group) == [f"/sys/fs/cgroup/{each}" for each in expected]


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("/", "/", ["/m"]),
        ("/", "/a", ["/m/a", "/m"]),
        ("/", "/..", []),
        ("/", "/../a", []),
        ("/..", "/../a", ["/m/a", "/m"]),
        ("/..", "/..", ["/m"]),
        ("/..", "/../../a", []),
        ("/../b", "/../b/c", ["/m/c", "/m"]),
        ("/../b", "/../c", []),
    ],
)
def test_folders_in_a_control_group_namespace(
    tmp_path: Path, root: str, path: str, expected: list[str]
) -> None:
    """The kernel writes both paths as seen from the namespace, `..` for what is above it."""
    mountinfo = f"30 1 0:25 {root} /m rw - cgroup2 cgroup2 rw\n"
    assert folders(tmp_path, mountinfo, Group("", path)) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ["a/b", "a", ""]),
        ("/c", ["a/b/c", "a/b", "a", ""]),
        ("/..", ["a", ""]),
        ("/../x", ["a/x", "a", ""]),
        ("/../../y", ["y", ""]),
        ("/../../..", []),
    ],
)
def test_folders_where_the_mount_begins_above_the_namespace(
    tmp_path: Path, path: str, expected: list[str]
) -> None:
    """The kernel does not write the names of the groups above; the monitor is in one of them."""
    mount = tmp_path / "m [1]"
    for group, pids in (("x/y", "1"), ("a/b", f"1\n{os.getpid()}"), ("a/c", "7")):
        (mount / group).mkdir(parents=True)
        (mount / group / "cgroup.procs").write_text(f"{pids}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("3:pids:/..\n0::/\n")
    escaped = str(mount).replace(" ", "\\040")
    mountinfo = f"30 1 0:25 /../.. {escaped} rw - cgroup2 cgroup2 rw\n"
    found = folders(tmp_path, mountinfo, Group("", path))
    assert found == [f"{mount}/{each}".rstrip("/") for each in expected]


def test_the_mount_that_shows_most_levels_is_used(tmp_path: Path) -> None:
    """A container may have the machine's mount beside its own."""
    lines = [
        "31 1 0:26 /docker/ID /own rw - cgroup cgroup rw,memory\n",
        "32 1 0:26 / /machine rw - cgroup cgroup rw,memory\n",
    ]
    for mountinfo in ("".join(lines), "".join(reversed(lines))):
        found = folders(tmp_path, mountinfo, Group("memory", "/docker/ID"))
        assert found == ["/machine/docker/ID", "/machine/docker", "/machine"]


def test_a_later_mount_hides_an_earlier_one_on_the_same_folder(tmp_path: Path) -> None:
    lines = [
        "31 1 0:26 / /m rw - cgroup cgroup rw,memory\n",
        "32 31 0:26 /a /m rw - cgroup cgroup rw,memory\n",
    ]
    assert folders(tmp_path, "".join(lines), Group("memory", "/a/b")) == ["/m/b", "/m"]


def test_without_mountinfo_there_are_no_folders(tmp_path: Path) -> None:
    assert read_mounts(tmp_path) == []


def test_mounts_are_read_with_any_names(tmp_path: Path) -> None:
    """Only spaces, tabs, line feeds and backslashes are escaped in the kernel's file."""
    mounts = "31 30 0:26 / /sys/a\u2028b\x0bc ro - cgroup cgroup rw,memory\n"
    group = Group("memory", "/")
    assert folders(tmp_path, mounts, group) == ["/sys/a\u2028b\x0bc"]
