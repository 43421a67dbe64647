"""The NATS subjects of a cluster. NATS permissions on them separate reading from stopping.

NAMESPACE.read.model.MODEL            a request to every node that has the model
NAMESPACE.read.node.NODE              a request to one node
NAMESPACE.shutdown.model.MODEL        asks every node that has the model whether it would stop it
NAMESPACE.shutdown.node.NODE          asks one node whether it would stop a model
NAMESPACE.shutdown.now.NODE.RUN       tells one run of a node to stop the model that it offered
NAMESPACE.nodes.NODE                  a node's announcements to all nodes
NAMESPACE.reply.NODE.RUN.ID.FROM      replies to that run of a node, from the node FROM

Each monitor process is one run: two nodes of the same name have two runs.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_ID = "[0-9A-Za-z]+"


def encode_token(text: str) -> str:
    """Encode any text as one token of a subject; different texts give different tokens.

    Each unsafe byte becomes `=` and two hexadecimal digits: `org/llama` becomes `org=2Fllama`.
    """
    return _UNSAFE.sub(lambda found: b"=%02X" % found[0][0], text.encode()).decode()


class Subjects:
    """The subjects of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.all_nodes = f"{namespace}.nodes.*"

    def read_model(self, model: str) -> str:
        """Requests to every node that has a model."""
        return f"{self._namespace}.read.model.{encode_token(model)}"

    def read_node(self, node: str) -> str:
        """Requests to one node."""
        return f"{self._namespace}.read.node.{encode_token(node)}"

    def shutdown_model(self, model: str) -> str:
        """Requests for offers from every node that has a model."""
        return f"{self._namespace}.shutdown.model.{encode_token(model)}"

    def shutdown_node(self, node: str) -> str:
        """Requests for an offer from one node."""
        return f"{self._namespace}.shutdown.node.{encode_token(node)}"

    def shutdown_now(self, node: str, run: str) -> str:
        """Shutdowns that a run of a node has offered."""
        return f"{self._namespace}.shutdown.now.{encode_token(node)}.{encode_token(run)}"

    def node(self, node: str) -> str:
        """A node's announcements."""
        return f"{self._namespace}.nodes.{encode_token(node)}"

    def reply_prefix(self, node: str, run: str) -> str:
        """The start of all subjects for replies to a run of a node."""
        return f"{self._namespace}.reply.{encode_token(node)}.{encode_token(run)}"

    def reply_subject(self, reply_to: str, requester: str, responder: str) -> str | None:
        """The subject for a node's reply; None if `reply_to` is not a subject of the requester.

        This check keeps a node from sending replies to another node, or to subjects that are not
        for replies.

        Args:
            reply_to: the subject that came with the request.
            requester: the node that the request names as its sender.
            responder: the node that replies.
        """
        start = re.escape(f"{self._namespace}.reply.{encode_token(requester)}.")
        if re.fullmatch(rf"{start}{_ID}\.{_ID}", reply_to) is None:
            return None
        return f"{reply_to}.{encode_token(responder)}"
