"""A real systemd as a machine of its own, in namespaces, with D-Bus and the journal.

Nothing that runs in it can change the machine that runs the tests: its root is an overlay of the
machine's root, its /dev, /run, /tmp and /var/log are new, and /proc/sys and /sys are read-only. Its
control groups are below groups of their own. It shares the network, so that tests reach what
listens in it, and its processes are seen from outside, with other PIDs than inside.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

from .support import Spawner, eventually, program

ROOT = Path(__file__).parents[1]
SYSTEMD = Path("/lib/systemd/systemd")
GROUPS = Path("/sys/fs/cgroup")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

# The arguments are the folders of the machine that must be there under the same path. What the
# machine has installed does not start: no unit is wanted by a target, except D-Bus by the managers
# of users. Where the kernel has control groups of both versions, systemd finds version 2 in
# `unified`.
BOOT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/upper /run/work /run/root
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/root
root=/run/root
for folder in dev run var/log; do mount -t tmpfs -o mode=755 tmpfs $root/$folder; done
for folder in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $root/$folder; done

mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
for device in full null random tty urandom zero; do
    touch $root/dev/$device
    mount --bind /dev/$device $root/dev/$device
done
mount -t proc proc $root/proc
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount -t sysfs -o ro sysfs $root/sys
groups=$root/sys/fs/cgroup
if grep -qv '^0:' /proc/self/cgroup; then
    mount -t tmpfs -o mode=755 tmpfs $groups
    while IFS=: read -r number controllers path; do
        folder=$groups/${controllers#name=}
        [ "$number" != 0 ] || folder=$groups/unified
        mkdir -p "$folder"
        case $number:$controllers in
            0:*) mount -t cgroup2 cgroup2 "$folder" ;;
            *:name=*) mount -t cgroup -o "none,xattr,$controllers" cgroup "$folder" ;;
            *) mount -t cgroup -o "$controllers" cgroup "$folder" ;;
        esac
    done </proc/self/cgroup
else
    mount -t cgroup2 cgroup2 $groups
fi

for folder in "$@"; do
    mkdir -p "$root$folder" "/run/folders$folder"/.{upper,work}
    options="lowerdir=$folder,upperdir=/run/folders$folder/.upper,workdir=/run/folders$folder/.work"
    mount -t overlay -o "$options" overlay "$root$folder"
    while [ "$folder" != / ]; do
        folder=$(dirname "$folder")
        chmod o+x "$root$folder" 2>/dev/null || true  # units run as other users, too
    done
done

settings=$root/run/systemd
units=$settings/system
mkdir -p $units $settings/{journald,system}.conf.d $settings/user/sockets.target.wants
rm -rf $root/{etc,usr/lib}/systemd/{system,user}/*.{wants,requires} \
    $root/usr/lib/systemd/{system,user}-{,environment-}generators
printf '[Unit]\nRequires=dbus.service systemd-journald.service\n' >$units/test.target
ln -s /dev/null $units/systemd-journald-audit.socket
ln -s /dev/null $units/modprobe@.service
ln -s /usr/lib/systemd/user/dbus.socket $settings/user/sockets.target.wants
install -d -g systemd-journal -m 2755 $root/run/log/journal
printf '[Journal]\nAudit=\n' >$settings/journald.conf.d/test.conf
printf '[Manager]\nDefaultEnvironment=%s\n' "$ENVIRONMENT" >$settings/system.conf.d/test.conf
unset ENVIRONMENT

mkdir $root/run/machine
pivot_root $root $root/run/machine
umount -l /run/machine
rmdir /run/machine
exec /lib/systemd/systemd --system --unit=test.target
"""


