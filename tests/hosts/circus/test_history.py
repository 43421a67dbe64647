"""What circus' events tell of its watchers."""

from __future__ import annotations

import json

from monitor_plugin.hosts.circus.history import WatcherHistories, WatcherHistory, parse_event


def record(histories: WatcherHistories, name: str, *events: tuple[str, int]) -> WatcherHistory:
    """Record events of a process, or of none (0); each process exits with code 3."""
    for action, pid in events:
        facts = {"time": 5.0, **({"process_pid": pid} if pid else {})}
        if action == "reap":
            facts["exit_code"] = 3
        topic = f"watcher.{name}.{action}".encode()
        histories.record(parse_event(topic, json.dumps(facts).encode()))
    return histories.get(name)


def test_exit_of_a_process_that_circus_did_not_end_is_known() -> None:
    """The names of events are in lower case and without spaces, and may have dots."""
    histories = WatcherHistories()
    record(histories, "org.model_7b", ("spawn", 7), ("start", 0), ("reap", 7), ("spawn", 8))
    history = histories.get("Org.Model 7B")
    assert history.exit
    assert history.exit.exit_code == 3
    assert history.spawned_at == 5.0
    assert record(histories, "org.model_7b", ("kill", 8), ("reap", 8), ("stop", 0)).exit is None


def test_processes_that_circus_ends_together_did_not_end_by_themselves() -> None:
    """circus signals all of them before it reaps one. A PID may be used again later."""
    histories = WatcherHistories()
    stop = [("kill", 7), ("kill", 8), ("reap", 7), ("reap", 8), ("stop", 0)]
    assert record(histories, "a", ("start", 0), *stop).exit is None
    assert record(histories, "a", ("spawn", 7), ("start", 0), ("reap", 7)).exit


def test_watcher_that_circus_stops_before_it_has_started_was_given_up() -> None:
    """A watcher that circus has started, or of which no start could have been seen, was not."""
    histories = WatcherHistories()
    assert not record(histories, "a", ("stop", 0)).gave_up
    assert record(histories, "a", ("stop", 0)).gave_up
    assert not record(histories, "a", ("spawn", 7), ("start", 0)).gave_up
    assert not record(histories, "a", ("reap", 7), ("stop", 0)).gave_up
    for status, gave_up in (("stopped", True), ("active", False), ("stopping", False)):
        histories.record_statuses({"B": status})
        histories.record_statuses({"B": "stopped" if gave_up else "active"})  # the first one counts
        assert record(histories, "b", ("stop", 0)).gave_up is gave_up
        histories.record_statuses({})
        assert not histories.get("b").gave_up


def test_watchers_whose_events_have_one_name_share_a_history() -> None:
    """circus accepts both watchers, and its events do not tell them apart."""
    histories = WatcherHistories()
    histories.record_statuses({"a b": "active", "a_b": "stopped"})
    assert histories.get("a b") is histories.get("a_b")
    assert not record(histories, "a_b", ("stop", 0)).gave_up
