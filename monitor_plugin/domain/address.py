"""Parses the addresses of backends: gRPC targets, which gRPC does not check, and URLs."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

FORMS = (
    "host:port, [::1]:port, :port or *:port for this machine, ipv4:1.2.3.4:port, ipv6:[::1]:port, "
    "dns:///host:port, unix:/path, unix-abstract:name, grpcs://host:port for TLS, or for a server "
    "that speaks HTTP http://host:port or https://host:port"
)
TLS_SCHEME = "grpcs://"
HTTP_SCHEMES = {"http://": 80, "https://": 443}  # with their default ports

# A client of `localhost`, or of an address that names no host, dials these one after the other: the
# server may listen at one of them only, and IPv6 may be off.
LOOPBACK_HOSTS = ("127.0.0.1", "::1")

# sun_path has 108 bytes. One of them is the final NUL; in an abstract name, the first byte.
MAX_SOCKET_PATH_BYTES = 107
HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

_SCHEMES = (TLS_SCHEME, "dns:///", "dns:", "ipv4:///", "ipv4:", "ipv6:///", "ipv6:")
# gRPC reads "dns:80" as a target with a scheme, not as host and port.
_NOT_HOSTS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p")
# What of a host and a port may be percent-encoded. The scope of an IPv6 address has a `%` as well.
_ENCODED = {"%5B": "[", "%5D": "]", "%3A": ":", "%2E": "."}
_SOCKETS = ("unix:", "unix-abstract:")
# A password may hold an `@` and a slash. The scheme may be misspelt.
_USER = re.compile(r"([A-Za-z]+://)?.*@", re.DOTALL)
_QUERY = re.compile(r"(https?:[^?#]*[?#]).*", re.DOTALL | re.IGNORECASE)
_PLAIN_IN_PATHS = "/!$&'()*+,;=:@"


class Target(NamedTuple):
    """A parsed address: where a client dials.

    Attributes:
        path: the path of a unix socket; of an abstract one, a NUL and its name; None for TCP.
        hosts: the host names or IP addresses to dial, without brackets: LOOPBACK_HOSTS for
            `localhost` and for an address that names no host (`:50051`, `*:50051`, `0.0.0.0:50051`
            or `[::]:50051`), otherwise one.
        port: the TCP port.
        url_path: for a URL, the path in it without a slash at the end, often empty; None for gRPC.
    """

    path: str | None
    hosts: tuple[str, ...] = ()
    port: int = 0
    url_path: str | None = None


def is_http(address: str) -> bool:
    """Whether an address is that of a server that speaks HTTP."""
    return address.startswith(tuple(HTTP_SCHEMES))


def http_url(address: str) -> str | None:
    """Return the URL at which a gRPC target would be asked by HTTP; None for a unix socket."""
    target = parse_address(address)
    if target.path is not None:
        return None
    host = "localhost" if target.hosts == LOOPBACK_HOSTS else target.hosts[0]
    return f"http://[{host}]:{target.port}" if ":" in host else f"http://{host}:{target.port}"


def parse_address(address: object) -> Target:
    """Parse the address of a backend.

    Args:
        address: an address as the host gave it, in one of FORMS.

    Raises:
        ValueError: the address has none of FORMS; the message says what is wrong.
    """
    if not isinstance(address, str):
        raise ValueError(f"the address must be a string, not {type(address).__name__}")
    has_secret = _USER.match(address) or _QUERY.match(address)
    if has_secret and not address.startswith(_SOCKETS):  # the other messages quote the address
        raise ValueError(
            "an address has no user, password, query or fragment; a token stands in the file of "
            "the setting grpc_token_file"
        )
    if not address.isprintable() or " " in address:
        raise ValueError(f"address {address!r} holds a space or a control character")
    if is_http(address):
        return _parse_url(address)
    if address.startswith("unix-abstract:"):
        return Target("\0" + _decoded_path(address, address.removeprefix("unix-abstract:")))
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path.startswith("/"):
            raise ValueError(f"address {address!r}: the socket's path must be absolute")
        # normpath() keeps two leading slashes, which mean the same as one.
        return Target("/" + os.path.normpath(_decoded_path(address, path)).lstrip("/"))
    scheme, rest = _split_scheme(address)
    host, colon, port = rest.rpartition(":")
    if not colon or "/" in host:
        raise ValueError(f"address {address!r} is no gRPC target or URL; use {FORMS}")
    number = _parse_port(address, port)
    return Target(None, _parse_host(address, scheme[:4], host), number)


def hide_credentials(address: str) -> str:
    """Return an address as the host gave it, without a user, a password, a query and a fragment."""
    if address.startswith(_SOCKETS):
        return address
    address = _USER.sub(r"\1...@", address)
    return _QUERY.sub(r"\1...", address)


def canonical_address(address: object) -> str:
    """Return the canonical form of an address, by which two addresses can be compared.

    Args:
        address: an address as the host gave it, in one of FORMS.

    Returns:
        The address without a scheme, except those of unix sockets, and without the path of a URL;
        with and without TLS it is the same. `localhost` and addresses that name no host become
        127.0.0.1, which a client that dials them reaches.

    Raises:
        ValueError: the address has none of FORMS; the message says what is wrong.
    """
    path, hosts, port, _ = parse_address(address)
    if path is not None:
        return grpc_socket_target(path)
    host = hosts[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def grpc_socket_target(path: str) -> str:
    """Return the gRPC target of a unix socket, with percent-encoding, which gRPC decodes."""
    scheme, name = ("unix-abstract:", path[1:]) if path.startswith("\0") else ("unix:", path)
    return scheme + quote(os.fsencode(name), safe=_PLAIN_IN_PATHS)


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


def _parse_url(address: str) -> Target:
    scheme = next(each for each in HTTP_SCHEMES if address.startswith(each))
    rest = address.removeprefix(scheme)
    authority, slash, path = rest.partition("/")
    host, port = authority, str(HTTP_SCHEMES[scheme])
    if ":" in authority.rpartition("]")[2]:
        host, _, port = authority.rpartition(":")
    if not host:
        raise ValueError(f"address {address!r} names no host; use {scheme}127.0.0.1:PORT")
    hosts = _parse_host(address, scheme, host)
    return Target(None, hosts, _parse_port(address, port), (slash + path).rstrip("/"))


def _parse_port(address: str, port: str) -> int:
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"address {address!r}: the port must be a number from 1 to 65535")
    return int(port)


def _split_scheme(address: str) -> tuple[str, str]:
    """Split an address into its scheme, which may be empty, and host and port without encoding."""
    for scheme in _SCHEMES:
        rest = address.removeprefix(scheme)
        if rest != address and (":" in rest or scheme == TLS_SCHEME):
            break
    else:
        scheme, rest = "", address
    for encoded, letter in _ENCODED.items():
        rest = rest.replace(encoded, letter).replace(encoded.lower(), letter)
    return scheme, rest


def _decoded_path(address: str, path: str) -> str:
    """Decode the percent-encoding of a socket's path, as gRPC does, and check its length."""
    decoded = unquote_to_bytes(path)
    if not 1 <= len(decoded) <= MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"address {address!r}: a socket's path takes 1 to {MAX_SOCKET_PATH_BYTES} bytes, "
            f"not {len(decoded)}"
        )
    if b"\0" in decoded:
        raise ValueError(f"address {address!r}: a socket's path has no NUL (%00)")
    return os.fsdecode(decoded)


