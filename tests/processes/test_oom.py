from __future__ import annotations

from pathlib import Path

from monitor_plugin.processes.oom import OomKillCounter


def test_oom_kills_of_a_control_group_are_noticed(tmp_path: Path) -> None:
    """The count is read in both versions of control groups; there may be none."""
    groups, cgroup = tmp_path / "cgroup", tmp_path / "proc" / "5" / "cgroup"
    (groups / "a").mkdir(parents=True)
    (groups / "memory" / "b").mkdir(parents=True)
    cgroup.parent.mkdir(parents=True)
    for line, count_file in (
        ("0::/a\n", groups / "a" / "memory.events"),
        ("4:cpu,memory:/b\n0::/none\n", groups / "memory" / "b" / "memory.oom_control"),
    ):
        cgroup.write_text(line)
        count_file.write_text("oom 3\noom_kill 1\n")
        kills = OomKillCounter(5, proc=tmp_path / "proc", cgroups=groups)
        assert kills.path == str(count_file)
        assert not kills.has_risen()
        count_file.write_text("oom 4\noom_kill 2\n")
        assert kills.has_risen()
        kills.update()
        assert kills.has_risen()  # one update may fall between the kill and the end
        kills.update()
        assert not kills.has_risen()
    cgroup.write_text("0::/none\n")
    kills.update()
    assert kills.path is None
    assert not kills.has_risen()
    assert OomKillCounter(6, proc=tmp_path / "proc", cgroups=groups).path is None
