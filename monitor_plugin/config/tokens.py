"""The tokens that clients send, and what each may do."""

from __future__ import annotations

import enum
import hmac
import re
from typing import NamedTuple

from ..domain.errors import SettingsError
from .reloading_file import ReloadingFile

_NONE = "it holds no token; a line is ROLE:NAME:TOKEN"
# What a header carries unchanged: printable ASCII without spaces.
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


class Role(enum.IntEnum):
    """What a client may do; who may do more may do less."""

    READ = 1
    ADMIN = 2


class Token(NamedTuple):
    """A token, the name by which logs speak of it, and its role."""

    role: Role
    name: str
    secret: str

    def __repr__(self) -> str:
        return f"Token(role={self.role!r}, name={self.name!r}, secret=***)"


class Tokens:
    """The tokens that are valid now. Safe to call from any thread.

    Args:
        token: the setting of this name: an admin's.
        token_file: the setting of this name: its tokens are valid too.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, token: str | None, token_file: str | None) -> None:
        self._lone = () if token is None else (Token(Role.ADMIN, "token", token),)
        self._file: ReloadingFile[tuple[Token, ...]] | None = None
        if token_file is not None:
            self._file = open_token_file(token_file)
            if not self._file.get():
                raise _unusable(token_file, _NONE)

    @property
    def required(self) -> bool:
        """Whether clients must send one."""
        return bool(self._lone) or self._file is not None

    def find(self, secret: str) -> Token | None:
        """Find a token by its secret, in a time that does not depend on where they differ.

        Where the setting and the file have the same one, it may do what either lets it.
        """
        found: Token | None = None
        for token in (*self._lone, *(self._file.get() if self._file else ())):
            same = hmac.compare_digest(token.secret.encode(), secret.encode(errors="replace"))
            if same and (found is None or token.role >= found.role):
                found = token
        return found

    def reload(self) -> None:
        """Read the file now, though it seems not to have changed."""
        if self._file:
            self._file.reload()


def open_token_file(path: str) -> ReloadingFile[tuple[Token, ...]]:
    """Open a file of tokens.

    Raises:
        SettingsError: it cannot be read or parsed.
    """
    try:
        return ReloadingFile(path, parse_tokens)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    except ValueError as error:
        raise _unusable(path, str(error)) from None


def _unusable(path: str, why: str) -> SettingsError:
    return SettingsError("token_file", f"setting token_file: {path} cannot be used: {why}")


def validate_token(token: str) -> str:
    """Return a token that a header can carry.

    Raises:
        ValueError: it cannot; the message does not quote the token.
    """
    if not token:
        raise ValueError("the token is empty")
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token holds a space, a control character or something beyond ASCII")
    return token


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Parse a file of tokens: a `ROLE:NAME:TOKEN` a line; empty lines and `#` comments are skipped.

    Comments alone are no token; nothing at all is refused, as a file is empty for a moment that is
    written in place.

    Raises:
        ValueError: a line is something else; the message quotes nothing, as any part of the line
            might be the secret.
    """
    if not text.strip():
        raise ValueError(_NONE)
    tokens: dict[str, Token] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            token = _parse_line(line)
            if token.secret in tokens:
                raise ValueError("another line has the same token")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        tokens[token.secret] = token
    return tuple(tokens.values())


def _parse_line(line: str) -> Token:
    role, _, rest = line.partition(":")
    name, colon, secret = rest.partition(":")
    if not colon:
        raise ValueError("it is not ROLE:NAME:TOKEN")
    if role.upper() not in Role.__members__:
        raise ValueError("the role must be read or admin")
    if not name.strip() or not name.isprintable():
        raise ValueError("the name is empty, or cannot be printed")
    return Token(Role[role.upper()], name, validate_token(secret))