def _parse_host(address: str, scheme: str, host: str) -> tuple[str, ...]:
    """Return the hosts to dial: see `Target`. The scheme counts if it is `ipv4` or `ipv6`."""
    if host.startswith("[") and host.endswith("]") and scheme != "ipv4":
        try:
            ip6 = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"address {address!r}: {host} is no IPv6 address") from None
        ip = ip6.ipv4_mapped or ip6
        return LOOPBACK_HOSTS if ip.is_unspecified else (str(ip),)
    if scheme == "ipv6":
        raise ValueError(f"address {address!r}: {host!r} is no IPv6 address in brackets")
    if host in ("", "*") and scheme != "ipv4":
        return LOOPBACK_HOSTS
    if scheme != "ipv4" and (not HOST_NAME.fullmatch(host) or ".." in host):
        raise ValueError(
            f"address {address!r}: {host!r} is no host name or IPv4 address "
            "(an IPv6 address stands in brackets)"
        )
    if scheme == "ipv4" or re.fullmatch(r"[0-9.]+", host):
        try:
            ip4 = ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"address {address!r}: {host} is no IPv4 address") from None
        return LOOPBACK_HOSTS if ip4.is_unspecified else (str(ip4),)
    host = host.lower().rstrip(".")
    if host in _NOT_HOSTS:
        raise ValueError(f"address {address!r}: gRPC does not take {host!r} for a host's name")
    return LOOPBACK_HOSTS if host == "localhost" else (host,)
