"""Validates gRPC targets. gRPC itself does not: it turns port 99999 into 34463."""

from __future__ import annotations

import ipaddress
import os.path
import re

FORMS = (
    "host:port, [::1]:port, unix:/path, unix-abstract:name, dns:///host:port, or grpcs://host:port "
    "for TLS"
)
TLS_SCHEME = "grpcs://"

# sun_path has 108 bytes. One of them is the final NUL; in an abstract name, the first byte.
MAX_SOCKET_PATH_BYTES = 107
HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

# gRPC reads "dns:80" as a target with a scheme, not as host and port.
_NOT_HOSTS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p")


def canonical_address(address: object) -> str:
    """Return the canonical form of a gRPC target, by which two targets can be compared.

    Args:
        address: a target as the host gave it, in one of FORMS.

    Returns:
        The target without a scheme, except those of unix sockets; with and without TLS it is the
        same. `localhost` and `0.0.0.0` become 127.0.0.1, which a client that dials them reaches.

    Raises:
        ValueError: the address has none of FORMS; the message says what is wrong.
    """
    if not isinstance(address, str):
        raise ValueError(f"the address must be a string, not {type(address).__name__}")
    if not address.isprintable() or " " in address:
        raise ValueError(f"address {address!r} holds a space or a control character")
    if address.startswith("unix-abstract:"):
        return "unix-abstract:" + _checked_path(address, address.removeprefix("unix-abstract:"))
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path.startswith("/"):
            raise ValueError(f"address {address!r}: the socket's path must be absolute")
        # normpath() keeps two leading slashes, which mean the same as one.
        return "unix:/" + os.path.normpath(_checked_path(address, path)).lstrip("/")
    scheme = TLS_SCHEME if address.startswith(TLS_SCHEME) else "dns:///"
    host, colon, port = address.removeprefix(scheme).rpartition(":")
    if not colon or not host or "/" in host:
        raise ValueError(f"address {address!r} is no gRPC target; use {FORMS}")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"address {address!r}: the port must be a number from 1 to 65535")
    return f"{_canonical_host(address, host)}:{int(port)}"


def is_local(canonical: str) -> bool:
    """Whether a target in its canonical form is certainly on this machine.

    Names are not resolved, as DNS may change: only `localhost`, which the canonical form has as
    127.0.0.1, counts as local.
    """
    if canonical.startswith(("unix:", "unix-abstract:")):
        return True
    host = canonical.rpartition(":")[0].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:  # gRPC resolves it as a name if the scope is no interface
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_loopback or ip.is_unspecified  # a client of 0.0.0.0 reaches loopback


def _checked_path(address: str, path: str) -> str:
    size = len(os.fsencode(path))
    if not path or size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"address {address!r}: a socket's path takes 1 to {MAX_SOCKET_PATH_BYTES} bytes, "
            f"not {size}"
        )
    return path


def _canonical_host(address: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            ip = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"address {address!r}: {host} is no IPv6 address") from None
        return f"[{ip}]"
    if not HOST_NAME.fullmatch(host) or ".." in host:
        raise ValueError(
            f"address {address!r}: {host!r} is no host name or IPv4 address "
            "(an IPv6 address stands in brackets)"
        )
    if re.fullmatch(r"[0-9.]+", host):
        try:
            host = str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"address {address!r}: {host} is no IPv4 address") from None
    host = host.lower().rstrip(".")
    if host in _NOT_HOSTS:
        raise ValueError(f"address {address!r}: gRPC does not take {host!r} for a host's name")
    return "127.0.0.1" if host in ("localhost", "0.0.0.0") else host  # noqa: S104 - compared, not bound
