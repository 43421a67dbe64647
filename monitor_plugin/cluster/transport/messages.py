"""What nodes say to one another, in MessagePack; unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from ...api.results import ErrorAnswer, Response
from ...config.cluster import fault_in_node, fault_in_node_url
from ...domain.models import Memory, Reading

Message = TypeVar("Message", bound=msgspec.Struct)

# How much of a body goes into one message, and what a message takes beside it.
_PART_BYTES = 256 * 1024
_FRAME_BYTES = 16 * 1024


class Caller(msgspec.Struct, frozen=True):
    """Who asks, as the node found out to which it came over HTTP.

    Attributes:
        node: that node.
        name: of the token.
        role: `read` or `admin`.
        whence: the client's address.
    """

    node: str
    name: str
    role: str
    whence: str


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question to a node.

    Attributes:
        what: `monitor`, `backends`, `models`, `loaded`; on the subjects for shutdowns `offer`, and
            `shutdown` on that of a node's run.
        held: to say also what the model's backends hold, where the reading has no status.
        after_pid, limit: of a list: only backends with greater PIDs, and how many.
        offer: which offer a shutdown takes up.
    """

    what: str
    caller: Caller
    model: str | None = None
    pid: int | None = None
    held: bool = False
    fresh: bool = True
    after_pid: int | None = None
    limit: int | None = None
    force: bool = False
    offer: str | None = None


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node's answer, or a part of it.

    Attributes:
        node, run: which answers, and of which run it is.
        kind: `answer`, `offer` (it has the model, and would stop it), `loaded` (it has it),
            `working` (the answer follows), or what `understood` makes of others.
        answer: what HTTP would answer; its body may go on in further parts.
        reading: of which `answer` is made, for one reading out of several nodes'.
        held, held_source: what the model's backends hold, where that was asked for.
        offer: by which to take the offer up.
        last: whether no further part comes.
    """

    node: str
    run: str
    kind: str = "answer"
    answer: Response | None = None
    reading: Reading | None = None
    held: Memory | None = None
    held_source: str | None = None
    offer: str | None = None
    last: bool = True


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself, when something changed and every few seconds.

    Attributes:
        node: its name.
        run: which run of it.
        revision: grows with each change of the models.
        url: where its HTTP is reached; None where it cannot be from elsewhere.
        models: which it has; None where the revision says enough.
        leaving: whether it ends.
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
    """Decode a message; None where it is none of that kind."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def understood(reply: Reply) -> Reply:
    """Pass a reply through that can be used; one that cannot becomes one of kind `nonsense`."""
    answer = reply.answer
    if reply.kind in ("working", "loaded") or (reply.kind == "offer" and reply.offer):
        good = True
    elif reply.kind != "answer" or answer is None:
        good = False
    else:
        kind: type = dict[str, msgspec.Raw] if answer.status == 200 else ErrorAnswer
        good = answer.status == 200 or 400 <= answer.status <= 599
        try:
            msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            good = False
    return reply if good else Reply(reply.node, reply.run, "nonsense")


def fitting(reply: Reply, ask: Ask) -> Reply:
    """Pass a reply through that answers the question; one that does not becomes `nonsense`."""
    status = reply.answer.status if reply.answer else 0
    stopped = reply.answer is not None and reply.answer.outcome == "stopped"
    if ask.what == "loaded":
        good = reply.kind == "loaded"
    elif ask.what == "offer":
        good = reply.kind == "offer" or (status >= 400 and not stopped)
    elif ask.what == "shutdown":
        good = reply.kind == "answer" and (status == 200) == stopped
    elif ask.what == "monitor":
        good = status >= 400 or (status == 200 and reply.reading is not None)
    else:
        good = reply.kind == "answer"
    return reply if good else Reply(reply.node, reply.run, "nonsense")


def announced(data: bytes) -> Announcement | None:
    """Decode what a node says of itself; None where it is nothing of the kind."""
    said = unpack(data, Announcement)
    if said is None or fault_in_node(said.node):
        return None
    if said.url is not None and fault_in_node_url(said.url):
        return msgspec.structs.replace(said, url=None)
    return said


def parts_of(reply: Reply, most_bytes: int) -> list[bytes]:
    """Encode a reply as messages, of which none has more than `most_bytes`.

    What goes along with a body, and is too large itself, becomes nonsense.
    """
    answer = reply.answer
    size = max(1024, min(_PART_BYTES, most_bytes - _FRAME_BYTES))
    if answer is None or len(answer.body) <= size:
        parts = [pack(reply)]
    else:
        pieces = [answer.body[at : at + size] for at in range(0, len(answer.body), size)]
        first = msgspec.structs.replace(reply, reading=None, held=None, last=False)
        parts = [pack(_with_body(first, piece)) for piece in pieces[:-1]]
        parts.append(pack(_with_body(reply, pieces[-1])))
    if any(len(part) > most_bytes for part in parts):
        return [pack(Reply(reply.node, reply.run, "nonsense"))]
    return parts


def join_parts(parts: list[Reply]) -> Reply:
    """Put a reply together again, of parts in their order; the last has what goes with it."""
    if len(parts) == 1:
        return parts[0]
    return _with_body(parts[-1], b"".join(part.answer.body for part in parts if part.answer))


def _with_body(reply: Reply, body: bytes) -> Reply:
    assert reply.answer is not None
    answer = msgspec.structs.replace(reply.answer, body=body)
    return msgspec.structs.replace(reply, answer=answer)


def with_headers(answer: Response, headers: Mapping[str, str]) -> Response:
    """Give the same answer with more headers."""
    return msgspec.structs.replace(answer, headers={**answer.headers, **headers})
