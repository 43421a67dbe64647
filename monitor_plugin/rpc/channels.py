"""Connections to backends: the options of gRPC channels, TLS, and the token that calls carry.

Calls by HTTP use TLS if the address begins with `https://`. Calls by gRPC use it if the address
begins with `grpcs://`, or if it is not local and `grpc_ca_file` is set. TLS verifies the backend.
All other calls are unencrypted; to other machines they need the setting `insecure`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import grpc

from ..config.reloading_file import open_setting_file
from ..config.settings import Settings
from ..config.tokens import validate_token
from ..domain.address import (
    LOOPBACK_HOSTS,
    TLS_SCHEME,
    canonical_address,
    grpc_socket_target,
    is_http,
    is_local,
    parse_address,
)

_OPTIONS = (
    # Otherwise a proxy in the host's environment would get the calls to loopback addresses.
    ("grpc.enable_http_proxy", 0),
    # Otherwise channels to the same address share a connection and its backoff, and closing one
    # channel does not close the socket.
    ("grpc.use_local_subchannel_pool", 1),
    # By default gRPC waits up to two minutes before it connects again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 150),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)
_PEM_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
UNUSED_CHANNEL_TARGET = "unix:/"


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Open a channel, which connects at its first call.

    Args:
        address: the backend's address, in one of the forms that `domain/address.py` accepts.
        credentials: for TLS; None for an unencrypted channel.
    """
    target, options = _grpc_target(address)
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def open_unused_channel() -> grpc.Channel:
    """Open a channel that is never used, so that gRPC stays initialized without other channels.

    When its last channel is closed, gRPC shuts down. If a connection to a unix socket has failed
    before, gRPC 1.49.1 then holds the interpreter's lock for up to 10 s.
    """
    return grpc.insecure_channel(UNUSED_CHANNEL_TARGET, options=_OPTIONS)


class ChannelSecurity:
    """Decides which calls use TLS, and adds the token to calls. Safe to call from any thread.

    Args:
        settings: `insecure`, `grpc_ca_file` and `grpc_token_file` are used.

    Raises:
        SettingsError: a file cannot be read, or holds no certificate or no token.
    """

    def __init__(self, settings: Settings) -> None:
        self._insecure = settings.insecure
        self._ca = open_setting_file("grpc_ca_file", settings.grpc_ca_file, _parse_certificates)
        self._http_tls: tuple[bytes | None, ssl.SSLContext] | None = None
        self._token = open_setting_file("grpc_token_file", settings.grpc_token_file, _parse_token)

    def check(self, address: str) -> None:
        """Check that the settings allow calls to an address.

        Raises:
            ValueError: the address is not local, and no setting protects or allows such calls.
        """
        self._uses_tls(address)

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Return the credentials for a channel to an address; None for an unencrypted channel.

        Raises:
            ValueError: see `check`, or the address is a URL.
        """
        if is_http(address):
            raise ValueError(f"the server at {address} is asked by HTTP, not by gRPC")
        if not self._uses_tls(address):
            return None
        # With None gRPC trusts its own root certificates, or those in the file that the environment
        # variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
        return grpc.ssl_channel_credentials(self._ca.get() if self._ca else None)

    def http_tls(self, address: str) -> ssl.SSLContext | None:
        """Return the context for a connection to a URL; None for an unencrypted connection.

        Raises:
            ValueError: see `check`.
        """
        if not self._uses_tls(address):
            return None
        certificates = self._ca.get() if self._ca else None
        if self._http_tls is None or self._http_tls[0] != certificates:
            # The system's certificates take 20 ms to read.
            context = ssl.create_default_context(
                cadata=certificates.decode() if certificates else None
            )
            self._http_tls = certificates, context
        return self._http_tls[1]

    def add_token(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Add the token of `grpc_token_file` to the metadata, unless they have `authorization`."""
        if self._token is None:
            return metadata
        return {"authorization": f"Bearer {self._token.get()}", **metadata}

    def _uses_tls(self, address: str) -> bool:
        if address.startswith((TLS_SCHEME, "https://")):
            return True
        if is_local(canonical_address(address)):
            return False
        if address.startswith("http://"):
            if not self._insecure:
                raise ValueError(
                    f"address {address!r} is not on this machine, and requests would go there in "
                    f"the clear; use https://{address.removeprefix('http://')}, or set insecure to "
                    "allow it"
                )
            return False
        if self._ca is None and not self._insecure:
            raise ValueError(
                f"address {address!r} is not on this machine, and calls would go there in the "
                f"clear; use {TLS_SCHEME}{address.removeprefix('dns:///')}, or set grpc_ca_file "
                "(TLS to all that are not local), or insecure to allow it"
            )
        return self._ca is not None


def _grpc_target(address: str) -> tuple[str, tuple[tuple[str, object], ...]]:
    """Return the gRPC target of an address, and the options of its channel."""
    parsed = parse_address(address)
    if parsed.path is not None:
        return grpc_socket_target(parsed.path), _OPTIONS
    if parsed.hosts != LOOPBACK_HOSTS:
        return address.removeprefix(TLS_SCHEME), _OPTIONS
    # gRPC tries one after the other. One target takes IP addresses of one family only, so the last
    # one is that of IPv4 as IPv6 writes it, which is dialled by IPv4, also where IPv6 is off. gRPC
    # itself may resolve `localhost` to one family only: 1.49.1 does, and /etc/hosts may lack one.
    # An error's details are those of the last address, and more servers listen by IPv4 alone than
    # by IPv6 alone: see `speaks_grpc`.
    port = parsed.port
    target = f"ipv6:[::1]:{port},[::ffff:127.0.0.1]:{port}"
    return target, (*_OPTIONS, ("grpc.default_authority", f"localhost:{port}"))


def _parse_certificates(text: str) -> bytes:
    if _PEM_CERTIFICATE not in text:
        raise ValueError(f"it holds no certificate in PEM ({_PEM_CERTIFICATE})")
    return text.encode()


def _parse_token(text: str) -> str:
    return validate_token(text.strip())
