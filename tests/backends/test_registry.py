"""The registry: who is registered, under which PID, address and model, and who ended last."""

from __future__ import annotations

import time

import pytest

from monitor_plugin import State
from monitor_plugin.backends.registry import (
    MAX_EXITS,
    Conflict,
    EndedBackend,
    NotRegistered,
    Record,
    Registry,
    ShutdownInProgress,
)
from monitor_plugin.domain.models import Backend, BackendExit, LeftBehindProcess, ProcessName

from .conftest import make_record


@pytest.fixture
def registry() -> Registry:
    return Registry()


def nothing(*_: object) -> None:
    pass


def fail(*_: object) -> None:
    raise AssertionError("an event of a refused change was published")


def add(registry: Registry, model: str, pid: int, address: str | None = None) -> Record:
    record = make_record(model, pid, address)
    registry.add(record, nothing)
    return record


def move(registry: Registry, record: Record, model: str, address: str) -> None:
    """Register a record's PID again."""
    backend = Backend(model, record.backend.pid, address, record.backend.created_at)
    registry.update(record, backend, address, nothing)


def make_exit(cause: str = "exited") -> BackendExit:
    return BackendExit(cause, None, None, None, time.time())


def end(registry: Registry, record: Record) -> None:
    registry.move_to_exits(record, make_exit(), None, nothing)


def test_records_are_listed_in_the_order_of_registration(registry: Registry) -> None:
    """Also those of one model; a model without a backend has none."""
    first, other, second = (
        add(registry, model, pid) for model, pid in (("m", 9), ("other", 5), ("m", 7))
    )
    assert registry.records() == [first, other, second]
    assert registry.records("m") == [first, second]
    assert registry.records("unknown") == []
    assert registry.models() == ["m", "other"]
    assert registry.find(5) is other
    assert registry.find(6) is None


def test_lists_are_copies(registry: Registry) -> None:
    """A caller may keep and change what it got."""
    record = add(registry, "m", 1)
    registry.records().clear()
    registry.records("m").clear()
    registry.models().clear()
    assert registry.records() == registry.records("m") == [record]
    assert registry.models() == ["m"]


@pytest.mark.parametrize(
    ("pid", "address"), [(1, "127.0.0.1:2"), (2, "127.0.0.1:1")], ids=["PID", "address"]
)
def test_pid_and_address_belong_to_one_backend(pid: int, address: str, registry: Registry) -> None:
    """The error has the record that holds them, and nothing is changed or published."""
    holder = add(registry, "m", 1, "127.0.0.1:1")
    with pytest.raises(Conflict) as raised:
        registry.add(make_record("m", pid, address), fail)
    assert raised.value.record is holder
    assert registry.records() == [holder]


def test_update_makes_a_record_the_newest(registry: Registry) -> None:
    """It has the new model and address, and the former ones are free."""
    record, other = add(registry, "m", 1, "a"), add(registry, "m", 2, "b")
    move(registry, record, "m", "a")
    assert registry.records("m") == [other, record]
    move(registry, record, "renamed", "c")
    assert registry.records() == [other, record]
    assert (registry.records("m"), registry.records("renamed")) == ([other], [record])
    assert (record.backend.model, record.canonical_address) == ("renamed", "c")
    move(registry, other, "renamed", "a")
    assert registry.models() == ["renamed"]
    assert registry.find(1) is record


def test_update_to_the_address_of_another_backend_is_refused(registry: Registry) -> None:
    """The record keeps its model, its address and its place."""
    record, holder = add(registry, "m", 1, "a"), add(registry, "m", 2, "b")
    with pytest.raises(Conflict) as raised:
        registry.update(record, Backend("renamed", 1, "b", 1.0), "b", fail)
    assert raised.value.record is holder
    assert registry.records("m") == [record, holder]
    assert (record.backend.model, record.canonical_address) == ("m", "a")


@pytest.mark.parametrize("reused", [False, True], ids=["gone", "PID reused"])
def test_removed_record_is_neither_updated_nor_ended_again(
    reused: bool, registry: Registry
) -> None:
    """Also if a later process with the same PID is registered."""
    record = add(registry, "m", 1, "a")
    end(registry, record)
    later = [add(registry, "m", 1, "a")] if reused else []
    with pytest.raises(NotRegistered):
        registry.update(record, Backend("m", 1, "b", 1.0), "b", fail)
    with pytest.raises(NotRegistered):
        registry.move_to_exits(record, make_exit(), None, fail)
    assert registry.records() == later
    assert len(registry.last_exits()) == 1


