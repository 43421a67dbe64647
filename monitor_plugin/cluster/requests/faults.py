"""What is said where another node gave no answer."""

from __future__ import annotations

from urllib.parse import quote

from ...domain.errors import (
    ClusterError,
    MonitorError,
    NodeForbidden,
    NodeUnreachable,
    OutcomeUnknown,
)
from ..transport.pending_requests import Failure


def no_answer(node: str, word: Failure | None, subject: str, *, stopping: bool) -> ClusterError:
    """Say why a node gave no answer to a question that changes nothing.

    Args:
        node: its name; empty where it is not known who should have answered.
        word: what was heard instead; None where nothing was.
        subject: where it was asked.
        stopping: whether a shutdown was to follow.
    """
    nodes = [node] if node else []
    if word is Failure.FORBIDDEN:
        return NodeForbidden(
            f"NATS does not let this node publish to {subject}: its NATS user may not "
            f"{'stop' if stopping else 'read'} models on other nodes"
            f"{'; nothing was stopped there' if stopping else ''}",
            nodes,
        )
    if word is Failure.LOST:
        why = "the connection to NATS ended while it was asked"
    elif word is Failure.NO_RESPONDERS:
        why = "it is not connected to NATS: its monitor ended, or its link is down"
    else:
        why = "it does not answer in time: it hangs, or its link is down"
    if not node:
        return NodeUnreachable(
            f"no node could be found that has the model, nor that none has: {why}; ask again, "
            "or GET /backends"
        )
    rest = (
        "; it was not told to stop anything, and what runs there is unknown: ask "
        f"GET /backends?node={quote(node)}"
    )
    return NodeUnreachable(f"node {node!r} cannot be reached: {why}{rest * stopping}", nodes)


def nonsense(node: str) -> NodeUnreachable:
    """Say that a node's answer makes no sense."""
    return NodeUnreachable(
        f"node {node!r} gave an answer that cannot be understood, or is too large: it may be of "
        "another version",
        [node],
    )


def not_sent(node: str, error: ClusterError) -> NodeUnreachable:
    """Say that a question to a node was certainly not sent."""
    return NodeUnreachable(f"node {node!r} cannot be asked: {error}", [node])


def unknown(node: str, model: str, why: str) -> OutcomeUnknown:
    """Say that a node was told to stop a model, and that it is not known whether it did."""
    return OutcomeUnknown(
        f"the outcome is unknown: node {node!r} was told to stop model {model!r}, and {why}; "
        f"it may have stopped it or not: ask {_what_to_ask(node, model)}",
        [node],
    )


def closing(node: str, model: str, error: MonitorError) -> OutcomeUnknown:
    """Say that this monitor ended while another node, or none, was stopping a model.

    Args:
        node: that node; empty where none was known to have it.
        model: the model.
        error: why nothing more is heard.
    """
    where = f"on node {node!r}" if node else "on other nodes"
    return OutcomeUnknown(
        f"the outcome is unknown {where}: {error}; model {model!r} may have been stopped "
        f"there or not: ask another node's monitor {_what_to_ask(node, model)}",
        [node] if node else [],
    )


def _what_to_ask(node: str, model: str) -> str:
    model, node = quote(model, safe=""), quote(node)
    if not node:
        return f"GET /backend/monitor?model={model}, or GET /backends"
    return f"GET /backend/monitor?model={model}&node={node}, or GET /backends?node={node}"
