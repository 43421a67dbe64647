"""The subjects of messages over NATS, and the tokens in them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin.cluster.transport.subjects import Subjects, encode_token

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(_NAMES, _NAMES)
def test_subject_tokens_are_safe_and_unique(one: str, other: str) -> None:
    """Different names have different tokens of letters, digits, `_`, `-` and `=`."""
    token = encode_token(one)
    assert token
    assert all(each.isascii() and (each.isalnum() or each in "_-=") for each in token)
    assert (token == encode_token(other)) == (one == other)


def test_subjects_separate_reading_from_stopping() -> None:
    """Subjects for reading begin with NAMESPACE.read, others with NAMESPACE.shutdown."""
    subjects = Subjects("ns")
    assert subjects.shutdown_now("a.b", "1") == "ns.shutdown.now.a=2Eb.1"
    assert subjects.reply_subject("ns.reply.a.1.2", "a", "b.c") == "ns.reply.a.1.2.b=2Ec"
    assert subjects.read_model("org/m .*>") == "ns.read.model.org=2Fm=20=2E=2A=3E"
    assert subjects.read_node("a.b") == "ns.read.node.a=2Eb"
    assert subjects.shutdown_model("m").startswith("ns.shutdown.")
    assert subjects.shutdown_node("a").startswith("ns.shutdown.")
