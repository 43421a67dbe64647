"""Files that settings name, such as tokens and certificates, and that are read again on changes."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from typing import Generic, TypeVar

from ..domain.errors import SettingsError

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_MAX_BYTES = 1024 * 1024


class ReloadingFile(Generic[T]):
    """The content of a file, from its last version that could be used.

    Its methods may be called from any thread.

    Args:
        path: the path of the file.
        parse: converts the text to the content; raises a ValueError whose message quotes no secret.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file cannot be parsed, is no regular file, is not UTF-8, or has more than
            one MiB.
    """

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        # One tuple, so that no thread sees the version of one read with the content of another.
        self._current: tuple[object, T] = self._read()
        self._logged: tuple[object, str] | None = None

    def get(self) -> T:
        """Return the content. If a newer version cannot be used, that is logged once."""
        if self._version() != self._current[0]:
            self.reload()
        return self._current[1]

    def reload(self) -> None:
        """Read the file again, also if it does not seem to have changed."""
        version = self._version()
        try:
            self._current = self._read()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError):  # an OSError may pass without a change to the file
                self._current = (version, self._current[1])
            failure = version, reason_of(error)
            if self._logged != failure:
                self._logged = failure
                _logger.error(
                    "%s cannot be used, its previous content stays valid: %s",
                    self._path,
                    reason_of(error),
                )
            return
        self._logged = None
        _logger.info("%s was read again", self._path)

    def _version(self) -> object:
        try:
            return _version_of(os.stat(self._path))
        except OSError as error:
            return error.errno

    def _read(self) -> tuple[object, T]:
        # O_NONBLOCK, as to open a pipe would otherwise wait for a writer.
        with open(
            self._path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
        ) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no regular file")
            version = _version_of(found)  # before the content: later changes cause another read
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        try:
            text = content.decode("utf-8-sig")  # some editors write a byte order mark
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        return version, self._parse(text)


def _version_of(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def open_setting_file(
    setting: str, path: str | None, parse: Callable[[str], T]
) -> ReloadingFile[T] | None:
    """Open the file that a setting names; None if the setting is None.

    Raises:
        SettingsError: the file cannot be read or parsed.
    """
    if path is None:
        return None
    try:
        return ReloadingFile(path, parse)
    except (OSError, ValueError) as error:
        raise file_error(setting, path, reason_of(error)) from None


def file_error(setting: str, path: str | None, reason: str) -> SettingsError:
    """Make the error for a file that a setting names and that cannot be used."""
    return SettingsError(setting, f"setting {setting}: {path} cannot be used: {reason}")


def reason_of(error: Exception) -> str:
    """Return an error's message without its errno and path."""
    return str((isinstance(error, OSError) and error.strerror) or error)
