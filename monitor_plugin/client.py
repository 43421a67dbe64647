"""An HTTP client of a running monitor, which needs only the standard library."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlencode

from .config.tokens import parse_tokens, validate_token
from .domain.errors import InvalidRequest, MonitorError, RequestFailed
from .domain.monitor_url import parse_monitor_url

#: The URL of a monitor with the default settings.
DEFAULT_URL = "http://127.0.0.1:8080"

_TIMEOUT_SECONDS = 60.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_TOKEN_FILE_BYTES = 1024 * 1024
# Maximum number of characters that an error quotes from a server that may be no monitor.
_MAX_QUOTED = 200
_PATH = re.compile(r"/[\x21-\x7e]*")


class ClientAnswer(NamedTuple):
    """The decoded JSON and the headers of an answer. Names of headers may be of any case."""

    json: Any
    headers: http.client.HTTPMessage


class Client:
    """Sends requests to a monitor, each on a new connection. Safe to call from any thread.

    Args:
        url: `http://HOST:PORT`, `https://HOST:PORT` (of a proxy with TLS), or `unix:/PATH`.
        token: sent with each request; no error contains it.
        timeout_seconds: the maximum time of each wait for the monitor.

    Raises:
        MonitorError: the URL or the token cannot be used.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        self.url = url.rstrip("/")
        address = parse_monitor_url(url)
        self._path_prefix = "" if address.scheme == "unix" else address.path
        self._headers: dict[str, str] = {}
        if token is not None:
            try:
                self._headers["Authorization"] = f"Bearer {validate_token(token)}"
            except ValueError as error:
                raise MonitorError(str(error)) from None
        self._timeout_seconds = timeout_seconds

    def get(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Send a GET request, and return the decoded JSON of the answer.

        Raises:
            InvalidRequest: the path or the query cannot be sent.
            RequestFailed: the monitor did not answer, or answered with an error or without JSON.
        """
        try:
            path += f"?{urlencode(query)}" if query else ""
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the query is not valid Unicode (it holds a lone surrogate)"
            ) from None
        return self._request("GET", path, None, timeout_seconds).json

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_seconds: float | None = None
    ) -> Any:
        """Send a POST request with a JSON body; returns and raises the same as `get`.

        A shutdown, a load and a restart are answered when they are done. Pass `timeout_seconds`
        where that may take longer than a minute: a load may take `start_timeout_seconds`.
        """
        return self.post_for_answer(path, body, timeout_seconds=timeout_seconds).json

    def post_for_answer(
        self, path: str, body: Mapping[str, Any], *, timeout_seconds: float | None = None
    ) -> ClientAnswer:
        """Send a POST request with a JSON body; return the body and the headers of the answer."""
        return self._request("POST", path, json.dumps(body), timeout_seconds)

    def _request(
        self, method: str, path: str, body: str | None, timeout_seconds: float | None
    ) -> ClientAnswer:
        if not _PATH.fullmatch(path):
            raise InvalidRequest(f"{path!r} is not a valid path of a URL: percent-encode it")
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = timeout_seconds or self._timeout_seconds
        try:
            with closing(open_connection(self.url, timeout)) as connection:
                connection.request(method, self._path_prefix + path, body, headers)
                response = connection.getresponse()
                text = response.read(_MAX_ANSWER_BYTES + 1)
                if len(text) <= _MAX_ANSWER_BYTES:
                    text += response.read()  # raises IncompleteRead if the answer was cut off
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RequestFailed(
                self.url, f"no monitor answers at {self.url}: {why[:_MAX_QUOTED]}"
            ) from error
        if len(text) > _MAX_ANSWER_BYTES:
            size = f"more than {_MAX_ANSWER_BYTES} bytes"
            message = f"{self.url} answered {method} {path} with {size}: is it a monitor?"
            raise RequestFailed(self.url, message, response.status)
        try:
            answer = json.loads(text, parse_int=_parse_int)
        except (ValueError, RecursionError):  # nested too deeply
            answer = None
        if response.status >= 300:
            reason = f"{response.status}: {response.reason[:_MAX_QUOTED]}"
            message = f"{self.url} answered {method} {path} with {reason}"
            message, error_type = _parse_error(answer) or (message, None)
            raise RequestFailed(self.url, message, response.status, error_type)
        if answer is None:
            message = f"{self.url} answered {method} {path} with no JSON: is it a monitor?"
            raise RequestFailed(self.url, message, response.status)
        return ClientAnswer(answer, response.headers)


def open_connection(url: str, timeout_seconds: float) -> http.client.HTTPConnection:
    """Return a connection to the monitor at a URL. It opens its socket at the first request."""
    address = parse_monitor_url(url)
    if address.scheme == "unix":
        return UnixConnection(address.path, timeout_seconds)
    if address.scheme == "https":
        return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_seconds)
    return http.client.HTTPConnection(address.host, address.port, timeout=timeout_seconds)


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
    """Make a client from a command's options; the environment replaces options that are None.

    Args:
        environ: pass `os.environ`. `MONITOR_URL` is used if `url` is None. `MONITOR_TOKEN`, or else
            `MONITOR_TOKEN_FILE`, is used if `token_file` is None. Empty variables are ignored.
        url: the `url` of `Client`.
        token_file: the path of a file with a token alone, or of a token file such as the monitor's,
            from which a token of the highest role is used.

    Raises:
        MonitorError: the URL, the token or the file cannot be used.
    """
    token = None
    if token_file is None:
        token = environ.get("MONITOR_TOKEN") or None
        token_file = environ.get("MONITOR_TOKEN_FILE") or None
    if token is None and token_file is not None:
        token = _read_token(token_file)
    elif token is not None:
        try:
            validate_token(token)
        except ValueError as error:
            raise MonitorError(f"MONITOR_TOKEN: {error}") from None
    if url is None:
        url = environ.get("MONITOR_URL") or DEFAULT_URL
    return Client(url, token)


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(_MAX_TOKEN_FILE_BYTES + 1)
        if len(text) > _MAX_TOKEN_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_TOKEN_FILE_BYTES} characters")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeDecodeError):
            why = "it is not UTF-8 text"
        raise MonitorError(f"token file {path} cannot be used: {why}") from None
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


def _parse_int(text: str) -> int:
    """Parse an integer of JSON; raises `ValueError` if it takes more than 64 bits."""
    number = int(text)
    if abs(number) >= 2**64:
        raise ValueError(f"{text} takes more than 64 bits")
    return number


def _parse_error(answer: Any) -> tuple[str, str] | None:
    """Return the message and the type of an error; None if the answer has none."""
    try:
        return str(answer["error"]["message"]), str(answer["error"]["type"])
    except (TypeError, KeyError):
        return None