class SystemdMachine:
    """A systemd that has booted, and whose units a test writes.

    Attributes:
        init: the PID of systemd, as seen from outside.
    """

    def __init__(self) -> None:
        self.init = 0
        self._spawner = Spawner()
        self._groups: list[Path] = []

    def start(self) -> SystemdMachine:
        """Boot; skip the test where that cannot be done, in CI only where it is forbidden."""
        if os.geteuid():
            pytest.skip("a systemd of its own needs root")
        if not SYSTEMD.exists():
            _unavailable("there is no systemd; .ci/setup installs it")
        unshare, nsenter = program("unshare"), program("nsenter")
        self._enter = (nsenter, "-m", "-p", "-C", "-u", "-i")
        try:
            self._make_groups()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(b"")  # an abstract name, as systemd has another root
            name = ready.getsockname()[1:].decode()
            self._boot(unshare, f"@{name}")
            ready.settimeout(0.2)
            eventually(lambda: self._has_booted(ready))
        return self

    def _make_groups(self) -> None:
        """Make a control group in each hierarchy."""
        name = f"monitor-plugin-test-{os.getpid()}-{id(self):x}"
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0":  # below the limits of the tests' own group
                parent = GROUPS / controllers.removeprefix("name=") / path.strip("/")
            elif (GROUPS / "cgroup.controllers").exists():
                parent = GROUPS  # a group that has processes passes no controllers on
            else:
                parent = GROUPS / "unified"
            (parent / name).mkdir()
            self._groups.append(parent / name)

    def _boot(self, unshare: str, notify_socket: str) -> None:
        isolate = f"setpriv --pdeathsig KILL {unshare} -fpmCui --kill-child bash -c"
        join = 'for group in $CONTROL_GROUPS; do echo $$ >"$group/cgroup.procs"; done'
        folders = sorted({str(ROOT), sys.prefix, sys.base_prefix})
        environment = ["PYTHONDONTWRITEBYTECODE=1"]
        if "PYTHONPATH" in os.environ:
            environment.append(f"PYTHONPATH={os.environ['PYTHONPATH']}")
        self._process = self._spawner.process(
            *("sh", "-c", f'{join}; exec {isolate} "$0" bash "$@"', BOOT, *folders),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env={
                "PATH": PATH,
                "CONTROL_GROUPS": " ".join(map(str, self._groups)),
                "ENVIRONMENT": shlex.join(environment),
                "NOTIFY_SOCKET": notify_socket,
                "container": "other",
            },
        )

    def _has_booted(self, ready: socket.socket) -> bool:
        if self._process.poll() is not None:
            assert self._process.stdout
            _unavailable(f"systemd cannot run here: {self._process.stdout.read()}")
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in ready.recv(4096).split(b"\n"):
                pid = self._process.pid
                (init,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                self.init = int(init)
        return bool(self.init)

    def path(self, path: str) -> Path:
        """Return the path from outside of a file in the machine."""
        return Path(f"/proc/{self.init}/root{path}")

    def write_unit(self, name: str, text: str) -> None:
        """Write a unit or, under NAME.d/, a part of one; `reload` makes systemd read it."""
        file = self.path(f"/run/systemd/system/{name}")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def reload(self) -> None:
        """Make systemd read its units again."""
        self.run("systemctl", "daemon-reload")

    def enter(self, *command: str) -> list[str]:
        """Return the command that runs a command in the machine, as root."""
        return [*self._enter, "-t", str(self.init), *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the machine, as root; return what it wrote to its standard output."""
        done = subprocess.run(
            self.enter(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            env={"PATH": PATH},
            cwd="/",
        )
        assert not check or not done.returncode, done
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit, as `systemctl` shows it."""
        return self.run("systemctl", "show", "-P", name, unit)

    def main_pid(self, unit: str) -> int:
        """Return the PID, as seen from outside, of a unit's main process."""
        return self.outer_pid(int(self.show(unit, "MainPID")))

    def outer_pid(self, inner: int) -> int:
        """Return the PID, as seen from outside, of a process of the machine."""
        namespace = Path(f"/proc/{self.init}/ns/pid").readlink()
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pids = (each / "status").read_text().partition("NSpid:")[2].split("\n")[0].split()
                if pids[-1] == str(inner) and (each / "ns/pid").readlink() == namespace:
                    return int(each.name)
        raise AssertionError(f"the machine has no process {inner}")

    def close(self) -> None:
        """Kill systemd, and with it all processes and mounts of the machine; remove its groups."""
        self._spawner.close()
        remove_groups(self._groups)


def remove_groups(groups: Iterable[Path]) -> None:
    """Remove control groups, and those below them, when their last processes have ended."""
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            eventually(lambda folder=folder: _removed(Path(folder)))  # type: ignore[misc]


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):  # while processes in it end
        group.rmdir()
    return not group.exists()


def _unavailable(reason: str) -> NoReturn:
    """Skip the test; in CI, fail unless the reason cannot be avoided there either."""
    if "CI" in os.environ and "not permitted" not in reason and "denied" not in reason:
        pytest.fail(reason)
    pytest.skip(reason)


def start_unit_command(name: str, *command: str, **environment: str) -> list[str]:
    """Return the command that starts a unit, which leaves its processes alone when it ends."""
    settings = ["Type=exec", "KillMode=process"]
    return [
        *("systemd-run", f"--unit={name}", "--collect", "--quiet"),
        *(f"--property={each}" for each in settings),
        *(f"--setenv={name}={value}" for name, value in environment.items()),
        *("--", *command),
    ]


def main() -> None:
    """Boot, and run a shell in the machine until it ends: `python -m tests.systemd_machine`."""
    machine = SystemdMachine()
    try:
        machine.start()
        subprocess.run(machine.enter("bash"), env={**os.environ, "PATH": PATH}, cwd="/")
    finally:
        machine.close()


if __name__ == "__main__":
    main()
