"""A file of somebody's settings, a secret say, that is read again when it changes."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_MAX_BYTES = 1024 * 1024


class ReloadingFile(Generic[T]):
    """What a file holds, as of its last good version. Safe to call from any thread.

    Args:
        path: the file's.
        parse: makes something of its text; a ValueError says what is wrong, and quotes no secret.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be parsed, is no regular file, no UTF-8, or over a mebibyte.
    """

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        # Version and value together, so that no thread ever pairs one with another's other.
        self._seen: tuple[object, T] = self._read()
        self._said: tuple[object, str] | None = None

    def get(self) -> T:
        """Give what the file holds; where a later version cannot be used, it is logged, once."""
        if self._version() != self._seen[0]:
            self.reload()
        return self._seen[1]

    def reload(self) -> None:
        """Read the file now, whether or not it seems to have changed."""
        version = self._version()
        try:
            self._seen = self._read()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError):  # which may pass without a change to the file
                self._seen = (version, self._seen[1])
            why = str((isinstance(error, OSError) and error.strerror) or error)
            if self._said != (version, why):
                self._said = (version, why)
                _logger.error("%s cannot be used, what it held before stands: %s", self._path, why)
            return
        self._said = None
        _logger.info("%s was read again", self._path)

    def _version(self) -> object:
        try:
            return _version_of(os.stat(self._path))
        except OSError as error:
            return error.errno

    def _read(self) -> tuple[object, T]:
        # The version first: what changes while it is read is read once more.
        # Without waiting, as a pipe would for somebody to write to it.
        with open(
            self._path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
        ) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no regular file")
            seen = _version_of(found)
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        try:
            text = content.decode("utf-8-sig")  # some editors begin a file with a mark
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        return seen, self._parse(text)


def _version_of(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
