"""The outcomes of a shutdown on several nodes, merged into one."""

from __future__ import annotations

from typing import Any, cast

import pytest

from monitor_plugin.api.results import FREED_HEADER, stopped_response
from monitor_plugin.cluster.merge.shutdowns import ClusterShutdowns
from monitor_plugin.cluster.requests.client import PeerResult
from monitor_plugin.cluster.transport.messages import Reply
from monitor_plugin.domain.errors import ModelNotLoaded
from monitor_plugin.domain.models import Freed


def stopped(node: str, freed: Freed | None) -> PeerResult:
    """The result of a node that stopped the model. A node of an older version reports no memory."""
    return PeerResult(node, Reply(node, "run", answer=stopped_response(False, freed)))


@pytest.mark.parametrize(
    ("parts", "header"),
    [
        ([Freed(memory=1, gpu=2, gpu_left=0, seconds=0.5),
          Freed(memory=10, gpu=20, gpu_left=0, seconds=2.0)], "memory=11, gpu=22, seconds=2.0"),
        ([Freed(memory=1, gpu=2, gpu_left=0), Freed(memory=10)], "memory=11, seconds=0.0"),
        ([Freed(memory=1), None], None),
    ],
    ids=["all known", "a node without GPUs", "an older node"],
)  # fmt: skip
def test_freed_memory_is_the_sum_of_the_nodes(
    parts: list[Freed | None], header: str | None
) -> None:
    """A node that no longer had the model counts for nothing."""
    results = [stopped(f"node{number}", freed) for number, freed in enumerate(parts)]
    gone = PeerResult("late", error=ModelNotLoaded("m"))
    unused = cast("Any", None)
    response = ClusterShutdowns(unused, unused, unused)._merge("m", [*results, gone])
    assert response.status == 200
    assert response.headers.get(FREED_HEADER) == header
