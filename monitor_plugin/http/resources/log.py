"""`/backend/log`: what a model's process writes to its standard output and error."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.cluster_view import ClusterView, refuse_other_node
from ...api.requests import (
    parse_count,
    parse_offset,
    parse_pid,
    parse_query,
    parse_required_model,
)
from ...api.schemas import LogAnswer
from ...backends.log_reader import Log
from ...concurrency.blocking import BlockingObserver
from ...domain.errors import InvalidRequest
from ...domain.logs import MAX_LOG_BYTES, STREAMS
from ..messages import send_answer

_DEFAULT_BYTES = 65536


class LogResource:
    """`/backend/log`: the end of a log, or what follows an offset. The guard admits admins alone.

    Args:
        read: reads a log: model, PID, stream, maximum number of bytes, offset. May wait for a hook.
        blocking: entered while the hook may wait.
        cluster: the cluster; None without a cluster. A request for another node is refused.
    """

    def __init__(
        self,
        read: Callable[[str, int | None, str, int, int | None], Log],
        blocking: BlockingObserver,
        cluster: ClusterView | None,
    ) -> None:
        self._read = read
        self._blocking = blocking
        self._cluster = cluster

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with at most `bytes` bytes of `stream`."""
        query = parse_query(request.query_string)
        after = parse_offset(query, "after")
        if not after:  # one audit line for each client that follows a log
            request.context.arguments = {"model": query.get("model"), "pid": None}
        refuse_other_node(query, self._cluster)
        model = parse_required_model(query, "/backend/log")
        pid = parse_pid(query, default=None)
        stream = query.get("stream", "stderr")
        if stream not in STREAMS:
            raise InvalidRequest(f"stream={stream!r} is neither of {' and '.join(STREAMS)}")
        max_bytes = parse_count(query, "bytes", _DEFAULT_BYTES, MAX_LOG_BYTES)
        if not after:
            request.context.arguments = {"model": model, "pid": pid, "stream": stream}
        with self._blocking:
            log = self._read(model, pid, stream, max_bytes, after)
        request.context.outcome = "read"
        send_answer(response, LogAnswer(model=model, stream=stream, **log._asdict()))
