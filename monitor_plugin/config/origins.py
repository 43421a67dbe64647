"""By which names a monitor is addressed over HTTP, and which sites' pages may use it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?)(:[0-9]{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def host_name(host: str) -> str | None:
    """Take the name out of a `Host`, in lower case and without port; None where it is none."""
    found = _HOST.fullmatch(host.lower())
    return found[1].rstrip(".") if found else None


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an IP address, an IPv6 one with or without brackets; None where it is a name."""
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback_name(name: str) -> bool:
    """Whether a name, as `host_name` gives it, is always this machine's own."""
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
    """Bring an origin to the form in which browsers send it: lower case, no default port."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "/"))


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of that origin was served at that `Host`.

    Whatever the scheme: the monitor may stand behind a proxy that speaks TLS.
    """
    try:
        scheme, netloc = urlsplit(canonical_origin(origin))[:2]
    except ValueError:
        return False
    return bool(netloc) and netloc == host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, "/"))
