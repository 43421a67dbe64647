"""gRPC channels as backends need them, in the clear or by TLS."""

from __future__ import annotations

import grpc

from ..domain.address import TLS_SCHEME

_OPTIONS = (
    # A proxy in the host's environment would capture loopback calls.
    ("grpc.enable_http_proxy", 0),
    # A channel of our own: it shares no other channel's backoff, and closing it closes the socket.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC's own backoff, many seconds, would hide a backend that is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 150),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)

KEEPER_TARGET = "unix:/"


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Make a channel, which connects at its first call.

    Args:
        address: the backend's, in one of the forms of `addresses.py`.
        credentials: for TLS; None for a channel in the clear.
    """
    target = address.removeprefix(TLS_SCHEME)
    if credentials is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.secure_channel(target, credentials, options=_OPTIONS)


def open_keeper() -> grpc.Channel:
    """Make a channel that is never used, and keeps gRPC from shutting down with the last other one.

    Old versions (1.49.1) may take 10 s for that, with the GIL held, once a connection to a unix
    socket had failed.
    """
    return grpc.insecure_channel(KEEPER_TARGET, options=_OPTIONS)
