"""Settings of hook files: read from the environment, or refused with what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor_plugin import SettingsError
from monitor_plugin.hook_support.settings import (
    HookSettings,
    Limit,
    count,
    one_of,
    per_model,
    seconds,
    size,
    size_text,
    yes_or_no,
)


def settings(**values: str) -> HookSettings:
    environ = {f"MONITOR_HOOK_IDLE_STOP_{name}": text for name, text in values.items()}
    return HookSettings("monitor_plugin_hooks.idle-stop", environ)


def test_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable's name contains the file's stem; unset and empty variables have the default."""
    assert settings(SECONDS=" 5 ").get("SECONDS", seconds, "seconds", 1.0) == 5
    assert settings(SECONDS="").get("SECONDS", seconds, "seconds", 1.0) == 1
    assert settings().get("SECONDS", seconds, "seconds", None) is None
    monkeypatch.setenv("MONITOR_HOOK_X_COUNT", "7")
    assert HookSettings("monitor_plugin_hooks.x").get("COUNT", count, "a number", 1) == 7
    assert HookSettings("monitor_plugin_hooks.x.v2").variable("A") == "MONITOR_HOOK_X_V2_A"
    assert HookSettings("package.x").variable("A") == "MONITOR_HOOK_X_A"


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (seconds, "0"),
        (seconds, "-1"),
        (seconds, "inf"),
        (seconds, "nan"),
        (seconds, "1 h"),
        (size, "8 GiBs"),
        (size, "0"),
        (size, "0.1"),
        (size, "-1MB"),
        (size, "1e9"),
        (size, "8gb"),
        (size, "٣MB"),
        (count, "0"),
        (count, "1.0"),
        (count, "²"),
        (yes_or_no, "true"),
        (one_of("lru", "largest"), "LRU"),
        (per_model(size), "a=1MB,=2MB"),
        (per_model(size), "a=1MB,a=2MB"),
        (per_model(size), "a=1MB,"),
        (per_model(size), "a"),
    ],
)
def test_invalid_value_is_refused(parse: Callable[[str], Any], text: str) -> None:
    """The error has the variable, the value, and the expected value."""
    with pytest.raises(SettingsError) as raised:
        settings(X=text).get("X", parse, "something else", None)
    assert str(raised.value).startswith(f"MONITOR_HOOK_IDLE_STOP_X={text!r}: ")
    assert str(raised.value).endswith("; write something else")


def test_invalid_value_can_be_hidden() -> None:
    """The value may contain a secret."""
    with pytest.raises(SettingsError) as raised:
        settings(X="hunter2").get("X", count, "a number", None, hide=True)
    assert str(raised.value) == (
        "MONITOR_HOOK_IDLE_STOP_X: it must be an integer of at least 1; write a number"
    )


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 1),
        ("1024 B", 1024),
        ("1.5KiB", 1536),
        ("500MB", 500_000_000),
        ("8 GiB", 8 * 1024**3),
        ("1TiB", 1024**4),
        ("2TB", 2 * 1000**4),
        ("1kB", None),
    ],
)
def test_bytes_have_units(text: str, amount: int | None) -> None:
    """Decimal and binary units."""
    if amount is None:
        with pytest.raises(ValueError, match="not a number of bytes"):
            size(text)
    else:
        assert size(text) == amount


def test_bytes_are_shown_with_units() -> None:
    """Binary units, four digits."""
    shown = [size_text(each) for each in (0, 1023, 1024, 1.5 * 1024**3, 12.34567 * 1024**4)]
    assert shown == ["0 B", "1023 B", "1 KiB", "1.5 GiB", "12.35 TiB"]


def test_first_matching_pattern_gives_the_limit() -> None:
    """A limit without a pattern applies to all models."""
    limits = per_model(size)("a=b=1MB, org/*=2MB ,keep-[12]=none")
    assert limits.of("a=b") == Limit("a=b", 1_000_000)
    assert limits.of("org/x/y") == Limit("org/*", 2_000_000)
    assert limits.of("ORG/x") is limits.of("keep-1") is limits.of("else") is None
    assert limits.least() == 1_000_000
    assert per_model(seconds)("5").of("x") == Limit("*", 5)
    assert per_model(seconds)("a=never,*=5").of("a") is None
    assert per_model(seconds)("never").least() is None


def test_a_secret_comes_from_a_file_or_a_variable(tmp_path: Path) -> None:
    """The file takes precedence; errors omit the secret."""
    file = tmp_path / "secret"
    file.write_text(" hunter2\n")
    assert settings(SECRET="x").secret("SECRET") == "x"
    assert settings(SECRET="x", SECRET_FILE=str(file)).secret("SECRET") == "hunter2"
    assert settings().secret("SECRET") is settings(SECRET="").secret("SECRET") is None
    for content, why in ((b"", "the file is empty"), (b"hunter2\xff", "it is not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=why) as raised:
            settings(SECRET_FILE=str(file)).secret("SECRET")
        assert "hunter2" not in str(raised.value)
