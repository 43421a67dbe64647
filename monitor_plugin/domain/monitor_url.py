"""Parses the URL of a running monitor, as users of the command line and of the client write it."""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import quote, unquote

from .address import HOST_NAME, MAX_SOCKET_PATH_BYTES
from .errors import MonitorError

_MAX_QUOTED = 200
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The scheme, the host, the port, the path, and the query and fragment.
_URL = re.compile(r"(https?)://(\[[^\]]*\]|[^:/?#]*)(?::([^/?#]*))?([^?#]*)(.*)", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
# The characters of a path in a URL (RFC 3986), where `%` begins an escape.
_PATH_CHARACTERS = "/._~!$&'()*+,;=:@-"
_PATH = re.compile(rf"(?:/(?:[A-Za-z0-9{re.escape(_PATH_CHARACTERS)}]|%[0-9A-Fa-f]{{2}})*)?")


class MonitorUrl(NamedTuple):
    """The parts of a URL.

    Attributes:
        scheme: `http`, `https` or `unix`.
        host: a name in ASCII, an IPv4 address, or an IPv6 address without brackets.
        port: the port; 0 for a unix socket.
        path: a prefix of the path of each request, without a slash at its end; or the path of the
            unix socket.
    """

    scheme: str
    host: str
    port: int
    path: str


def parse_monitor_url(url: str) -> MonitorUrl:
    """Parse `http://HOST:PORT`, the same with `https` or a path, or `unix:/PATH`.

    Raises:
        MonitorError: the URL has another form. The message says what is wrong and what to write. It
            quotes no query, and nothing of a URL that may contain a password.
    """
    # Users paste URLs with a password before an @, which may be escaped or a compatibility form.
    may_have_password = "@" in unquote(unicodedata.normalize("NFKC", url))
    shown = "the URL" if may_have_password else repr(re.split("[?#]", url)[0][:_MAX_QUOTED])
    if url.startswith("unix:"):
        return _parse_unix(url, shown)
    if may_have_password:
        raise MonitorError(
            "the URL must not contain a user name; pass a token in MONITOR_TOKEN or a file"
        )
    match = _URL.fullmatch(url)
    if not match or not match[2]:
        raise MonitorError(f"{shown} is neither http://HOST:PORT nor unix:/PATH")
    scheme, host, port, path, rest = match[1].lower(), *match.groups(default="")[1:]
    try:
        if rest:
            raise ValueError("the URL of a monitor contains no ? and no #")
        return MonitorUrl(
            scheme, _parse_host(host), _parse_port(port, scheme), _validate_path(path)
        )
    except ValueError as error:
        raise MonitorError(f"{shown}: {error}; use http://HOST:PORT or unix:/PATH") from None


def _parse_unix(url: str, shown: str) -> MonitorUrl:
    path = url.removeprefix("unix:").removeprefix("//").rstrip("/")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:  # a lone surrogate that `os.fsencode` cannot encode
        size = 0
    if not path.startswith("/") or "\0" in path or not 0 < size <= MAX_SOCKET_PATH_BYTES:
        raise MonitorError(
            f"{shown}: the path of a unix socket must be absolute (unix:/PATH), contain no NUL, "
            f"and take at most {MAX_SOCKET_PATH_BYTES} bytes"
        )
    return MonitorUrl("unix", "", 0, path)


def _parse_port(port: str, scheme: str) -> int:
    if not port:
        return _DEFAULT_PORTS[scheme]
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError("the port must be a number from 1 to 65535")
    return int(port)


def _parse_host(host: str) -> str:
    if host.startswith("["):
        address = host[1:-1].replace("%25", "%")  # a zone is escaped in a URL (RFC 6874)
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise ValueError("there is no IPv6 address between the brackets") from None
        return address
    try:
        name = host.encode("idna").decode() if len(host) <= 253 else ""
    except UnicodeError:  # a label is empty, too long, or not valid Unicode
        name = ""
    if not HOST_NAME.fullmatch(name):
        raise ValueError(
            "the host is neither a host name nor an IP address (an IPv6 address stands in brackets)"
        )
    return name


def _validate_path(path: str) -> str:
    if _PATH.fullmatch(path):
        return path.rstrip("/")
    if not path.startswith("/"):
        raise ValueError("a / or : must follow the host")
    escaped = quote(path, safe=_PATH_CHARACTERS + "%", errors="surrogateescape")
    advice = f": write {escaped[:_MAX_QUOTED]}" if _PATH.fullmatch(escaped) else ""
    raise ValueError(f"the path must be percent-encoded{advice}")
