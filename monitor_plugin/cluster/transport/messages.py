"""The messages between nodes, in MessagePack. A receiver ignores unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from ...api.errors import ErrorAnswer
from ...api.results import Response
from ...config.cluster import validate_node, validate_node_url
from ...domain.models import Memory, Reading

# The states of a model on a node that is asked to start it.
LOADED, CLAIMED, STARTABLE, POSSIBLE, LISTED, UNKNOWN = START_STATES = (
    "loaded",  # a backend of it runs, or is being started
    "claimed",  # the node may be about to start it
    "startable",  # a host lists it, and can start it
    "possible",  # a host might start it; no host lists its models
    "listed",  # a host lists it, and says that it cannot start it
    "unknown",
)
# The outcome of each operation that has succeeded.
OUTCOMES = {"shutdown": "stopped", "load": "loaded", "restart": "restarted"}

Message = TypeVar("Message", bound=msgspec.Struct)

# Maximum size of a body in one message, and the size reserved for the message's other fields.
_PART_BYTES = 256 * 1024
_OTHER_FIELDS_BYTES = 16 * 1024


class Caller(msgspec.Struct, frozen=True, rename={"address": "whence"}):
    """The HTTP client on whose behalf a node sends a request.

    Attributes:
        node: the name of the node that sends the request.
        name: the name of the client's token.
        role: `read` or `admin`.
        address: the client's address.
    """

    node: str
    name: str
    role: str
    address: str


class Request(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={"operation": "what", "with_memory": "held"},
):
    """A request to a node.

    Attributes:
        operation: `monitor`, `backends`, `models` or `loaded` on the subjects for reading; `offer`
            on those for shutdowns; `shutdown`, `load` or `restart` on the subject of one run of a
            node.
        with_memory: whether the reply shall also have the memory of the model's backends if the
            reading has no status.
        after_pid: for a list: only backends with a greater PID.
        limit: for a list: maximum number of backends.
        gpus_only: for a list: list only GPUs. A node of an older version, which does not know this
            field, lists backends.
        offer: the key of the offer that a shutdown, a load or a restart accepts.
        action: for an offer: `load` or `restart`; None for a shutdown. A node of an older version,
            which does not know this field, offers a shutdown.
    """

    operation: str
    caller: Caller
    model: str | None = None
    pid: int | None = None
    with_memory: bool = False
    fresh: bool = True
    after_pid: int | None = None
    limit: int | None = None
    gpus_only: bool = False
    force: bool = False
    offer: str | None = None
    action: str | None = None


class Reply(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={
        "memory": "held",
        "memory_source": "held_source",
        "memory_age_seconds": "held_age_seconds",
    },
):
    """A node's reply to a request, or a part of it.

    Attributes:
        node: the name of the node that replies.
        run: the run of that node, as in `subjects.py`.
        kind: `answer`, `offer` (the node would carry out the operation), `loaded` (it has the
            model), `working` (the answer follows) or `invalid` (see `checked_reply`).
        answer: the HTTP response, or a part of its body.
        reading: the reading in `answer`, to be combined with the readings of other nodes.
        memory, memory_source, memory_age_seconds: the memory of the model's backends, if the
            request asked for it.
        offer: the key with which a shutdown, a load or a restart accepts the offer.
        state: for the offer of a load or a restart: one of `START_STATES`; None from a node of an
            older version, which starts no models.
        last: whether no further part follows.
    """

    node: str
    run: str
    kind: str = "answer"
    answer: Response | None = None
    reading: Reading | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    memory_age_seconds: float | None = None
    offer: str | None = None
    state: str | None = None
    last: bool = True


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node's announcement of itself, published after a change and every few seconds.

    Attributes:
        node, run: the node's name and run, as in `Reply`.
        revision: grows with each change of the models.
        url: the URL of the node's HTTP server; None if other machines cannot reach the server.
        models: the node's models; None in a heartbeat, which says only their revision.
        leaving: whether the node leaves the cluster.
    """

    node: str
    run: str
    revision: int
    url: str | None = None
    models: list[str] | None = None
    leaving: bool = False


def pack(message: msgspec.Struct) -> bytes:
    """Encode a message."""
    return msgspec.msgpack.encode(message)


def unpack(data: bytes, kind: type[Message]) -> Message | None:
    """Decode a message; None if the data is not a message of that type."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def unpack_announcement(data: bytes) -> Announcement | None:
    """Decode an announcement; None if the data is not one. An unusable URL becomes None."""
    announcement = unpack(data, Announcement)
    if announcement is None:
        return None
    try:
        validate_node(announcement.node)
    except ValueError:
        return None
    try:
        if announcement.url is not None:
            validate_node_url(announcement.url)
    except ValueError:
        return msgspec.structs.replace(announcement, url=None)
    return announcement


def checked_reply(reply: Reply, request: Request) -> Reply:
    """Return the reply if it is well-formed and answers the request; else one of kind `invalid`."""
    if reply.kind == "working" or _is_answer_to(reply, request):
        return reply
    return Reply(reply.node, reply.run, "invalid")


def _is_answer_to(reply: Reply, request: Request) -> bool:
    if reply.kind == "loaded":
        return request.operation == "loaded"
    if reply.kind == "offer":
        is_known = reply.state is None or reply.state in START_STATES
        return request.operation == "offer" and bool(reply.offer) and is_known
    if reply.kind != "answer" or reply.answer is None:
        return False
    status, outcome = reply.answer.status, reply.answer.outcome
    try:
        body: type = dict[str, msgspec.Raw] if status == 200 else ErrorAnswer
        msgspec.json.decode(reply.answer.body, type=body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    is_error = 400 <= status <= 599
    if not (is_error or status == 200):
        return False
    if request.operation == "loaded":
        return False
    if request.operation == "offer":
        return is_error and outcome not in OUTCOMES.values()
    if request.operation in OUTCOMES:
        return is_error != (outcome == OUTCOMES[request.operation])
    return is_error or request.operation != "monitor" or reply.reading is not None


def split_reply(reply: Reply, max_bytes: int) -> list[bytes]:
    """Encode a reply as messages of at most `max_bytes`, by dividing its body.

    A reply whose other fields do not fit into one message becomes one of kind `invalid`.
    """
    answer = reply.answer
    size = max(1024, min(_PART_BYTES, max_bytes - _OTHER_FIELDS_BYTES))
    if answer is None or len(answer.body) <= size:
        parts = [pack(reply)]
    else:
        bodies = [answer.body[at : at + size] for at in range(0, len(answer.body), size)]
        first = msgspec.structs.replace(reply, reading=None, memory=None, last=False)
        parts = [pack(_with_body(first, body)) for body in bodies[:-1]]
        parts.append(pack(_with_body(reply, bodies[-1])))
    if any(len(part) > max_bytes for part in parts):
        return [pack(Reply(reply.node, reply.run, "invalid"))]
    return parts


def join_parts(parts: list[Reply]) -> Reply:
    """Join the parts of a reply in their order. The other fields are the last part's."""
    if len(parts) == 1:
        return parts[0]
    return _with_body(parts[-1], b"".join(part.answer.body for part in parts if part.answer))


def _with_body(reply: Reply, body: bytes) -> Reply:
    assert reply.answer is not None
    answer = msgspec.structs.replace(reply.answer, body=body)
    return msgspec.structs.replace(reply, answer=answer)


def with_headers(answer: Response, headers: Mapping[str, str]) -> Response:
    """Return a copy of the answer with more headers."""
    return msgspec.structs.replace(answer, headers={**answer.headers, **headers})
