"""Host names, IP addresses and origins, in settings and in the headers of HTTP requests."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from ..domain.address import HOST_NAME

_HOST = re.compile(rf"(\[[0-9a-f:.]+\]|{HOST_NAME.pattern})(:[0-9]{{1,5}})?", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def host_name(host: str) -> str | None:
    """Return the name or address in a `Host` header, in lower case; None if it has neither."""
    found = _HOST.fullmatch(host.lower())
    return found[1].rstrip(".") if found else None


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; IPv6 may have brackets. None if it is none."""
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback_name(name: str) -> bool:
    """Whether a name, as `host_name` returns it, always means this machine."""
    address = ip_address(name)
    if address is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def validate_allowed_host(host: str) -> str:
    """Return an entry of the setting `allowed_hosts`: a host name, an IP address, or `*`.

    Raises:
        ValueError: it is none of them, or has a port.
    """
    if host == "*" or (":" not in host.rpartition("]")[2] and host_name(host) is not None):
        return host
    raise ValueError(
        f"{host!r} is no host name or IP address without a port (an IPv6 one in brackets)"
    )


def validate_allowed_origin(origin: str) -> str:
    """Return an entry of the setting `allowed_origins`: `https://example.com`, for example.

    Raises:
        ValueError: it is no origin, or has a path.
    """
    if not _ORIGIN.fullmatch(origin.lower()):
        raise ValueError(
            f"{origin!r} is no origin by name, https://example.com say, without a path"
        )
    return origin


def canonical_origin(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without a default port."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "/"))


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of the origin was served by the host that the `Host` header names.

    The scheme does not count, as a proxy in front of the monitor may speak TLS.
    """
    try:
        scheme, netloc = urlsplit(canonical_origin(origin))[:2]
    except ValueError:
        return False
    return bool(netloc) and netloc == host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, "/"))
