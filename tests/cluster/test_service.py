"""A node's part in a cluster, from its start to its end."""

from __future__ import annotations

import falcon.testing

from monitor_plugin import Monitor, Settings


def test_monitor_that_does_not_run_is_listening_once() -> None:
    """A host may use `app` before it starts the monitor, and after it has closed it."""
    monitor = Monitor(Settings(listen=None, cluster="nats://127.0.0.1:4", node="a"))
    client = falcon.testing.TestClient(monitor.app)
    for _ in range(2):
        answer = client.simulate_get("/backend/monitor?model=m", host="localhost")
        assert (answer.status_code, answer.json["error"]["type"]) == (504, "node_unreachable")
        monitor.close()
