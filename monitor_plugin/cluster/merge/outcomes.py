"""Merges the outcomes of an operation on several nodes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...api.errors import ErrorAnswer, encode_error, error_kind
from ...api.results import Response
from ...domain.errors import MonitorError, NodeForbidden, OutcomeUnknown
from ..requests.client import PeerResult
from .readings import answer_of


def only_answer(result: PeerResult) -> Response:
    """Return the answer of the only node, or raise its error."""
    if result.reply is None:
        assert result.error is not None
        raise result.error
    return answer_of(result.reply)


def outcome_of(result: PeerResult) -> str | None:
    """Return the outcome of the operation on a node; None if its answer has none."""
    if result.error is not None:
        return error_kind(result.error).type
    answer = result.reply.answer if result.reply else None
    return answer.outcome if answer else None


def merge_failures(
    model: str,
    failed: Sequence[PeerResult],
    done: str | None,
    default: MonitorError,
    headers: dict[str, str],
) -> Response:
    """Merge the failures of several nodes into the response to the worst one.

    Args:
        model: the model's name.
        failed: the nodes on which the operation failed.
        done: on which nodes the operation succeeded, as a clause; None if on none.
        default: the error of a node whose answer has no outcome.
        headers: headers of the response.
    """
    worst = min(failed, key=_rank)
    messages = [_message(each) for each in failed]
    if done:
        messages.append(done)
    kind = error_kind(worst.error or default)
    if worst.reply and worst.reply.answer:
        answer = worst.reply.answer
        if not (done and answer.status == 503):  # a 503 means that nothing was done
            kind = kind._replace(status=answer.status, type=answer.outcome or kind.type)
            headers = {**answer.headers, **headers}  # such as `Retry-After`
    message = f"model {model!r}: " + "; ".join(messages)
    return Response(kind.status, encode_error(kind, message), headers, kind.type)


def _rank(result: PeerResult) -> int:
    """Rank failures: 0 outcome unknown, 1 failed, 2 nothing was done, 3 request forbidden."""
    if isinstance(result.error, OutcomeUnknown):
        return 0
    if result.reply and result.reply.answer and result.reply.answer.status != 503:
        return 1
    return 3 if isinstance(result.error, NodeForbidden) else 2


def _message(result: PeerResult) -> str:
    if result.error is not None:
        return str(result.error)
    assert result.reply is not None
    assert result.reply.answer is not None
    message = msgspec.json.decode(result.reply.answer.body, type=ErrorAnswer).error.message
    return f"node {result.node!r}: {message}"
