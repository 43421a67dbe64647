"""Host names, IP addresses and origins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import Settings, SettingsError
from monitor_plugin.config.origins import (
    canonical_origin,
    host_name,
    is_loopback_name,
    is_same_origin,
)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Example.COM:80", "example.com"),
        ("a_b.example.", "a_b.example"),
        ("[::1]:80", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
        ("", None),
        ("a b", None),
        ("a:b", None),
        ("a@b", None),
        ("::1", None),
        ("-a", None),
        ("a/b", None),
        ("a:123456", None),
        ("a\n", None),
    ],
)
def test_host_name_is_taken_from_a_host_header(host: str, name: str | None) -> None:
    """The header has a name and perhaps a port; anything else has no host name."""
    assert host_name(host) == name


def test_only_names_of_this_machine_are_loopback_names() -> None:
    """No other machine can have such a name."""
    assert all(map(is_loopback_name, ["localhost", "x.localhost", "127.0.0.2", "[::1]"]))
    assert not any(
        map(is_loopback_name, ["localhost.x", "127.0.0.1.x", "[::]", "0.0.0.0", "127.1"])
    )


def test_origin_is_compared_with_the_host_header() -> None:
    """Name and port must be equal; default ports may be left out."""
    assert is_same_origin("http://a.example:8080", "A.example:8080")
    assert is_same_origin("https://a.example", "a.example")
    assert is_same_origin("https://a.example", "a.example:443")
    assert is_same_origin("http://a.example:80", "a.example")
    assert not is_same_origin("http://a.example", "a.example:8080")
    assert not is_same_origin("http://a.example:8080", "a.example")
    assert not is_same_origin("null", "null")
    assert not is_same_origin("", "")
    assert not is_same_origin("http://a.example@b.example", "a.example")


@given(st.text(max_size=40), st.text(max_size=40))
def test_comparison_accepts_any_origin(origin: str, host: str) -> None:
    """It does not fail, and a canonical origin is its own canonical form."""
    is_same_origin(origin, host)
    is_same_origin("http://" + origin, host)
    once = canonical_origin(origin)
    assert canonical_origin(once) in (once, canonical_origin(once))


@pytest.mark.parametrize(
    "bad",
    [
        {"allowed_hosts": ("a.example:80",)},
        {"allowed_hosts": ("http://a.example",)},
        {"allowed_hosts": ("",)},
        {"allowed_hosts": "a.example"},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("a.example",)},
        {"allowed_origins": ("https://a.example/",)},
        {"allowed_origins": ("null",)},
        {"trusted_proxy": "proxy.example"},
        {"trusted_proxy": "*"},
        {"socket_mode": 0o1777},
        {"socket_mode": 660},
        {"insecure": 1},
        {"listen": "unix:relative"},
        {"listen": "unix:/" + "x" * 107},
        {"token": ""},
        {"token": "with space"},
        {"token": "täglich"},
    ],
)
def test_invalid_setting_of_names_raises_an_error(bad: dict[str, object]) -> None:
    """The error names the setting, and does not quote a token."""
    (name,) = bad
    with pytest.raises(SettingsError, match=name) as raised:
        Settings(**bad)  # type: ignore[arg-type]
    assert raised.value.setting == name
    assert "with space" not in str(raised.value)
