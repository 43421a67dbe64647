"""The page of a cluster's node, in Chromium."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ...support import eventually
from ..browser import Tabs, chromium
from .conftest import MakeLocal, MakeNode, NatsServer

pytestmark = [pytest.mark.once, pytest.mark.slow]


@pytest.fixture
def tabs() -> Iterator[Tabs]:
    """Tabs of a browser. An error in one of them fails the test."""
    with chromium() as browser:
        tabs = Tabs(browser)
        yield tabs
        tabs.close()


def test_the_page_lists_all_nodes_and_stops_one_replica(
    nats: NatsServer, make_local: MakeLocal, make_node: MakeNode, tabs: Tabs
) -> None:
    """A row names its node, and its button stops the replica there alone.

    Each node has a line with its machine. A node that does not answer is named.
    """
    settings = {"sweep_interval_seconds": 0.2}
    a = make_local("node-a", nats.url, "shared", **settings)
    make_local("node-b", nats.url, "shared", **settings)
    eventually(lambda: a.merges("shared", "node-a", "node-b"))
    page = tabs.open(a.client.url).page
    rows = page.locator("#backends-table tbody tr")
    eventually(lambda: rows.count() == 2)
    assert sorted(rows.locator("summary").all_inner_texts()[at].split()[3] for at in (0, 1)) == [
        "node-a,",
        "node-b,",
    ]
    machines = page.locator("#machines li").all_inner_texts()
    assert [text.partition(":")[0] for text in machines] == ["node-a", "node-b"]
    assert all("GiB" in text and "CPU cores" in text for text in machines)
    rows.filter(has_text="node-b").locator("button.stop").click()
    dialog = page.locator("#stop")
    assert "on node-b" in dialog.inner_text()
    dialog.locator("button[value=yes]").click()
    eventually(lambda: a.merges("shared", "node-a"))
    eventually(lambda: rows.count() == 1)
    assert "node-a" in rows.inner_text()
    c = make_node("node-c", nats.url)
    eventually(lambda: a.lists("node-a", "node-b", "node-c"))
    c.signal(signal.SIGKILL)
    eventually(lambda: "without an answer (node-c)" in page.locator("#counts").inner_text())
