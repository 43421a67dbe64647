"""The URLs of monitors that users write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import MonitorError
from monitor_plugin.domain.monitor_url import MonitorUrl, parse_monitor_url

HOSTS = ("h", "127.0.0.1", "[::1]", "a..b", "", ".", "päth", "\udcff", "[", "]", "%", "x" * 64)
PARTS = (
    "http://",
    "https://",
    "unix:",
    "//",
    "/",
    ":",
    "80",
    "0",
    "?q",
    "#f",
    "@",
    "%40",
    "s3cret",
)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:8080", ("http", "127.0.0.1", 8080, "")),
        ("HTTP://h", ("http", "h", 80, "")),
        ("https://h/", ("https", "h", 443, "")),
        ("https://a-b.c_d.:1/p%20q/r/", ("https", "a-b.c_d.", 1, "/p%20q/r")),
        ("http://münchen.example:1", ("http", "xn--mnchen-3ya.example", 1, "")),
        ("http://[::1]:1", ("http", "::1", 1, "")),
        ("http://[fe80::1%25eth0]", ("http", "fe80::1%eth0", 80, "")),
        ("http://[fe80::1%eth0]", ("http", "fe80::1%eth0", 80, "")),
        ("unix:/run/a b.sock", ("unix", "", 0, "/run/a b.sock")),
        ("unix:///run/me@host", ("unix", "", 0, "/run/me@host")),
        ("unix:/" + "x" * 106, ("unix", "", 0, "/" + "x" * 106)),
    ],
)
def test_valid_url_is_parsed(url: str, parts: tuple[str, str, int, str]) -> None:
    """The host is what a socket takes: ASCII, and without brackets or escapes."""
    assert parse_monitor_url(url) == parts


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is neither http://HOST:PORT nor unix:/PATH"),
        ("nonsense", "'nonsense' is neither"),
        ("127.0.0.1:8080", "is neither"),
        ("ftp://h", "is neither"),
        ("http://", "is neither"),
        ("http:///path", "is neither"),
        (" http://h", "is neither"),
        ("http://a..b", "'http://a..b': the host is neither a host name nor"),
        ("http://.x", "the host"),
        ("http://" + "x" * 64, "the host"),
        ("http://" + "a." * 130 + "a", "the host"),
        ("http://" + "ü" * 100_000, "the host"),
        ("http://a b", "the host"),
        ("http://h\r\nHost: x", r"'http://h\\r\\nHost: x': the host"),
        ("http://\udcff", "the host"),
        ("http://xn--\x80", "the host"),
        ("http://a%20b", "the host"),
        ("http://[::1", "IPv6"),
        ("http://[]", "IPv6"),
        ("http://[v1.x]", "IPv6"),
        ("http://[::1]x", "a / or : must follow"),
        ("http://h:0", "the port must be a number from 1 to 65535"),
        ("http://h:65536", "the port"),
        ("http://h:+1", "the port"),
        ("http://h:\u0661", "the port"),
        ("http://h:" + "9" * 5000, "the port"),
        ("http://h/päth", "must be percent-encoded: write /p%C3%A4th"),
        ("http://h/a b", "write /a%20b"),
        ("http://h/100%", "must be percent-encoded"),
        ("http://h/\udcff", "write /%FF"),
        ("http://h/\ud800", "surrogates not allowed"),
        ("http://h/?s3cret", r"'http://h/': the URL of a monitor contains no \? and no #"),
        ("http://h#s3cret", "no #"),
        ("unix:", "must be absolute"),
        ("unix:/", "must be absolute"),
        ("unix:s", "must be absolute"),
        ("unix:/x\0y", "contain no NUL"),
        ("unix:/\ud800", "must be absolute"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/" + "ü" * 54, "at most 107 bytes"),
        ("http://me:s3cret@h", "must not contain a user name"),
        ("http://me:s3cret@h:port", "must not contain a user name"),
        ("http://me:s3cret@[x", "must not contain a user name"),
        ("http://me:s3cret@h/?x", "must not contain a user name"),
        ("http://me/s3cret@h", "must not contain a user name"),
        ("me:s3cret@h", "must not contain a user name"),
        ("http://me:s3cret\uff20h", "must not contain a user name"),
        ("http://me%3As3cret%40h", "must not contain a user name"),
        ("unix:me:s3cret@h", "the URL: the path of a unix socket must be absolute"),
    ],
)
def test_invalid_url_is_explained(url: str, words: str) -> None:
    """The error says what is wrong and what to write, is short, and shows no password."""
    with pytest.raises(MonitorError, match=words) as raised:
        parse_monitor_url(url)
    message = str(raised.value)
    assert "unix:/PATH" in message or "MONITOR_TOKEN" in message
    assert "s3cret" not in message
    assert len(message) < 500


@given(st.lists(st.sampled_from(HOSTS) | st.sampled_from(PARTS) | st.text(max_size=5)).map("".join))
def test_any_text_is_parsed_or_refused(url: str) -> None:
    """No text causes another exception, or an error that quotes what stands before an @."""
    try:
        parsed: MonitorUrl | str = parse_monitor_url(url)
    except MonitorError as error:
        parsed = str(error)
    assert isinstance(parsed, MonitorUrl) or "@" not in parsed
