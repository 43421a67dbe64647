"""Validates the settings of a cluster: NATS servers, node names, namespaces and URLs."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from ..domain.address import HOST_NAME
from .origins import ip_address

_DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls")
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}", re.ASCII)
_URL = re.compile(r"https?://[^/?#@\s,]+(/[^?#@\s,]*)?", re.ASCII)


class NatsServer(NamedTuple):
    """A server of the setting `cluster`.

    Attributes:
        url: its URL, with a port.
        tls: whether the URL requires TLS.
        is_loopback: whether its address is a loopback address.
    """

    url: str
    tls: bool
    is_loopback: bool


def parse_nats_servers(text: str) -> tuple[NatsServer, ...]:
    """Parse the setting `cluster`: `nats://HOST:PORT` or `tls://HOST:PORT`, separated by commas.

    Raises:
        ValueError: it has another form; the message does not quote a password.
    """
    servers = tuple(_parse(part.strip()) for part in text.split(",") if part.strip())
    if not servers:
        raise ValueError("it names no NATS server; nats://HOST:4222 is one")
    return servers


def _parse(text: str) -> NatsServer:
    if "@" in text:
        raise ValueError(
            "a NATS server's address must not have a user or a password, which all users of this "
            "machine could see; use cluster_creds_file or cluster_nkey_file"
        )
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    address = ip_address(host)
    if (
        parts.scheme not in _SCHEMES
        or (address is None and not HOST_NAME.fullmatch(host))
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise ValueError(f"{text!r} is no NATS server: nats://HOST:4222, or tls://HOST:4222")
    shown = f"[{host}]" if ":" in host else host
    is_loopback = address.is_loopback if address else host == "localhost"
    return NatsServer(f"{parts.scheme}://{shown}:{port}", parts.scheme == "tls", is_loopback)


def validate_cluster(
    text: str, *, has_ca: bool, has_credentials: bool, insecure: bool
) -> tuple[NatsServer, ...]:
    """Return the servers of the setting `cluster`.

    Args:
        text: the setting `cluster`.
        has_ca: whether `cluster_ca_file` is set.
        has_credentials: whether `cluster_creds_file` or `cluster_nkey_file` is set.
        insecure: the setting `insecure`.

    Raises:
        ValueError: the text names no servers, or one that is neither on this machine nor protected
            by TLS and credentials.
    """
    servers = parse_nats_servers(text)
    for server in servers:
        if insecure or server.is_loopback:
            continue
        if not (server.tls or has_ca):
            raise ValueError(
                f"{server.url} is not on this machine, and without TLS everyone on the network "
                "between could stop models: write tls://, or set cluster_ca_file, or allow it "
                "(insecure)"
            )
        if not has_credentials:
            raise ValueError(
                f"{server.url} is not on this machine, and without credentials everyone who "
                "reaches it could stop models: set cluster_creds_file or cluster_nkey_file, or "
                "allow it (insecure)"
            )
    return servers


def validate_node(node: str) -> str:
    """Return the name of a node.

    Raises:
        ValueError: it is not one.
    """
    if not _NODE.fullmatch(node):
        raise ValueError(
            f"{node!r} is no node's name: up to 128 letters, digits and _ . : - of ASCII"
        )
    return node


def validate_namespace(namespace: str) -> str:
    """Return the setting `cluster_namespace`.

    Raises:
        ValueError: NATS subjects cannot begin with it.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"{namespace!r} is no prefix of NATS subjects: letters, digits, _ and -, dots between"
        )
    return namespace


def validate_node_url(url: str) -> str:
    """Return the URL at which others reach a node's monitor.

    Raises:
        ValueError: it is not `http://HOST:PORT`, or the same with `https` or a path.
    """
    with contextlib.suppress(ValueError):  # urlsplit() raises one for a port that is not a number
        if _URL.fullmatch(url) and urlsplit(url).port != 0:
            return url
    raise ValueError(f"{url!r} is no address at which others reach this monitor: http://HOST:PORT")
