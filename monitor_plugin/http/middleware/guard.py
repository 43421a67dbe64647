"""Accepts or refuses requests: by `Host`, by the site of the page, and by token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import falcon

from ...api.cluster_view import NODE_HEADER
from ...api.requests import is_verbose
from ...config.origins import (
    canonical_origin,
    host_name,
    ip_address,
    is_loopback_name,
    is_same_origin,
)
from ...config.settings import Settings, parse_listen
from ...config.tokens import Role, Token, Tokens
from ..resources.page import PAGE_PATHS

# These reveal no model, so they need no token.
PUBLIC_PATHS = (*PAGE_PATHS, "/healthz", "/readyz")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# A POST to these paths only reads. Any other POST, also to a hook's route, needs an admin's token.
_READ_BY_POST = ("/backend/monitor", "/v1/backend/monitor")
# These also need an admin's token to be read: logs may hold what users sent to a model.
_ADMIN_PATHS = ("/backend/log",)
_REALM = 'Bearer realm="monitor-plugin"'

# The names are in lower case, as in Falcon's `response.headers`.
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_ANONYMOUS = Token(Role.ADMIN, "anonymous", "")


class AllowedHosts:
    """The host names by which clients may address the monitor.

    Another site can point a host name of its own at this machine (DNS rebinding). Requests from the
    site's pages then differ from requests of the monitor's own page only by that host name.

    Args:
        listen: the setting `listen`.
        allowed: the setting `allowed_hosts`.
    """

    def __init__(self, listen: str | None, allowed: Iterable[str]) -> None:
        self._allowed = {host.lower().rstrip(".") for host in allowed}
        host = parse_listen(listen).host if listen else ""
        address = ip_address(host)
        # A monitor that listens on all addresses may be addressed by each of them. No site can
        # point an IP address at another machine.
        self._any_address = address is not None and address.is_unspecified
        if host:
            self._allowed.add(f"[{host}]" if ":" in host else host.lower())

    def allow(self, host: str) -> bool:
        """Whether a `Host` header has one of the names, with any port."""
        name = host_name(host)
        if name is None:
            return False
        return (
            "*" in self._allowed
            or name in self._allowed
            or is_loopback_name(name)
            or (self._any_address and ip_address(name) is not None)
        )


class Guard:
    """Falcon middleware that refuses requests, and sets the headers that every response has.

    It sets `request.context.caller` to the `Token` that was sent. If the monitor requires no token,
    the caller is an anonymous token with the role admin. Public paths have no caller.

    Args:
        settings: the allowed hosts and origins are used.
        tokens: the valid tokens.
        node: the name of this node, for a header; None without a cluster.
    """

    def __init__(self, settings: Settings, tokens: Tokens, node: str | None) -> None:
        self._hosts = AllowedHosts(settings.listen, settings.allowed_hosts)
        self._origins = frozenset(canonical_origin(each) for each in settings.allowed_origins)
        self._tokens = tokens
        self._node = node

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Accept a request, or refuse it by raising an error.

        Raises:
            falcon.HTTPError: 400 without a `Host`, 401 without a valid token, 403 if the `Host` or
                the site is not allowed or the token's role is too low.
        """
        request.context.caller = None
        self._check_host(request)
        origin = request.env.get("HTTP_ORIGIN")
        allowed_origin = origin is not None and canonical_origin(origin) in self._origins
        if not allowed_origin and _is_cross_site(request, origin):
            raise falcon.HTTPForbidden(
                description="the request comes from a page of another site; "
                "the setting allowed_origins names sites that may do that"
            )
        role = _required_role(request.method, request.path, request.query_string)
        if allowed_origin and _is_preflight(request):
            role = None  # browsers send no token; the answer only lists the allowed methods
        if role is not None:
            self._authenticate(request, role)

    def _check_host(self, request: falcon.Request) -> None:
        host = request.env.get("HTTP_HOST")
        if host is None:
            if request.env.get("SERVER_PROTOCOL") != "HTTP/1.0":
                raise falcon.HTTPBadRequest(description="the request has no Host")
        elif not self._hosts.allow(host):
            raise falcon.HTTPForbidden(
                description=f"the monitor does not answer for the host {host!r}; "
                "the setting allowed_hosts names those that it answers for"
            )

    def _authenticate(self, request: falcon.Request, role: Role) -> None:
        if not self._tokens.required:
            request.context.caller = _ANONYMOUS
            return
        scheme, _, secret = request.get_header("Authorization", default="").partition(" ")
        if scheme.lower() != "bearer":
            _unauthorized("the monitor wants a token: Authorization: Bearer TOKEN", _REALM)
        token = self._tokens.find(secret.strip())
        if token is None:
            _unauthorized("the token is not valid", f'{_REALM}, error="invalid_token"')
        request.context.caller = token
        if token.role < role:
            raise falcon.HTTPForbidden(
                description=f"the token {token.name!r} has the role {token.role.name.lower()}, "
                f"and {request.method} {request.path} wants {role.name.lower()}"
            )

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        """Set the headers that the resource has not set itself.

        The name of the node is sent only if the request has a caller.
        """
        headers = _HEADERS
        if self._node and request.context.get("caller"):  # not set if Falcon refused the method
            headers = {**_HEADERS, NODE_HEADER.lower(): self._node}
        response.set_headers({**headers, **response.headers})


def _unauthorized(message: str, challenge: str) -> NoReturn:
    raise falcon.HTTPUnauthorized(description=message, challenges=[challenge])


def _required_role(method: str, path: str, query: str) -> Role | None:
    if path in PUBLIC_PATHS and method in _SAFE_METHODS:
        # The checks reveal the machine's weaknesses, so they need a token.
        return Role.READ if path == "/readyz" and is_verbose(query) else None
    if path in _ADMIN_PATHS:
        return Role.ADMIN
    reads = method in _SAFE_METHODS or (method == "POST" and path in _READ_BY_POST)
    return Role.READ if reads else Role.ADMIN


def _is_cross_site(request: falcon.Request, origin: str | None) -> bool:
    """Whether the headers say that a page of another site makes the request.

    Only browsers send these headers. A user may follow a link from another site (`navigate`).
    """
    if origin is not None and not is_same_origin(origin, request.env.get("HTTP_HOST", "")):
        return True
    if request.env.get("HTTP_SEC_FETCH_SITE", "none").lower() in ("none", "same-origin"):
        return False
    mode = request.get_header("Sec-Fetch-Mode", default="")
    return not (mode == "navigate" and request.method in ("GET", "HEAD"))


def _is_preflight(request: falcon.Request) -> bool:
    return (
        request.method == "OPTIONS"
        and request.get_header("Access-Control-Request-Method") is not None
    )


def cors(settings: Settings) -> list[Any]:
    """Make the middleware that sends CORS headers to pages of allowed origins; [] without any."""
    if not settings.allowed_origins:
        return []
    return [
        falcon.CORSMiddleware(
            allow_origins=[canonical_origin(each) for each in settings.allowed_origins],
            expose_headers=[
                "Retry-After",
                "X-Monitor-Address-Owner",
                "X-Monitor-Freed",
                "X-Monitor-Memory-Source",
                "X-Monitor-Replicas",
                "X-Monitor-Rpc-Error",
                "X-Monitor-Source",
                "X-Monitor-Verified",
            ],
        )
    ]
