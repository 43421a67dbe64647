"""Lists the protocols."""

from __future__ import annotations

from collections.abc import Mapping

from .protocol import AskByGrpc, HttpProtocol

# In the order in which a server is tried: those that more than one kind of server answers stand
# last. Each path is requested once for all of them.
HTTP_PROTOCOLS: tuple[type[HttpProtocol], ...] = ()

# By name, except `localai`, which is that of `rpc/`.
GRPC_PROTOCOLS: Mapping[str, AskByGrpc] = {}
