"""An HTTP client of a running monitor, which needs only the standard library."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlencode, urlsplit

from .config.tokens import parse_tokens, validate_token
from .domain.errors import MonitorError, RequestFailed

DEFAULT_URL = "http://127.0.0.1:8080"

_TIMEOUT_SECONDS = 60.0


class Client:
    """Sends requests to a monitor, each on a new connection. Safe to call from any thread.

    Args:
        url: `http://HOST:PORT`, `https://HOST:PORT` (of a proxy with TLS), or `unix:/PATH`.
        token: sent with each request; no error contains it.
        timeout_seconds: the maximum time of each wait for the monitor.

    Raises:
        MonitorError: the URL has another form.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_seconds = timeout_seconds
        self._path_prefix = ""
        self.url = url.rstrip("/")
        if url.startswith("unix:"):
            socket_path = url.removeprefix("unix:").removeprefix("//")
            if not socket_path.startswith("/"):
                raise MonitorError(f"{url!r}: a unix socket's path must be absolute: unix:/PATH")
            self._server_url = f"unix:{socket_path}"
            return
        if "@" in url:  # the error does not quote the URL: it may contain a password
            raise MonitorError(
                "the URL must not contain a user name; pass a token in MONITOR_TOKEN or a file"
            )
        try:
            parts = urlsplit(self.url)
            valid = bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # the port is no number, or too large
            valid = False
        if not valid or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise MonitorError(f"{url!r} is neither http://HOST:PORT nor unix:/PATH")
        self._server_url, self._path_prefix = f"{parts.scheme}://{parts.netloc}", parts.path

    def get(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Send a GET request, and return the decoded JSON of the answer.

        Raises:
            RequestFailed: the monitor did not answer, or answered with an error or without JSON.
        """
        return self._request(
            "GET", path + (f"?{urlencode(query)}" if query else ""), None, timeout_seconds
        )

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_seconds: float | None = None
    ) -> Any:
        """Send a POST request with a JSON body; returns and raises the same as `get`."""
        return self._request("POST", path, json.dumps(body), timeout_seconds)

    def _request(
        self, method: str, path: str, body: str | None, timeout_seconds: float | None
    ) -> Any:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = timeout_seconds or self._timeout_seconds
        with closing(open_connection(self._server_url, timeout)) as connection:
            try:
                connection.request(method, self._path_prefix + path, body, headers)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise RequestFailed(self.url, f"no monitor answers at {self.url}: {why}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if response.status >= 300:
            message, error_type = _parse_error(answer)
            if message is None:
                message = f"{self.url} answered {method} {path} with {response.status}: "
                message += response.reason
            raise RequestFailed(self.url, message, response.status, error_type)
        if answer is None:
            message = f"{self.url} answered {method} {path} with no JSON: is it a monitor?"
            raise RequestFailed(self.url, message, response.status)
        return answer


def open_connection(url: str, timeout_seconds: float) -> http.client.HTTPConnection:
    """Return a connection to `unix:/PATH`, or to the host and port of a URL.

    The connection opens its socket at the first request.
    """
    if url.startswith("unix:"):
        return UnixConnection(url.removeprefix("unix:"), timeout_seconds)
    parts = urlsplit(url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.netloc, timeout=timeout_seconds)
    return http.client.HTTPConnection(parts.netloc, timeout=timeout_seconds)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def client_of(environ: Mapping[str, str], url: str | None, token_file: str | None) -> Client:
    """Make a client from a command's options, and from the environment without them.

    Args:
        environ: pass `os.environ`. `MONITOR_URL` is used if `url` is None. `MONITOR_TOKEN`, or else
            `MONITOR_TOKEN_FILE`, is used if `token_file` is None.
        url: the `url` of `Client`.
        token_file: the path of a file with a token alone, or of a token file such as the monitor's,
            from which a token of the highest role is used.

    Raises:
        MonitorError: the URL, the token or the file cannot be used.
    """
    token = None if token_file else environ.get("MONITOR_TOKEN") or None
    token_file = token_file or environ.get("MONITOR_TOKEN_FILE") or None
    if token is None and token_file:
        token = _read_token(token_file)
    elif token is not None:
        try:
            validate_token(token)
        except ValueError as error:
            raise MonitorError(f"MONITOR_TOKEN: {error}") from None
    return Client(url or environ.get("MONITOR_URL") or DEFAULT_URL, token)


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise MonitorError(f"token file {os.fspath(path)} cannot be used: {why}") from None
    try:
        tokens = parse_tokens(text)
    except ValueError:
        tokens = ()
    if tokens:
        return max(tokens, key=lambda each: each.role).secret
    try:
        return validate_token(text.strip())
    except ValueError as error:
        raise MonitorError(f"token file {path} cannot be used: {error}") from None


def _parse_error(answer: Any) -> tuple[str | None, str | None]:
    """Return the message and the type of an error; None and None if the answer has none."""
    try:
        return str(answer["error"]["message"]), str(answer["error"]["type"])
    except (TypeError, KeyError):
        return None, None
