"""Posts of JSON, signed as https://www.standardwebhooks.com describes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import re
import socket
import ssl
import time
from contextlib import closing, suppress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from .delivery import NotSent

_TRY_AGAIN = (408, 425, 429, *range(500, 600))
_MAX_RETRY_AFTER_SECONDS = 300


class Message(NamedTuple):
    """A JSON body, and its id `name`, which is the same for each try."""

    name: str
    body: bytes


class SignedPost:
    """Posts to a URL, without proxies or redirects. The certificate of https is verified.

    Each try opens a connection and sends the headers `webhook-id`, `webhook-timestamp` (the time of
    the try, in seconds since the epoch) and `webhook-signature`: `v1,` and the base64 of
    HMAC-SHA256(secret, id + "." + timestamp + "." + body).

    Args:
        url: a result of `parse_url`.
        secret: any text, or `whsec_` and base64.
        timeout_seconds: the timeout of each network operation.

    Raises:
        ValueError: the text after `whsec_` is not base64, or is empty.
    """

    def __init__(self, url: SplitResult, secret: str, timeout_seconds: float) -> None:
        self._host, self._port = url.hostname or "", url.port
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        encoded = secret.removeprefix("whsec_")
        key = secret.encode() if encoded == secret else base64.b64decode(encoded, validate=True)
        if not key:  # anyone could sign with an empty key
            raise ValueError("the secret is empty")
        self._hmac = hmac.new(key, digestmod=hashlib.sha256)  # instead of the secret
        self._timeout_seconds = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None

    def send(self, message: Message) -> None:
        """Post once.

        Raises:
            NotSent: the network failed, or the response's status is not 2xx.
        """
        stamp = str(int(time.time()))
        signature = self._hmac.copy()
        signature.update(f"{message.name}.{stamp}.".encode() + message.body)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "monitor-plugin",
            "webhook-id": message.name,
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{base64.b64encode(signature.digest()).decode()}",
        }
        host, port, timeout = self._host, self._port, self._timeout_seconds
        if self._tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=timeout, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            with closing(connection) as self._connection:
                self._connection.request("POST", self._target, message.body, headers)
                with self._connection.getresponse() as answer:
                    status, after = answer.status, answer.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            raise NotSent(f"{type(error).__name__}: {error}") from None
        if not 200 <= status < 300:
            seconds = int(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0
            raise NotSent(
                f"the response has status {status}",
                again=status in _TRY_AGAIN,
                after_seconds=min(seconds, _MAX_RETRY_AFTER_SECONDS),
            )

    def interrupt(self) -> None:
        """Abort the `send` of another thread."""
        sock = self._connection.sock if self._connection else None
        if sock:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def parse_url(text: str) -> SplitResult:
    """Parse the URL of a receiver.

    Raises:
        ValueError: the URL is invalid. The message omits the URL, whose path may be a secret.
    """
    if not re.fullmatch(r"https?://[\x21-\x7e]+", text):
        raise ValueError("it is not an https:// or http:// URL of printable ASCII without spaces")
    try:
        url = urlsplit(text)
        # The encoding that look-ups use refuses empty labels and those of more than 63 bytes.
        usable = bool((url.hostname or "").encode("idna")) and url.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in url.netloc or url.fragment:
        raise ValueError("it has an invalid host or port, a username or a fragment")
    return url