def test_exit_frees_the_pid_and_the_address(registry: Registry) -> None:
    """The exit has the backend as it was registered last."""
    record = add(registry, "m", 1, "a")
    move(registry, record, "renamed", "b")
    exit = make_exit("killed")
    assert registry.move_to_exits(record, exit, True, lambda ended: ended.exit) is exit
    assert (registry.records(), registry.find(1)) == ([], None)
    (ended,) = registry.last_exits()
    assert ended == EndedBackend(record.backend, exit, True, id=ended.id)
    assert record.backend.model == "renamed"
    add(registry, "m", 1, "b")


def test_last_exits_are_kept_oldest_first(registry: Registry) -> None:
    """The exits of backends that ended before the last hundred are dropped."""
    for pid in range(1, MAX_EXITS + 2):
        end(registry, add(registry, str(pid), pid))
    assert [each.backend.pid for each in registry.last_exits()] == [*range(2, MAX_EXITS + 2)]


def test_exit_is_replaced_while_it_is_stored(registry: Registry) -> None:
    """An exit that was dropped meanwhile is not stored again."""
    end(registry, add(registry, "m", 1))
    (known,) = registry.last_exits()
    completed = make_exit("oom")
    end(registry, add(registry, "m", 2))
    for backend in (known.backend, Backend("m", 3, "a", 1.0)):
        registry.complete_exit(backend, lambda ended: ended._replace(exit=completed))
    assert [each.exit.cause for each in registry.last_exits()] == ["oom", known.exit.cause]


def test_a_model_that_has_ended_is_listed_until_nothing_of_it_is_left(registry: Registry) -> None:
    """Also while its processes are not searched for yet, unless a shutdown has ended it."""
    changes: list[None] = []
    stopped = add(registry, "stopped", 2)
    registry.move_to_exits(stopped, make_exit("shutdown"), None, lambda ended: None)
    end(registry, add(registry, "m", 1))
    registry.on_change = lambda: changes.append(None)
    ended = registry.last_exits()[-1]
    assert (ended.left_behind, registry.models()) == (None, ["m"])
    registry.set_left_behind(ended, (LeftBehindProcess(7, "sleep", 4096),))
    assert registry.models() == ["m"]
    registry.set_left_behind(ended, ())
    assert registry.models() == []
    registry.set_left_behind(ended, ())
    assert len(changes) == 1


def test_exits_with_processes_left_behind_are_kept(registry: Registry) -> None:
    """Also an exit that was dropped before its processes were found; until the last has ended."""
    changes: list[None] = []
    processes = (LeftBehindProcess(7, "sleep", 4096),)
    ended = []
    for pid in (1, 2):
        end(registry, add(registry, f"m{pid}", pid))
        ended.append(registry.last_exits()[-1])
    registry.set_left_behind(ended[1], processes)
    for pid in range(3, MAX_EXITS + 10):
        end(registry, add(registry, "other", pid))
    registry.on_change = lambda: changes.append(None)
    registry.set_left_behind(ended[0], processes)
    registry.set_left_behind(ended[1], processes)
    exits = registry.last_exits()
    assert [each.backend.model for each in exits[:3]] == ["m1", "m2", "other"]
    assert [each.left_behind for each in exits[:3]] == [processes, processes, None]
    assert len(exits) == MAX_EXITS
    for each in ended:
        registry.set_left_behind(each, ())
    assert len(registry.last_exits()) == MAX_EXITS
    assert len(changes) == 3
    end(registry, add(registry, "other", 1000))
    registry.set_left_behind(ended[0], ())
    assert registry.last_exits()[0].backend.model == "m2"


def test_state_changes_are_published_with_the_former_state(registry: Registry) -> None:
    """The same state again is no change, and keeps the time of the first."""
    record = add(registry, "m", 1)
    before = time.time()
    published: list[State | None] = []
    for state in (State.BUSY, State.BUSY, State.READY):
        registry.change_state(record, state, published.append)
    assert published == [None, State.BUSY]
    assert record.state is State.READY
    assert record.state_changed_at is not None
    assert before <= record.state_changed_at <= time.time()
    changed_at = record.state_changed_at
    assert registry.change_state(record, State.READY, lambda previous: fail()) is None
    assert record.state_changed_at == changed_at


