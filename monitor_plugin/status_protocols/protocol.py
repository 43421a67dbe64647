"""What a protocol is: how a server is asked for its status, and what it answers.

A protocol of HTTP servers is a class, of which each backend gets an object of its own: the object
may keep what it has read before, such as the counters of the last reading. A protocol of gRPC
servers is a function. `catalog.py` lists both.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from ..domain.models import Status
from ..rpc.grpc_transport import AskByGrpc, Call

__all__ = [
    "Answer",
    "AskByGrpc",
    "BusyWhen",
    "Call",
    "Get",
    "HttpProtocol",
    "NoStatus",
    "amount",
    "count",
]

#: When a server is BUSY: see the setting `busy_when`.
BusyWhen = Literal["any", "full"]

_MAX_QUOTED_LETTERS = 60


class NoStatus(Exception):
    """A server was asked, and has given no status.

    Attributes:
        rpc_error: the name of the gRPC code for such a failure.
        text: why there is no status: a sentence for people, without a secret and without what the
            server answered.
        answered: whether the server has answered anything by HTTP.
    """

    def __init__(self, rpc_error: str, text: str, *, answered: bool = True) -> None:
        super().__init__(text)
        self.rpc_error = rpc_error
        self.text = text
        self.answered = answered


class Answer(NamedTuple):
    """What a server has answered to one GET request.

    Attributes:
        path: the path that was requested, such as `/health`.
        status: the status code, 200 to 599. A redirect was not followed.
        content_type: the media type in lower case without parameters; empty if there is none.
        body: the decoded body, at most 4 MiB.
    """

    path: str
    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:
        """Return the decoded JSON of an answer with status 200.

        Raises:
            NoStatus: see `check`, or the body is no JSON, or the content type is another one.
        """
        self.check("application/json")
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise self._fault("INTERNAL", "answered malformed JSON") from None

    def text(self) -> str:
        """Return the text of an answer with status 200, such as that of `/metrics`.

        Raises:
            NoStatus: see `check`, or the body is not UTF-8, or the content type is another one.
        """
        self.check("text/plain", "application/openmetrics-text")
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise self._fault("INTERNAL", "answered text that is not UTF-8") from None

    def check(self, *content_types: str) -> None:
        """Check that the status is 200, and that the content type is one of those given, if any.

        Raises:
            NoStatus: UNAUTHENTICATED for 401 and 403; UNIMPLEMENTED for 404, 405 and 501;
                UNAVAILABLE for 502 to 504; INTERNAL for the others and another content type.
        """
        if 300 <= self.status < 400:
            raise self._fault(
                "INTERNAL",
                f"answered with a redirect ({self.status}), which the monitor does not follow; "
                "register the address that serves the model",
            )
        if self.status in (401, 403):
            raise self._fault(
                "UNAUTHENTICATED",
                f"answered {self.status}: the request has no token, or not the server's; put the "
                "server's token into the file of the setting grpc_token_file",
            )
        if self.status != 200:
            raise self._fault(_CODES.get(self.status, "INTERNAL"), f"answered {self.status}")
        if content_types and self.content_type not in content_types:
            is_html = self.content_type == "text/html"
            other = "HTML" if is_html else repr(self.content_type[:_MAX_QUOTED_LETTERS])
            raise self._fault("INTERNAL", f"answered {other} instead of {content_types[0]}")

    def _fault(self, rpc_error: str, text: str) -> NoStatus:
        return NoStatus(rpc_error, f"GET {self.path}: the server {text}")


# The names of gRPC codes by the statuses of HTTP, except those for which `check` has a sentence.
_CODES = {
    404: "UNIMPLEMENTED",
    405: "UNIMPLEMENTED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}

#: Requests a path, such as `/health`, below the URL of the backend. During one reading each path is
#: requested once: a second call returns the same answer, or raises the same NoStatus. Raises
#: NoStatus if no whole answer of at most 4 MiB has come until the deadline.
Get = Callable[[str], Answer]


class HttpProtocol(abc.ABC):
    """A protocol of servers that speak HTTP. One thread at a time uses an object.

    Args:
        model: the model of the backend.
        busy_when: when the server is BUSY.
    """

    #: The name in settings and answers: one of `domain.protocols.HTTP_PROTOCOLS`.
    name: ClassVar[str]

    def __init__(self, model: str, busy_when: BusyWhen) -> None:
        self.model = model
        self.busy_when = busy_when

    @abc.abstractmethod
    def matches(self, get: Get) -> bool:
        """Whether the server speaks this protocol. It may be loading its model.

        NoStatus of a server that has answered counts as False.
        """

    @abc.abstractmethod
    def read(self, get: Get) -> Status:
        """Read the status.

        Raises:
            NoStatus: the server has given none.
        """


def count(value: object) -> int | None:
    """Return a server's count, such as that of requests; None if it is none: negative or no number.

    A count may be a float without a fraction, as in Prometheus' format.
    """
    figure = amount(value)
    return None if figure is None or figure != int(figure) else int(figure)


def amount(value: object) -> float | None:
    """Return a server's figure; None if it is no number, negative, infinite or over 2**63."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= 2**63 and math.isfinite(value) else None
