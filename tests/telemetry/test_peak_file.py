"""The file of the peaks: over restarts, shared, damaged, locked, full and removed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor_plugin import SettingsError
from monitor_plugin.domain.models import Backend, Memory, Observation
from monitor_plugin.domain.peaks import ModelPeaks
from monitor_plugin.telemetry import peak_file, peaks
from monitor_plugin.telemetry.peaks import PeakStore

from ..support import eventually, logged

OpenStore = Callable[[Path], PeakStore]


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """Opens and starts stores, and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open_store(path: Path) -> PeakStore:
            store = PeakStore(str(path))
            store.start()
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def add(store: PeakStore, total: int, model: str = "m") -> None:
    backend = Backend(model, 1, "unix:/m", 1.0)
    store.add([Observation(backend=backend, memory=Memory(total), memory_source="pss")], ())


def totals(store: PeakStore) -> dict[str, int | None]:
    return {each.model: each.memory for each in store.read()}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file as another program that writes it does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def written(path: Path) -> dict[str, int]:
    """Return the totals in a file; {} while it has no table."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        with contextlib.suppress(sqlite3.OperationalError):
            query = "SELECT model, json_extract(peaks, '$.memory') FROM peaks"
            return dict(connection.execute(query).fetchall())
        return {}


def test_peaks_survive_a_restart(path: Path, open_store: OpenStore) -> None:
    """`close` writes at once what is not written yet, for any name of a model."""
    store = open_store(path)
    names = ["m", "org/mödel:7b", "'; DROP TABLE peaks; --", "模型", "a b", "x" * 255]
    for number, name in enumerate(names):
        add(store, number + 1, name)
    store.close()
    again = open_store(path)
    assert totals(again) == {name: number + 1 for number, name in enumerate(names)}
    before = again.read("m")
    add(again, 1)
    assert again.read("m") == before
    add(again, 5)
    again.close()
    assert totals(PeakStore(str(path)))["m"] == 5


def test_peaks_are_written_while_the_store_is_open(path: Path, open_store: OpenStore) -> None:
    """A killed monitor loses only what it has seen in the last second."""
    store = open_store(path)
    add(store, 5)
    eventually(lambda: written(path) == {"m": 5})
    add(store, 6)
    eventually(lambda: written(path) == {"m": 6})


def test_file_is_private_and_has_no_second_file(path: Path, open_store: OpenStore) -> None:
    """Names of models may be private: only the owner may read them, whatever the umask is."""
    umask = os.umask(0)
    try:
        store = open_store(path)
        add(store, 5)
        store.close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_permissions_of_an_existing_file_are_kept(path: Path, open_store: OpenStore) -> None:
    """An operator may let a group read it."""
    path.touch()
    path.chmod(0o640)
    store = open_store(path)
    add(store, 5)
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_monitors_share_a_file(path: Path, open_store: OpenStore) -> None:
    """The peaks of both monitors are stored, and each monitor reads them at its next write."""
    one, other = open_store(path), open_store(path)
    add(one, 5)
    add(one, 1, "a")
    eventually(lambda: written(path) == {"m": 5, "a": 1})
    add(other, 3)
    add(other, 2, "b")
    eventually(lambda: written(path) == {"m": 5, "a": 1, "b": 2})
    eventually(lambda: totals(other) == {"m": 5, "b": 2})
    one.close()
    other.close()
    assert totals(PeakStore(str(path))) == {"m": 5, "a": 1, "b": 2}


def test_monitors_write_at_the_same_time(path: Path) -> None:
    """One waits for the other; neither fails."""

    def write(model: str) -> None:
        file = peak_file.PeakFile(str(path))
        for total in range(50):
            peaks = ModelPeaks(model=model, memory=total, since=1.0, last_seen_at=1.0)
            file.merge({model: peaks})

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(write, model) for model in "ab"]:
            each.result(60)
    assert written(path) == {"a": 49, "b": 49}


def test_locked_file_delays_nothing_but_its_own_thread(
    path: Path,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that locks the file, as a slow disk does, is logged once and waited for."""
    monkeypatch.setattr(peak_file, "_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(peaks, "_RETRY_SECONDS", 0.05)
    store = open_store(path)
    add(store, 5)
    eventually(lambda: written(path) == {"m": 5})
    with locked(path):
        add(store, 6)
        eventually(lambda: logged(caplog))
        add(store, 7)
        add(store, 8, "a")
        assert totals(store) == {"m": 7, "a": 8}
    eventually(lambda: len(logged(caplog)) == 2)
    assert logged(caplog) == [
        f"{path} cannot be written: database is locked; the peaks of models are kept in memory, "
        "and written when that is possible again",
        f"{path} can be written again",
    ]
    eventually(lambda: written(path) == {"m": 7, "a": 8})


def test_writing_thread_survives_any_error(
    path: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error is handled like any other failure: what was not written is kept."""
    monkeypatch.setattr(peaks, "_RETRY_SECONDS", 0.05)
    store = open_store(path)
    add(store, 4)
    eventually(lambda: written(path) == {"m": 4})
    with monkeypatch.context() as patch:
        patch.setattr(peak_file.PeakFile, "merge", None)
        add(store, 5)
        eventually(lambda: store._failure)
    eventually(lambda: written(path) == {"m": 5})


def test_removed_file_is_written_anew(path: Path, open_store: OpenStore) -> None:
    """The new file has all peaks, not only those that change afterwards."""
    store = open_store(path)
    add(store, 5)
    add(store, 6, "a")
    eventually(lambda: written(path) == {"m": 5, "a": 6})
    path.unlink()
    add(store, 7)
    eventually(lambda: path.exists() and written(path) == {"m": 7, "a": 6})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_close_waits_for_a_slow_disk_for_a_bounded_time(
    path: Path,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says that the last peaks may be lost."""
    monkeypatch.setattr(peaks, "_CLOSE_SECONDS", 0.1)
    store = open_store(path)
    add(store, 5)
    eventually(lambda: written(path) == {"m": 5})
    with locked(path):
        add(store, 6)
        store.close()
    assert logged(caplog) == [
        f"{path}: the file was not written within 0.1 s; the last peaks may be lost"
    ]
    eventually(lambda: written(path) == {"m": 6})  # the thread goes on


def test_number_of_rows_is_bounded(
    path: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where several monitors add models: those that were not seen for longest are deleted."""
    monkeypatch.setattr(peak_file, "MAX_MODELS", 3)
    for names in ("ab", "cd", "e"):
        store = open_store(path)
        for name in names:
            add(store, 5, name)
        store.close()
    assert sorted(written(path)) == ["c", "d", "e"]


def unusable(path: Path) -> str:
    """Return the error about a file that cannot be used; the file must not change."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(SettingsError) as caught:
        PeakStore(str(path))
    assert caught.value.setting == "state_file"
    assert (path.read_bytes() if path.is_file() else None) == before
    prefix = f"setting state_file: {path} cannot be used: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


ADVICE = "; move it away, or name another file"


def fill(path: Path, count: int = 1000) -> None:
    store = PeakStore(str(path))
    store.start()
    for number in range(count):
        add(store, 5, f"m{number}")
    store.close()


def test_damaged_file_is_an_error_and_stays_as_it_is(path: Path) -> None:
    """A file of another kind, one with a damaged page, and one that was cut off."""
    path.write_bytes(b"no database " * 500)
    assert unusable(path) == f"file is not a database{ADVICE}"
    path.unlink()
    fill(path)
    whole = path.read_bytes()
    assert len(whole) > 20 * 4096
    path.write_bytes(whole[: len(whole) // 2])
    assert unusable(path).endswith(ADVICE)
    path.write_bytes(whole[:4096] + os.urandom(4096 * 8) + whole[4096 * 9 :])
    assert unusable(path).endswith(ADVICE)
    path.write_bytes(whole)
    assert len(PeakStore(str(path)).read()) == 1000


def test_row_that_cannot_be_read_is_an_error(path: Path) -> None:
    """The file may have been edited."""
    fill(path, 1)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE peaks SET peaks = '{\"model\": 7}'")
    assert unusable(path).startswith("a row of its table `peaks` cannot be read: ")


def test_file_of_another_program_is_refused(path: Path) -> None:
    """The monitor adds no table to a file that it has not made."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
    assert unusable(path) == f"it is a SQLite file of another program{ADVICE}"


def test_file_of_a_newer_version_is_refused(path: Path) -> None:
    """An older monitor does not know what the newer one has written."""
    fill(path, 1)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 2")
    assert unusable(path) == (
        "its schema has version 2, and this monitor knows 1: a newer monitor-plugin has written it"
        + ADVICE
    )


def test_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A missing folder, a folder, a pipe, and a file system that takes no files."""
    folder = tmp_path / "missing"
    assert unusable(folder / "state.db") == f"the folder {folder} does not exist; make it first"
    assert unusable(tmp_path) == f"it is no regular file{ADVICE}"
    os.mkfifo(tmp_path / "pipe")
    assert unusable(tmp_path / "pipe") == f"it is no regular file{ADVICE}"
    assert unusable(Path("/proc/state.db")) == "No such file or directory"
    with pytest.raises(SettingsError, match="embedded null"):
        PeakStore("a\0b")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_file_of_another_user_is_refused() -> None:
    """The journal of SQLite also needs a folder that may be written."""
    code = (
        "import os, sys\n"
        "from monitor_plugin.telemetry import peak_file, peaks\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: peaks.PeakStore(sys.argv[1])\n"
        "except Exception as error: print(error)"
    )

    def said(path: Path) -> str:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.TemporaryDirectory() as folder:  # whose parents are open to other users
        path = Path(folder, "state.db")
        path.parent.chmod(0o755)
        prefix = f"setting state_file: {path} cannot be used: "
        assert said(path) == f"{prefix}Permission denied\n"
        fill(path, 1)
        assert said(path) == f"{prefix}this user may not read and write it\n"
        path.chmod(0o666)
        assert said(path) == f"{prefix}this user may not write to the folder {folder}\n"


FULL = """
import logging, resource, sys
from monitor_plugin.telemetry import peaks
from monitor_plugin.domain.models import Backend, Memory, Observation
from monitor_plugin.testing import eventually

logging.basicConfig(stream=sys.stdout, format="%(message)s")
peaks._RETRY_SECONDS = 0.05
store = peaks.PeakStore(sys.argv[1])
store.start()

def add(model, total):
    backend = Backend(model, 1, "unix:/m", 1.0)
    store.add([Observation(backend=backend, memory=Memory(total), memory_source="pss")], ())

limit = sys.argv[2:]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), resource.RLIM_INFINITY))
for number in range(2000):
    add(f"model {number}", number + 1)
eventually(lambda: store._failure)
assert len(store.read()) == 2000
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    eventually(lambda: not store._failure)
store.close()
assert len(peaks.PeakStore(sys.argv[1]).read()) == (2000 if limit else 0)
"""


def test_file_size_limit_is_logged_once_and_outlived(path: Path) -> None:
    """Peaks that could not be written are written when the limit is gone."""
    command = [sys.executable, "-c", FULL, str(path), "50000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{path} cannot be written: disk I/O error; ")
    assert lines[1] == f"{path} can be written again"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_full_disk_is_logged_once(tmp_path: Path) -> None:
    """The peaks stay in memory, and the file stays whole."""
    unshare = shutil.which("unshare")
    assert unshare
    script = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"'
    path = tmp_path / "state.db"
    command = [unshare, "-m", "bash", "-c", script, "bash", sys.executable, "-c", FULL, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{path} cannot be written: database or disk is full; ")


def test_python_without_sqlite_is_an_error_of_the_setting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the setting needs sqlite3, which some builds of Python do not have."""
    monkeypatch.delitem(sys.modules, "monitor_plugin.telemetry.peak_file")
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    PeakStore(None)
    with pytest.raises(SettingsError, match=r"setting state_file: .*sqlite3"):
        PeakStore(str(path))


def test_store_without_a_file_starts_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The peaks are kept until the monitor ends."""
    caplog.set_level(logging.INFO)
    store = PeakStore(None)
    store.start()
    add(store, 5)
    store.close()
    assert totals(store) == {"m": 5}
    assert store._thread is None