def test_readings_of_a_removed_or_updated_record_are_dropped(registry: Registry) -> None:
    """They refer to the other backends of the model that it had."""
    record, moved = add(registry, "m", 1), add(registry, "m", 2)
    for each in (record, moved):
        each.shared_readings = object()
    end(registry, record)
    move(registry, moved, "other", "b")
    assert record.shared_readings is moved.shared_readings is None


def test_every_change_of_the_backends_is_reported(registry: Registry) -> None:
    """`on_change` is called for what adds, moves or removes a backend, and for nothing else."""
    changes: list[None] = []
    registry.on_change = lambda: changes.append(None)
    record = add(registry, "m", 1, "a")
    assert len(changes) == 1
    registry.set_stopping(record, True)
    registry.change_state(record, State.READY, lambda previous: None)
    with pytest.raises(Conflict):
        registry.add(make_record("m", 1), fail)
    assert len(changes) == 1
    move(registry, record, "renamed", "b")
    assert len(changes) >= 2
    before_the_end = len(changes)
    end(registry, record)
    assert len(changes) == before_the_end + 1


def test_stopping_is_recorded(registry: Registry) -> None:
    """Until the stop has failed."""
    record = add(registry, "m", 1)
    for stopping in (True, False):
        registry.set_stopping(record, stopping)
        assert record.stopping is stopping


def test_clear_removes_all_records_and_keeps_the_exits(registry: Registry) -> None:
    """Their PIDs and addresses are free."""
    end(registry, add(registry, "m", 1))
    records = [add(registry, "m", pid) for pid in (1, 2)]
    assert registry.clear() == records
    assert (registry.records(), len(registry.last_exits())) == ([], 1)
    assert registry.clear() == []
    add(registry, "m", 1)


def test_events_are_published_in_the_order_of_the_changes(registry: Registry) -> None:
    """No other thread can change anything between a change and its event."""
    locked: list[bool] = []

    def publish(*_: object) -> str:
        locked.append(registry._lock.locked())
        return "published"

    registry.on_change = publish
    record = make_record("m", 1, "a")
    backend = Backend("m", 1, "b", 1.0)
    assert registry.add(record, publish) == "published"
    assert registry.update(record, backend, "b", publish) == "published"
    assert registry.change_state(record, State.READY, publish) == "published"
    assert registry.move_to_exits(record, make_exit(), None, publish) == "published"
    assert len(locked) >= 7
    assert all(locked)


def test_replaced_record_frees_its_pid_and_gives_its_state(registry: Registry) -> None:
    """The new record has the address, and is the newest registration."""
    old, other = add(registry, "m", 1, "a"), add(registry, "m", 2, "b")
    registry.change_state(old, State.BUSY, lambda previous: None)
    registry.set_answered(old, old.backend)
    old.address_owner = ProcessName(9, "docker-proxy")
    new = make_record("m", 3, "a")
    assert registry.replace(old, new, lambda: "published") == "published"
    assert registry.records("m") == [other, new]
    assert registry.find(1) is None
    assert registry.find(3) is registry.find_by_address("a") is new
    assert new.state_changed_at == old.state_changed_at
    assert new.answered
    assert new.address_owner is old.address_owner
    assert registry.change_state(old, State.READY, lambda previous: "published") is None
    assert registry.change_state(new, State.READY, lambda previous: previous) is State.BUSY
    with pytest.raises(NotRegistered):
        end(registry, old)


def test_record_is_not_replaced_during_a_shutdown(registry: Registry) -> None:
    """Nor one that was removed or changed, nor by a process that has a record."""
    old, other = add(registry, "m", 1, "a"), add(registry, "m", 2, "b")
    with pytest.raises(Conflict) as conflict:
        registry.replace(old, make_record("m", 2, "a"), fail)
    assert conflict.value.record is other
    assert registry.begin_shutdown("m", 1) == [old]
    assert registry.begin_shutdown("m", 9) == registry.begin_shutdown("n") == []
    with pytest.raises(ShutdownInProgress):
        registry.replace(old, make_record("m", 3, "a"), fail)
    registry.end_shutdown([old])
    move(registry, old, "n", "a")
    with pytest.raises(NotRegistered):
        registry.replace(old, make_record("m", 3, "a"), fail)
    end(registry, old)
    with pytest.raises(NotRegistered):
        registry.replace(old, make_record("n", 3, "a"), fail)
    assert registry.records() == [other]
