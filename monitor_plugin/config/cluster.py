"""What the settings of a cluster may be: NATS servers, and names of nodes and namespaces."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from .origins import ip_address

_DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", re.ASCII)
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}", re.ASCII)
_URL = re.compile(r"https?://[^/?#@\s,]+(/[^?#@\s,]*)?", re.ASCII)


class NatsServer(NamedTuple):
    """A server of the setting `cluster`.

    Attributes:
        url: its address, with a port.
        tls: whether TLS is demanded.
        is_loopback: whether it is on this machine for certain.
    """

    url: str
    tls: bool
    is_loopback: bool


def parse_nats_servers(text: str) -> tuple[NatsServer, ...]:
    """Parse the setting `cluster`: `nats://HOST:PORT` or `tls://HOST:PORT`, between commas.

    Raises:
        ValueError: it is something else; the message quotes no password.
    """
    servers = tuple(_parse(part.strip()) for part in text.split(",") if part.strip())
    if not servers:
        raise ValueError("it names no NATS server; nats://HOST:4222 is one")
    return servers


def _parse(text: str) -> NatsServer:
    if "@" in text:
        raise ValueError(
            "a NATS server's address may not hold a user or a password, which everyone on this "
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
        or (address is None and not _HOST.fullmatch(host))
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise ValueError(f"{text!r} is no NATS server: nats://HOST:4222, or tls://HOST:4222")
    shown = f"[{host}]" if ":" in host else host
    is_loopback = address.is_loopback if address else host == "localhost"
    return NatsServer(f"{parts.scheme}://{shown}:{port}", parts.scheme == "tls", is_loopback)


def fault_in_cluster(text: str, *, has_ca: bool, has_credentials: bool, insecure: bool) -> str:
    """Say what is wrong with the setting `cluster`; nothing (an empty string) where it is fine."""
    try:
        servers = parse_nats_servers(text)
    except ValueError as error:
        return str(error)
    for server in servers:
        if insecure or server.is_loopback:
            continue
        if not (server.tls or has_ca):
            return (
                f"{server.url} is not on this machine, and whoever reads or writes what goes "
                "there could stop models: write tls://, or set cluster_ca_file, or say that it is "
                "on purpose (insecure)"
            )
        if not has_credentials:
            return (
                f"{server.url} is not on this machine, and without credentials whoever reaches it "
                "could stop models: set cluster_creds_file or cluster_nkey_file, or say that it "
                "is on purpose (insecure)"
            )
    return ""


def fault_in_node(node: str) -> str | None:
    """Say what is wrong with a node's name; None when nothing is."""
    if _NODE.fullmatch(node):
        return None
    return f"{node!r} is no node's name: up to 128 letters, digits and _ . : - of ASCII"


def fault_in_namespace(namespace: str) -> str | None:
    """Say what is wrong with the setting `cluster_namespace`; None when nothing is."""
    if _NAMESPACE.fullmatch(namespace):
        return None
    return f"{namespace!r} is no prefix of NATS subjects: letters, digits, _ and -, dots between"


def fault_in_node_url(url: str) -> str | None:
    """Say what is wrong with the setting `cluster_url`; None when nothing is."""
    with contextlib.suppress(ValueError):
        if _URL.fullmatch(url) and urlsplit(url).port != 0:
            return None
    return f"{url!r} is no address at which others reach this monitor: http://HOST:PORT"
