"""Tokens, and the file of tokens."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Monitor, Settings, SettingsError
from monitor_plugin.config.tokens import Role, Token, Tokens, parse_tokens

from ..support import Client

SECRET = "s3cret"


def names(tokens: Tokens, *secrets: str) -> list[str | None]:
    return [token.name if (token := tokens.find(secret)) else None for secret in secrets]


def test_token_file_has_one_token_a_line() -> None:
    """A line is ROLE:NAME:TOKEN, where the token may have colons; comments are skipped."""
    assert parse_tokens("# hi\n\nread:a b:x\r\n  admin:ops:y:z=  \nREAD:c:w") == (
        Token(Role.READ, "a b", "x"),
        Token(Role.ADMIN, "ops", "y:z="),
        Token(Role.READ, "c", "w"),
    )
    assert parse_tokens("# nobody\n") == ()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (SECRET, "it is not ROLE:NAME:TOKEN"),
        (f"admin:{SECRET}", "it is not ROLE:NAME:TOKEN"),
        (f"{SECRET}:ops:admin", "the role must be read or admin"),
        (f"write:ops:{SECRET}", "the role must be read or admin"),
        (f"admin::{SECRET}", "the name is empty, or cannot be printed"),
        (f"admin:a\x1b[1m:{SECRET}", "the name is empty, or cannot be printed"),
        ("admin:ops:", "the token is empty"),
        (f"admin:ops:{SECRET} {SECRET}", "the token holds a space"),
        (f"admin:ops:{SECRET}é", "the token holds a space"),
        ("admin:other:first", "another line has the same token"),
    ],
)
def test_invalid_line_is_numbered_and_not_quoted(line: str, fault: str) -> None:
    """The error has the number of the line and what is wrong."""
    with pytest.raises(ValueError, match=f"^line 2: {fault}") as raised:
        parse_tokens(f"read:one:first\n{line}")
    assert SECRET not in str(raised.value)


@given(st.text(max_size=60))
def test_token_parser_accepts_any_text(text: str) -> None:
    """It returns usable tokens or raises a ValueError."""
    try:
        tokens = parse_tokens(text)
    except ValueError:
        return
    assert all(token.secret.isascii() and token.name for token in tokens)


def test_secrets_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are in no repr, error or log line."""
    assert SECRET not in repr(Token(Role.READ, "a", SECRET))
    file = tmp_path / "tokens"
    file.write_text(f"read:a:{SECRET}")
    tokens = Tokens(None, str(file))
    file.write_text(f"{SECRET}:a:read\n")
    with caplog.at_level(logging.DEBUG):
        assert names(tokens, SECRET) == ["a"]
    assert str(file) in caplog.text
    assert SECRET not in caplog.text
    with pytest.raises(SettingsError) as raised:
        Tokens(None, str(file))
    assert SECRET not in str(raised.value)


def test_tokens_are_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `hmac.compare_digest`, and with every token, so that no time tells which one fits."""
    file = tmp_path / "tokens"
    file.write_text("read:a:one\nadmin:b:two\n")
    tokens = Tokens("lone", str(file))
    compared: list[bytes] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return ours == theirs

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert names(tokens, "lone", "two", "none") == ["token", "b", None]
    assert compared == [b"lone", b"one", b"two"] * 3


@pytest.mark.parametrize("role", ["read", "admin"])
def test_higher_role_of_equal_secrets_counts(role: str, tmp_path: Path) -> None:
    """A file does not reduce the role of the token in the setting."""
    file = tmp_path / "tokens"
    file.write_text(f"read:a:one\n{role}:b:lone\n")
    found = Tokens("lone", str(file)).find("lone")
    assert found is not None
    assert found.role is Role.ADMIN


def test_changed_token_file_counts_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new token is valid, a removed one is not."""
    file = tmp_path / "tokens"
    file.write_text("read:a:one")
    tokens = Tokens("lone", str(file))
    assert names(tokens, "one", "two", "lone", "") == ["a", None, "token", None]
    file.write_text("read:a:two")
    assert names(tokens, "one", "two", "lone") == [None, "a", "token"]
    replacement = tmp_path / "new"
    replacement.write_text("read:b:two")
    replacement.replace(file)
    assert names(tokens, "two") == ["b"]
    file.write_text("# nobody any more\n")
    assert names(tokens, "two", "lone") == [None, "token"]
    assert tokens.required


@pytest.mark.parametrize("how", ["empty", "bad line", "gone", "no UTF-8", "folder", "huge"])
def test_unusable_token_file_leaves_the_tokens_valid(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged once, and the next usable version counts."""
    file = tmp_path / "tokens"
    file.write_text("read:a:one")
    tokens = Tokens(None, str(file))
    file.unlink()
    if how == "empty":  # as a file is for a moment while it is overwritten in place
        file.touch()
    elif how == "bad line":
        file.write_text("nonsense")
    elif how == "no UTF-8":
        file.write_bytes(b"read:a:\xff")
    elif how == "folder":
        file.mkdir()
    elif how == "huge":
        file.write_text("#" * (1024 * 1024 + 1))
    assert names(tokens, "one", "one", "one") == ["a", "a", "a"]
    assert len(caplog.records) == 1
    assert f"{file} cannot be used" in caplog.text
    if how == "folder":
        file.rmdir()
    file.write_text("read:b:two")
    assert names(tokens, "one", "two") == [None, "b"]


def test_reload_reads_a_file_that_seems_unchanged(tmp_path: Path) -> None:
    """Neither its size nor its times have changed."""
    file = tmp_path / "tokens"
    file.write_text("read:a:one")
    tokens = Tokens(None, str(file))
    _, value = tokens._file._current  # type: ignore[union-attr]
    file.write_text("read:a:two")
    tokens._file._current = (tokens._file._version(), value)  # type: ignore[union-attr]
    tokens.reload()
    assert names(tokens, "one", "two") == [None, "a"]
    Tokens("lone", None).reload()


@pytest.mark.parametrize(
    ("content", "why"),
    [("", "it holds no token"), ("x", "line 1: it is not"), (None, "No such file")],
)
def test_monitor_does_not_start_with_an_unusable_token_file(
    content: str | None, why: str, tmp_path: Path
) -> None:
    """The error has the path and the reason."""
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=why) as raised:
        Monitor(Settings(listen=None, token_file=str(file)))
    assert raised.value.setting == "token_file"
    assert str(file) in str(raised.value)


def test_running_monitor_uses_a_changed_token_file(
    make_monitor: Callable[..., Monitor], tmp_path: Path
) -> None:
    """A new token is valid over HTTP, a removed one is not, without a restart."""
    file = tmp_path / "tokens"
    file.write_text("read:a:one")
    monitor = make_monitor(token_file=str(file))
    client = Client(monitor.url)

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return client.request("GET", "/openapi.json", None, headers).status

    assert (status("one"), status("two")) == (200, 401)
    file.write_text("admin:a:two")
    assert (status("one"), status("two")) == (401, 200)
    monitor.reload_tokens()
    assert (status("one"), status("two")) == (401, 200)
    os.utime(file)
    assert status("two") == 200
