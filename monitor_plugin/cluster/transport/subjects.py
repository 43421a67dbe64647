"""The NATS subjects of a cluster. NATS permissions on them separate reading from operations.

An operation is a shutdown, a load or a restart.

NAMESPACE.read.model.MODEL            a request to every node that has the model
NAMESPACE.read.node.NODE              a request to one node
NAMESPACE.shutdown.model.MODEL        a request for offers to stop the model, to its nodes
NAMESPACE.shutdown.node.NODE          a request for an offer of an operation, to one node
NAMESPACE.shutdown.now.NODE.RUN       accepts an offer: that run of the node carries it out
NAMESPACE.nodes.NODE                  a node's announcements to all nodes
NAMESPACE.reply.NODE.RUN.ID.FROM      replies to a request of that run of NODE, from the node FROM

Each monitor process is one run. Two processes with the same node name have different runs.
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
    """The subjects of a namespace.

    Attributes:
        all_announcements: the wildcard for the announcements of all nodes.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.all_announcements = f"{namespace}.nodes.*"

    def read_model(self, model: str) -> str:
        """Return the subject of requests to every node that has a model."""
        return f"{self._namespace}.read.model.{encode_token(model)}"

    def read_node(self, node: str) -> str:
        """Return the subject of requests to one node."""
        return f"{self._namespace}.read.node.{encode_token(node)}"

    def shutdown_model(self, model: str) -> str:
        """Return the subject of requests for offers from every node that has a model."""
        return f"{self._namespace}.shutdown.model.{encode_token(model)}"

    def shutdown_node(self, node: str) -> str:
        """Return the subject of requests for an offer from one node."""
        return f"{self._namespace}.shutdown.node.{encode_token(node)}"

    def shutdown_now(self, node: str, run: str) -> str:
        """Return the subject on which a run of a node receives accepted offers."""
        return f"{self._namespace}.shutdown.now.{encode_token(node)}.{encode_token(run)}"

    def announcements(self, node: str) -> str:
        """Return the subject of a node's announcements."""
        return f"{self._namespace}.nodes.{encode_token(node)}"

    def reply_prefix(self, node: str, run: str) -> str:
        """Return the start of all subjects for replies to a run of a node."""
        return f"{self._namespace}.reply.{encode_token(node)}.{encode_token(run)}"

    def reply_subject(self, reply_to: str, sender: str, responder: str) -> str | None:
        """Return the subject for a node's reply; None if `reply_to` is no subject of the sender.

        So a request can neither direct a reply to a third node, nor to a subject that is not for
        replies.

        Args:
            reply_to: the subject that came with the request.
            sender: the node that the request names as its sender.
            responder: the node that replies.
        """
        start = re.escape(f"{self._namespace}.reply.{encode_token(sender)}.")
        if re.fullmatch(rf"{start}{_ID}\.{_ID}", reply_to) is None:
            return None
        return f"{reply_to}.{encode_token(responder)}"
