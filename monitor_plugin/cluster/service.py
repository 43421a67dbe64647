"""The whole cluster's answers: this node's and others', made into one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from ..api.cluster_schemas import TargetGroup
from ..api.cluster_view import NODE_HEADER, Requester
from ..api.results import Response, error_response
from ..config.cluster import validate_node
from ..domain.errors import InvalidRequest, ModelNotLoaded, MonitorError, NodeUnreachable
from .merge.lists import ClusterLists
from .merge.readings import answer_of, merge_readings
from .merge.shutdowns import ClusterShutdowns
from .peers.directory import Peer, PeerDirectory
from .requests.client import SILENT_SECONDS, PeerClient, PeerResult
from .requests.local_node import LocalNode
from .transport.messages import Caller, Request
from .transport.nats_link import NatsLink

# Questions after models that nobody is known to have, which may each wait for as long as they may.
_MOST_UNKNOWN_AT_ONCE = 50
# How long who has a model is kept waiting for the first word of the others that have it.
_FIRST_WORD_SECONDS = 0.5


class ClusterService:
    """Answers for all nodes, on the threads of who asks.

    Args:
        local_node: this node's answers.
        link: the connection to the others.
        asking: asks them.
        directory: which there are.

    Attributes:
        node: this node's name.
        url: where this monitor's HTTP is reached; None where it cannot be from elsewhere.
    """

    def __init__(
        self, local_node: LocalNode, link: NatsLink, asking: PeerClient, directory: PeerDirectory
    ) -> None:
        self.node = local_node.node
        self._local_node = local_node
        self._link = link
        self._asking = asking
        self._directory = directory
        self._lists = ClusterLists(local_node, link, asking, directory)
        self._stops = ClusterShutdowns(local_node, link, asking)
        self._unknown_reads = threading.BoundedSemaphore(_MOST_UNKNOWN_AT_ONCE)
        self.url: str | None = None

    def monitor(
        self, model: str, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Read a model, wherever it is; errors are answers too."""
        ask = Request("monitor", self._caller(requester), model, pid)
        return self._told(lambda: self._monitor(model, ask, node))

    def shutdown(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Stop a model on every node that has it, or on one; errors are answers too."""
        ask = Request("offer", self._caller(requester), model, pid, force=force)

        def stop() -> Response:
            here, holders = self._where(model, pid, node, stopping=True)
            one = node is not None or (pid is not None and (here or bool(holders)))
            return self._stops.stop(ask, here, holders, one)

        return self._told(stop)

    def backends(
        self, model: str | None, fresh: bool, query: Mapping[str, str], requester: Requester
    ) -> Response:
        """List the backends of all nodes; `node`, `limit` and `after` of the query narrow."""
        ask = Request("backends", self._caller(requester), model=model, fresh=fresh)

        def read() -> Response:
            node = query.get("node")
            self._check(node)
            return self._lists.backends(ask, node, query, self.urls())

        return self._told(read)

    def targets(self) -> Response:
        """List all nodes as Prometheus' service discovery by HTTP wants it."""
        groups = []
        for node, url in sorted(self.urls().items()):
            if url is None:
                continue
            parts = urlsplit(url)
            labels = {"node": node}
            if parts.scheme != "http":
                labels["__scheme__"] = parts.scheme
            if parts.path.rstrip("/"):
                labels["__metrics_path__"] = f"{parts.path.rstrip('/')}/metrics"
            port = "" if parts.port else {"http": ":80", "https": ":443"}[parts.scheme]
            groups.append(TargetGroup([parts.netloc + port], labels))
        return Response(200, msgspec.json.encode(groups))

    def urls(self) -> dict[str, str | None]:
        """List all nodes, and where their HTTP is reached."""
        others = {each.name: each.url for each in self._directory.peers()}
        return {**others, self._local_node.node: self.url}

    def _caller(self, requester: Requester) -> Caller:
        return Caller(self._local_node.node, requester.name, requester.role, requester.whence)

    def _told(self, make: Callable[[], Response]) -> Response:
        """Answer, errors too, and say that it is this node which does, unless others had part.

        Whoever sent it, there are no headers but the monitor's own, and nothing odd in them.
        """
        try:
            answer = make()
        except MonitorError as error:
            answer = error_response(error)
        headers = {
            name: value
            for name, value in {NODE_HEADER: self._local_node.node, **answer.headers}.items()
            if name.startswith("X-Monitor-") or name == "Retry-After"
            if f"{name}{value}".isprintable() and f"{name}{value}".isascii()
        }
        return msgspec.structs.replace(answer, headers=headers)

    def _monitor(self, model: str, ask: Request, node: str | None) -> Response:
        here, holders = self._where(model, ask.pid, node, stopping=False)
        if here and not holders:
            return answer_of(self._local_node.monitor(model, ask.pid))
        if not here and len(holders) == 1:
            result = self._link.run(self._asking.read(holders[0].name, ask))
            answer = merge_readings([result])
            if node is not None or answer.outcome != "model_not_loaded":
                return answer
            holders = []  # it has gone since: to another node, perhaps
        if not holders:
            return self._read_unknown(model, ask)
        ask = msgspec.structs.replace(ask, with_memory=True)
        # What is here does not wait for those that did not answer the last time, and for others
        # no longer than for a word that they are at it.
        skipped = [each.name for each in holders if here and each.silent]
        awaited = [each.name for each in holders if each.name not in skipped]
        first_seconds = _FIRST_WORD_SECONDS if here else math.inf
        asked = self._link.submit(self._asking.read_all(awaited, ask, first_seconds))
        results = [PeerResult(each, None, NodeUnreachable("", [each])) for each in skipped]
        if here:
            reply = self._local_node.monitor(model, ask.pid, with_memory=True)
            results.append(PeerResult(self._local_node.node, reply, None))
        try:
            results += asked.result()
        except MonitorError as error:  # the monitor is closing
            results += [PeerResult(each, None, error) for each in awaited]
        return merge_readings(results)

    def _where(
        self, model: str, pid: int | None, node: str | None, *, stopping: bool
    ) -> tuple[bool, Sequence[Peer]]:
        """Say whether this node is to be asked, and which others.

        In containers PIDs coincide, so that one that is here too is stopped by `node` alone.

        Raises:
            InvalidRequest: a PID could mean one of several nodes'.
        """
        if node is not None:
            self._check(node)
            if node == self._local_node.node:
                return True, []
            return False, [self._directory.get(node) or Peer(node)]
        here = self._local_node.holds(model)
        holders = self._directory.holders(model)
        if pid is None or not holders:
            return here, holders
        if not stopping and self._local_node.holds(model, pid):
            return True, []
        if here or len(holders) > 1:
            names = [*([self._local_node.node] if here else []), *(each.name for each in holders)]
            raise InvalidRequest(
                f"model {model!r} is on the nodes {', '.join(names)}, and a PID is that of one "
                "node: say which, by node=NAME"
            )
        return False, holders

    def _check(self, node: str | None) -> None:
        if node is not None:
            try:
                validate_node(node)
            except ValueError as error:
                raise InvalidRequest(str(error)[:200]) from None

    def _read_unknown(self, model: str, ask: Request) -> Response:
        # Where NATS hangs, they must not take the threads that answer for what is here.
        if not self._unknown_reads.acquire(timeout=SILENT_SECONDS):
            raise NodeUnreachable(
                f"model {model!r} is not loaded here, and {_MOST_UNKNOWN_AT_ONCE} questions to "
                "other nodes wait for an answer already: ask again"
            )
        try:
            results = self._link.run(self._asking.read_holders(model, ask))
        finally:
            self._unknown_reads.release()
        if results is None:
            raise ModelNotLoaded(
                model, self._local_node.describe_last_exit(model), on_any_node=True
            )
        return merge_readings(results)
