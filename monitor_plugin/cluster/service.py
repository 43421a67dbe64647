"""Answers requests about the models of all nodes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from ..api.cluster_view import NODE_HEADER, Requester
from ..api.errors import error_response, load_failed_response
from ..api.results import Response
from ..api.schemas import TargetGroup
from ..concurrency.blocking import BlockingObserver
from ..config.cluster import validate_node
from ..domain.errors import InvalidRequest, ModelNotLoaded, MonitorError, NodeUnreachable
from .merge.lists import ClusterLists
from .merge.readings import answer_of, merge_readings
from .merge.shutdowns import ClusterShutdowns
from .merge.starts import ClusterStarts
from .peers.directory import Peer, PeerDirectory
from .requests.client import SILENT_SECONDS, PeerClient, PeerResult
from .requests.local_node import LocalNode
from .transport.messages import Caller, Request
from .transport.nats_link import NatsLink

# Maximum number of concurrent readings of models that no node is known to have. Each may wait until
# its deadline.
_MAX_UNKNOWN_READS = 50
# If this node has a model, its maximum wait for the first reply of the peers that have it too.
_FIRST_REPLY_SECONDS = 0.5


class ClusterService:
    """Answers requests for all nodes, on the threads of the HTTP server.

    Args:
        local_node: answers for this node.
        link: the connection to NATS.
        client: sends requests to nodes.
        directory: the other nodes.
        blocking: is entered while a thread waits for other nodes.

    Attributes:
        node: the name of this node.
        url: the URL of this monitor's HTTP server; None if other machines cannot reach it.
    """

    def __init__(
        self,
        local_node: LocalNode,
        link: NatsLink,
        client: PeerClient,
        directory: PeerDirectory,
        blocking: BlockingObserver,
    ) -> None:
        self.node = local_node.node
        self.url: str | None = None
        self._local_node = local_node
        self._link = link
        self._client = client
        self._directory = directory
        self._blocking = blocking
        self._lists = ClusterLists(self.node, link, client)
        self._shutdowns = ClusterShutdowns(local_node, link, client)
        self._starts = ClusterStarts(local_node, link, client, directory)
        self._unknown_reads = threading.BoundedSemaphore(_MAX_UNKNOWN_READS)

    def monitor(
        self, model: str, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Read a model on the nodes that have it, or on one. An error becomes a response too."""
        request = Request("monitor", self._caller(requester), model, pid)
        return self._respond(lambda: self._monitor(model, node, request))

    def shutdown(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Stop a model on every node that has it, or on one. An error becomes a response too."""
        request = Request("shutdown", self._caller(requester), model, pid, force=force)
        return self._respond(lambda: self._shutdown(model, node, request))

    def load(self, model: str, node: str | None, requester: Requester) -> Response:
        """Start a model on a node that knows it, or on one. An error becomes a response too."""
        request = Request("load", self._caller(requester), model)
        return self._respond(lambda: self._start(node, request), load_failed_response)

    def restart(
        self, model: str, force: bool, pid: int | None, node: str | None, requester: Requester
    ) -> Response:
        """Restart a model on every node that has it, or on one. An error becomes a response too."""
        request = Request("restart", self._caller(requester), model, pid, force=force)
        return self._respond(lambda: self._start(node, request), load_failed_response)

    def backends(
        self, model: str | None, fresh: bool, query: Mapping[str, str], requester: Requester
    ) -> Response:
        """List the backends of all nodes. `node`, `limit` and `after` of the query select some."""
        request = Request("backends", self._caller(requester), model=model, fresh=fresh)
        return self._respond(lambda: self._backends(query, request))

    def gpus(self, query: Mapping[str, str], requester: Requester) -> Response:
        """List the GPUs of all nodes, or of the `node` of the query."""
        # A node of an older version answers with an empty page of its backends.
        request = Request(
            "backends",
            self._caller(requester),
            fresh=False,
            after_pid=0,
            limit=0,
            gpus_only=True,
        )
        return self._respond(lambda: self._gpus(query, request))

    def targets(self) -> Response:
        """List the nodes in the format of Prometheus' service discovery by HTTP."""
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
        """Return the HTTP URL of each node, by its name; None if other machines cannot reach it."""
        return {**{each.name: each.url for each in self._directory.peers()}, self.node: self.url}

    def _caller(self, requester: Requester) -> Caller:
        return Caller(self.node, requester.name, requester.role, requester.address)

    def _respond(
        self,
        answer: Callable[[], Response],
        fail: Callable[[MonitorError], Response] = error_response,
    ) -> Response:
        """Return the response, or that of the error, which `fail` makes.

        `X-Monitor-Node` names this node unless the response has that header. Only `X-Monitor-*` and
        `Retry-After` in printable ASCII are kept, because a peer may have set other headers.
        """
        try:
            response = answer()
        except MonitorError as error:
            response = fail(error)
        headers = {
            name: value
            for name, value in {NODE_HEADER: self.node, **response.headers}.items()
            if name.startswith("X-Monitor-") or name == "Retry-After"
            if f"{name}{value}".isprintable() and f"{name}{value}".isascii()
        }
        return msgspec.structs.replace(response, headers=headers)

    def _monitor(self, model: str, node: str | None, request: Request) -> Response:
        is_local, holders = self._locate(model, request.pid, node, stopping=False)
        if is_local and not holders:
            return answer_of(self._local_node.answer(request))
        if not is_local and len(holders) == 1:
            response = merge_readings(self._client.read_nodes({holders[0].name: request}))
            if node is not None or response.outcome != "model_not_loaded":
                return response
            holders = []  # the model has left that node, perhaps for another one
        if not holders:
            return self._read_unknown(model, request)
        # If this node has the model, the reading skips silent peers, and waits only a short time
        # for the first reply of the others.
        skipped = [each.name for each in holders if is_local and each.silent]
        nodes = [each.name for each in holders if each.name not in skipped]
        if is_local:
            nodes.append(self.node)
        request = msgspec.structs.replace(request, with_memory=True)
        first_seconds = _FIRST_REPLY_SECONDS if is_local else math.inf
        results = self._client.read_nodes(dict.fromkeys(nodes, request), first_seconds)
        silent = [PeerResult(each, error=NodeUnreachable("", [each])) for each in skipped]
        return merge_readings([*results, *silent])

    def _shutdown(self, model: str, node: str | None, request: Request) -> Response:
        pid = request.pid
        is_local, holders = self._locate(model, pid, node, stopping=True)
        if is_local and (node is not None or pid is not None):
            return answer_of(self._local_node.answer(request))
        one_peer = node is not None or (pid is not None and bool(holders))
        return self._shutdowns.shutdown(request, is_local, holders, one_peer)

    def _start(self, node: str | None, request: Request) -> Response:
        if node is not None:
            _validate_node(node)
        return self._starts.start(request, node)

    def _backends(self, query: Mapping[str, str], request: Request) -> Response:
        node = query.get("node")
        if node is not None:
            _validate_node(node)
        return self._lists.backends(request, node, query, self.urls())

    def _gpus(self, query: Mapping[str, str], request: Request) -> Response:
        node = query.get("node")
        if node is not None:
            _validate_node(node)
        return self._lists.gpus(request, node, self.urls())

    def _locate(
        self, model: str, pid: int | None, node: str | None, *, stopping: bool
    ) -> tuple[bool, Sequence[Peer]]:
        """Return whether this node is to answer a request, and which peers are.

        Two containers can have the same PIDs. Therefore a PID of this node suffices to read a
        backend, but not to stop it if other nodes have the model too.

        Raises:
            InvalidRequest: the PID could be that of several nodes.
        """
        if node is not None:
            _validate_node(node)
            if node == self.node:
                return True, []
            return False, [self._directory.get(node) or Peer(node)]
        is_local = self._local_node.has(model, stopping=stopping)
        holders = self._directory.holders(model)
        if pid is None or not holders:
            return is_local, holders
        if not stopping and self._local_node.has(model, pid):
            return True, []
        if is_local or len(holders) > 1:
            names = [*([self.node] if is_local else []), *(each.name for each in holders)]
            raise InvalidRequest(
                f"model {model!r} is on the nodes {', '.join(names)}, and a PID is that of one "
                "node: say which, by node=NAME"
            )
        return False, holders

    def _read_unknown(self, model: str, request: Request) -> Response:
        """Read a model that no node is known to have, by a request to all nodes."""
        # While NATS hangs, these requests must not take all threads of the HTTP server.
        with self._blocking:
            if not self._unknown_reads.acquire(timeout=SILENT_SECONDS):
                raise NodeUnreachable(
                    f"model {model!r} is not loaded here, and {_MAX_UNKNOWN_READS} questions to "
                    "other nodes wait for an answer already: ask again"
                )
            try:
                results = self._link.run(self._client.request_holders(model, request))
            finally:
                self._unknown_reads.release()
        if results is None:
            ended = self._local_node.describe_last_exit(model)
            raise ModelNotLoaded(model, ended, on_any_node=True)
        return merge_readings(results)


def _validate_node(node: str) -> None:
    try:
        validate_node(node)
    except ValueError as error:
        raise InvalidRequest(str(error)[:200]) from None
