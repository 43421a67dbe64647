"""The SQLite file that keeps the peaks of models. Several monitors may share one file."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from ..config.reloading_file import file_error, reason_of
from ..domain.peaks import MAX_MODELS, ModelPeaks, merge_peaks

_SETTING = "state_file"
_SCHEMA_VERSION = 1
# Marks a SQLite file as one of the monitor's: PRAGMA application_id. In ASCII: `MonP`.
_APPLICATION_ID = 0x4D6F6E50
# How long to wait for another program that uses the file.
_LOCK_SECONDS = 5.0
_CREATE = (
    "CREATE TABLE peaks (model TEXT PRIMARY KEY, last_seen_at REAL NOT NULL, peaks TEXT NOT NULL)"
)


class PeakFile:
    """A SQLite file with one row for each model. Each method opens the file, and closes it again.

    The rollback journal, SQLite's default, protects the file if the monitor is killed. Unlike a
    write-ahead log, it needs neither a permanent second file nor shared memory.

    Args:
        path: its path.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()

    def load(self) -> dict[str, ModelPeaks]:
        """Read all rows, the model that was seen least recently first.

        Creates the file if it is missing; only its owner may read and write a new file.

        Raises:
            SettingsError: the file cannot be used. The file was not changed.
        """
        try:
            self._create()
            self._check_access()
            with self._open() as connection:
                if _is_empty(connection):
                    return {}
                _check_kind(connection)
                damage = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
                if damage != ["ok"]:
                    raise ValueError(f"it is damaged: {damage[0]}")
                rows = connection.execute("SELECT peaks FROM peaks ORDER BY last_seen_at")
                found = [_decode(text) for (text,) in rows]
        except (OSError, ValueError) as error:
            advice = "" if isinstance(error, OSError) else "; move it away, or name another file"
            raise file_error(_SETTING, str(self._path), reason_of(error) + advice) from None
        return {each.model: each for each in found}

    def _create(self) -> None:
        folder = self._path.parent
        if not folder.is_dir():
            raise OSError(f"the folder {folder} does not exist; make it first")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.close(os.open(self._path, flags, 0o600))

    def _check_access(self) -> None:
        if not stat.S_ISREG(self._path.stat().st_mode):
            raise ValueError("it is no regular file")
        folder = self._path.resolve().parent
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise OSError("this user may not read and write it")
        if not os.access(folder, os.W_OK | os.X_OK):  # SQLite makes a journal beside the file
            raise OSError(f"this user may not write to the folder {folder}")

    def is_new(self) -> bool:
        """Whether the file is missing or empty, so that all rows must be written."""
        try:
            return self._path.stat().st_size == 0
        except FileNotFoundError:
            return True

    def merge(self, peaks: Mapping[str, ModelPeaks]) -> list[ModelPeaks]:
        """Merge the peaks of some models into their rows, in one transaction.

        Returns:
            The merged peaks.

        Raises:
            OSError, ValueError: the file cannot be used. The file was not changed.
        """
        self._create()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            _check_kind(connection)
            merged = [_merge_row(connection, each) for each in peaks.values()]
            _trim(connection)
            connection.execute("COMMIT")
        return merged

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file; an open transaction is rolled back at the end.

        Raises:
            OSError: the file cannot be opened, read or written.
            ValueError: the file is no SQLite file, or is damaged.
        """
        try:
            # With isolation_level=None, the module `sqlite3` begins no transaction by itself.
            with closing(
                sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)
            ) as connection:
                yield connection
        except sqlite3.OperationalError as error:  # such as a locked file, or a full disk
            raise OSError(str(error)) from None
        except sqlite3.Error as error:
            raise ValueError(str(error)) from None


def _is_empty(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(count == 0)


def _check_kind(connection: sqlite3.Connection) -> None:
    """Check that a monitor has written the file, and that its schema is known.

    Raises:
        ValueError: another program or a newer version has written the file.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != _APPLICATION_ID:
        raise ValueError("it is a SQLite file of another program")
    if version != _SCHEMA_VERSION:
        raise ValueError(
            f"its schema has version {version}, and this monitor knows {_SCHEMA_VERSION}: a newer "
            "monitor-plugin has written it"
        )


def _merge_row(connection: sqlite3.Connection, new: ModelPeaks) -> ModelPeaks:
    row = connection.execute("SELECT peaks FROM peaks WHERE model = ?", (new.model,)).fetchone()
    merged = merge_peaks(_decode(row[0]), new) if row else new
    text = msgspec.json.encode(merged).decode()
    connection.execute(
        "INSERT OR REPLACE INTO peaks VALUES (?, ?, ?)", (new.model, merged.last_seen_at, text)
    )
    return merged


def _trim(connection: sqlite3.Connection) -> None:
    """Delete the models that were seen least recently, beyond MAX_MODELS."""
    (count,) = connection.execute("SELECT count(*) FROM peaks").fetchone()
    if count > MAX_MODELS:
        connection.execute(
            "DELETE FROM peaks WHERE model IN "
            "(SELECT model FROM peaks ORDER BY last_seen_at LIMIT ?)",
            (count - MAX_MODELS,),
        )


def _decode(text: object) -> ModelPeaks:
    if not isinstance(text, str):
        raise ValueError("a row of its table `peaks` holds no text")
    try:
        return msgspec.json.decode(text, type=ModelPeaks)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a row of its table `peaks` cannot be read: {error}") from None
