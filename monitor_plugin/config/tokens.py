"""The tokens that clients send, and their roles."""

from __future__ import annotations

import enum
import hmac
import re
from typing import NamedTuple

from .reloading_file import file_error, open_setting_file

_EMPTY = "it holds no token; a line is ROLE:NAME:TOKEN"
# Printable ASCII without spaces, which a header carries unchanged.
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


class Role(enum.IntEnum):
    """The rights of a client. Each role includes the rights of the roles before it."""

    READ = 1
    ADMIN = 2


class Token(NamedTuple):
    """A token, its role, and the name that logs show in its place."""

    role: Role
    name: str
    secret: str

    def __repr__(self) -> str:
        return f"Token(role={self.role!r}, name={self.name!r}, secret=***)"


class Tokens:
    """The tokens that are valid now. Its methods may be called from any thread.

    Args:
        token: the setting `token`, which has the role admin.
        token_file: the setting `token_file`.

    Raises:
        SettingsError: the file cannot be read or parsed, or has no token.
    """

    def __init__(self, token: str | None, token_file: str | None) -> None:
        self._setting = () if token is None else (Token(Role.ADMIN, "token", token),)
        self._file = open_setting_file("token_file", token_file, parse_tokens)
        if self._file and not self._file.get():
            raise file_error("token_file", token_file, _EMPTY)

    @property
    def required(self) -> bool:
        """Whether clients must send a token."""
        return bool(self._setting) or self._file is not None

    def find(self, secret: str) -> Token | None:
        """Return the token with that secret; None if there is none.

        The comparison takes the same time wherever two secrets differ. If the setting and the file
        have the same secret, the higher role counts.
        """
        found: Token | None = None
        for token in (*self._setting, *(self._file.get() if self._file else ())):
            same = hmac.compare_digest(token.secret.encode(), secret.encode(errors="replace"))
            if same and (found is None or token.role >= found.role):
                found = token
        return found

    def reload(self) -> None:
        """Read the file again, also if it does not seem to have changed."""
        if self._file:
            self._file.reload()


def validate_token(token: str) -> str:
    """Return a token.

    Raises:
        ValueError: a header cannot carry it; the message does not quote the token.
    """
    if not token:
        raise ValueError("the token is empty")
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token holds a space, a control character or something beyond ASCII")
    return token


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Parse a file with one `ROLE:NAME:TOKEN` a line. Empty lines and `#` comments are skipped.

    A file with comments only has no tokens. An empty file is refused: a file that is overwritten in
    place is empty for a moment.

    Raises:
        ValueError: a line has another form. The message does not quote the line, any part of which
            may be the secret.
    """
    if not text.strip():
        raise ValueError(_EMPTY)
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
