"""A file of somebody's settings, a secret say, that is read again when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_MAX_BYTES = 1024 * 1024


class WatchedFile(Generic[T]):
    """What a file holds, as of its last good version. Safe to call from any thread.

    Args:
        path: the file's.
        parse: makes something of its text; a ValueError says what is wrong, and quotes no secret.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be parsed, is no UTF-8, or has more than a mebibyte.
    """

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen, self._value = self._read()

    def get(self) -> T:
        """Give what the file holds; where a later version cannot be used, it is logged, once."""
        if self._version() != self._seen:
            self.reload()
        return self._value

    def reload(self) -> None:
        """Read the file now, whether or not it seems to have changed."""
        seen = self._version()
        try:
            seen, value = self._read()
        except (OSError, ValueError) as error:
            self._seen = seen
            _logger.error(
                "%s cannot be used, what it held before stands: %s",
                self._path,
                error.strerror if isinstance(error, OSError) else error,
            )
            return
        self._seen, self._value = seen, value
        _logger.info("%s was read again", self._path)

    def _version(self) -> object:
        try:
            return _version_of(os.stat(self._path))
        except OSError as error:
            return error.errno

    def _read(self) -> tuple[object, T]:
        # The version first: what changes while it is read is read once more.
        with open(self._path, "rb") as file:
            seen = _version_of(os.fstat(file.fileno()))
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        return seen, self._parse(text)


def _version_of(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
