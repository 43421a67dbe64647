"""The protocols by which backends are asked for their status, and the rules that choose them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

GRPC_PROTOCOLS = ("localai", "grpc-health", "kserve-grpc")
HTTP_PROTOCOLS = ("llama.cpp", "vllm", "sglang", "tgi", "ollama", "kserve-http", "openai")


def parse_protocol_rule(text: str) -> tuple[str, str]:
    """Parse `NAME` or `PATTERN=NAME`.

    Returns:
        The shell pattern of the models, `*` if there is none, and the name of the protocol.

    Raises:
        ValueError: no protocol has that name.
    """
    pattern, _, name = text.rpartition("=")
    names = (*GRPC_PROTOCOLS, *HTTP_PROTOCOLS)
    if name not in names:
        raise ValueError(f"{name!r} is no protocol: use one of {', '.join(names)}")
    return pattern or "*", name


def find_protocol(rules: Iterable[str], model: str) -> str | None:
    """Return the protocol of the first rule whose pattern matches a model; None if none does.

    Raises:
        ValueError: a rule names no protocol.
    """
    for rule in rules:
        pattern, name = parse_protocol_rule(rule)
        if fnmatchcase(model, pattern):
            return name
    return None
