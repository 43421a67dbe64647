"""The NATS subjects of a cluster, so cut that NATS' permissions can tell who may do what.

NAMESPACE.read.model.MODEL            asks every node that has the model
NAMESPACE.read.node.NODE              asks one node
NAMESPACE.shutdown.model.MODEL        asks every node that has the model whether it would stop it
NAMESPACE.shutdown.node.NODE          asks one node
NAMESPACE.shutdown.now.NODE.RUN       tells that run of a node to stop what it was asked about
NAMESPACE.nodes.NODE                  what a node says of itself, to all
NAMESPACE.reply.NODE.RUN.ID.FROM      answers to that run of a node, by the node FROM

A run is one monitor process's: two nodes of one name have two.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_OPAQUE = "[0-9A-Za-z]+"


def encode_token(text: str) -> str:
    """Make one token of a subject of any text: what is not safe there becomes `=` and two digits.

    Different texts give different tokens; `org/llama` gives `org=2Fllama`.
    """
    return _UNSAFE.sub(lambda found: b"=%02X" % found[0][0], text.encode()).decode()


class Subjects:
    """The subjects of a namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.all_nodes = f"{namespace}.nodes.*"

    def read_model(self, model: str) -> str:
        """Asks every node that has the model."""
        return f"{self._namespace}.read.model.{encode_token(model)}"

    def read_node(self, node: str) -> str:
        """Asks one node."""
        return f"{self._namespace}.read.node.{encode_token(node)}"

    def shutdown_model(self, model: str) -> str:
        """Asks every node that has the model whether it would stop it."""
        return f"{self._namespace}.shutdown.model.{encode_token(model)}"

    def shutdown_node(self, node: str) -> str:
        """Asks one node whether it would stop a model."""
        return f"{self._namespace}.shutdown.node.{encode_token(node)}"

    def shutdown_now(self, node: str, run: str) -> str:
        """Tells a run of a node to stop a model."""
        return f"{self._namespace}.shutdown.now.{encode_token(node)}.{encode_token(run)}"

    def node(self, node: str) -> str:
        """What a node says of itself."""
        return f"{self._namespace}.nodes.{encode_token(node)}"

    def replies(self, node: str, run: str) -> str:
        """The start of all subjects to which a run of a node is answered."""
        return f"{self._namespace}.reply.{encode_token(node)}.{encode_token(run)}"

    def answer_to(self, reply: str, asker: str, own: str) -> str | None:
        """Say where to answer, or None: it is no place to which that node alone listens.

        So nobody gets answers in another's name, nor has them sent to what is no answer's subject.

        Args:
            reply: the subject that came with the question.
            asker: the node that says that it asks.
            own: the node that answers.
        """
        start = re.escape(f"{self._namespace}.reply.{encode_token(asker)}.")
        if re.fullmatch(rf"{start}{_OPAQUE}\.{_OPAQUE}", reply) is None:
            return None
        return f"{reply}.{encode_token(own)}"
