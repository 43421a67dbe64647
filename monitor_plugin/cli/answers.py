"""What a monitor answers, as far as the commands use it; what is missing is unknown."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import Any, TypeVar

import msgspec

from ..client import Client
from ..domain.errors import RequestFailed
from .views.text import amount

# gRPC's codes, in a word for people; `no answer` can be a backend that is busy.
_FAILURES = {
    "DEADLINE_EXCEEDED": "no answer",
    "UNAVAILABLE": "unreachable",
    "UNIMPLEMENTED": "no status",
}
# What an operator should look at, and how the state is marked where there are no colours.
ALARMING = ("error", "no answer", "unreachable")
_TIMEOUT_SECONDS = 20.0
_LASTING = ("busy", "uninitialized", "error")

T = TypeVar("T")


class Figures(msgspec.Struct, frozen=True):
    """Of a process, or of a tree. Bytes, percent of one core, seconds."""

    rss: int | None = None
    vms: int | None = None
    pss: int | None = None
    vram: int | None = None
    processes: int | None = None
    cpu_percent: float | None = None
    cpu_seconds: float | None = None
    threads: int | None = None
    open_files: int | None = None


class Process(Figures, frozen=True):
    """The registered process, and its tree."""

    tree: Figures = Figures()


class Memory(msgspec.Struct, frozen=True):
    """Bytes, in all and by component."""

    total: int
    breakdown: dict[str, int] = {}


class Shutdown(msgspec.Struct, frozen=True):
    """A shutdown that is under way."""

    phase: str
    seconds: float = 0.0


class Item(msgspec.Struct, frozen=True):
    """A backend."""

    model: str
    pid: int
    address: str = ""
    state: int | None = None
    state_name: str = "unknown"
    last_state: int | None = None
    source: str | None = None
    rpc_error: str | None = None
    age_seconds: float | None = None
    memory: Memory | None = None
    memory_source: str | None = None
    process: Process | None = None
    created_at: datetime | None = None
    uptime_seconds: float | None = None
    state_changed_at: datetime | None = None
    shutdown: Shutdown | None = None
    node: str | None = None

    @property
    def condition(self) -> str:
        """Say in a word how it is: its state, or why none is known."""
        if self.shutdown:
            return self.shutdown.phase
        if self.state is None:
            return _FAILURES.get(self.rpc_error or "", "unknown")
        return f"unknown ({self.state})" if self.state_name == "unknown" else self.state_name

    @property
    def condition_seconds(self) -> float | None:
        """Say for how long, where that matters."""
        if self.shutdown:
            return self.shutdown.seconds
        return seconds_since(self.state_changed_at) if self.condition in _LASTING else None

    @property
    def held(self) -> int | None:
        """The memory that it holds, in bytes."""
        return self.memory.total if self.memory else None

    @property
    def cpu_percent(self) -> float | None:
        """What the tree uses of one core."""
        if self.process is None:
            return None
        tree = self.process.tree.cpu_percent
        return self.process.cpu_percent if tree is None else tree

    @property
    def why(self) -> str:
        """Say where the reading came from: `grpc`, `psutil: UNIMPLEMENTED`."""
        return ": ".join(part for part in (self.source, self.rpc_error) if part) or "not read yet"


class End(msgspec.Struct, frozen=True):
    """A backend that ended."""

    model: str
    pid: int
    cause: str
    description: str = ""
    ended_at: datetime | None = None
    created_at: datetime | None = None
    node: str | None = None


class Machine(msgspec.Struct, frozen=True):
    """The monitor's machine."""

    memory_total: int | None = None
    cpus: int | None = None


class Node(msgspec.Struct, frozen=True):
    """A node of a cluster; the error says why its backends are missing."""

    node: str
    machine: Machine | None = None
    error: str | None = None


class Backends(msgspec.Struct, frozen=True):
    """The answer of `GET /backends`."""

    backends: list[Item]
    ended: list[End]
    machine: Machine = Machine()
    nodes: list[Node] = []
    cluster_error: str | None = None

    def share(self, item: Item) -> float | None:
        """Percent of its machine's memory that a backend holds."""
        machines = {each.node: each.machine for each in self.nodes}
        machine = machines.get(item.node or "") or self.machine
        if item.held is None or not machine.memory_total:
            return None
        return 100 * item.held / machine.memory_total

    def missing(self) -> list[str]:
        """Say of each node that does not answer why, and why others may not be known of."""
        errors = [each.error for each in self.nodes if each.error]
        return [*errors, *([self.cluster_error] if self.cluster_error else [])]

    def absent(self) -> str:
        """Say of a model that is not in the list that it is not loaded, as far as is known."""
        return "is not loaded" + (" on any node that answers" if self.missing() else "")

    def _memory_total(self) -> int | None:
        machines = [each.machine for each in self.nodes if each.machine] or [self.machine]
        return sum(each.memory_total or 0 for each in machines) or None

    def summary(self) -> str:
        """Say in a line how many there are, what they hold, and how they are."""
        if not self.backends:
            return "No model is loaded" + (" on any node that answers." if self.missing() else ".")
        count = len(self.backends)
        held = sum(item.held or 0 for item in self.backends)
        conditions = Counter(item.condition for item in self.backends).most_common()
        conditions.sort(key=lambda each: each[0] not in ALARMING)  # those first
        return (
            f"{count} backend{'s' * (count > 1)}, {amount(held)} of "
            f"{amount(self._memory_total())}; "
            + ", ".join(f"{number} {name}" for name, number in conditions)
        )


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a backend."""

    id: int
    type: str
    at: datetime | None = None
    model: str = ""
    pid: int = 0
    previous_name: str | None = None
    current_name: str | None = None
    cause: str | None = None
    description: str | None = None
    phase: str | None = None
    outcome: str | None = None
    seconds: float | None = None


class Events(msgspec.Struct, frozen=True):
    """The answer of `GET /events`."""

    events: list[Event]
    next: int
    gap: bool = False
    poll_after_seconds: float = 0.0


def ask_backends(
    client: Client,
    model: str | None = None,
    *,
    fresh: bool = True,
    node: str | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> tuple[Backends, Any]:
    """Ask for the backends; gives the answer, and the JSON that it was.

    Raises:
        RequestFailed: the monitor cannot be asked, or answers with an error, or is none.
    """
    query = {} if model is None else {"model": model}
    if not fresh:
        query["fresh"] = "false"
    if node is not None:
        query["node"] = node
    answer = client.get("/backends", query, timeout_seconds=timeout_seconds)
    return _converted(client, answer, Backends), answer


def ask_events(client: Client, after: int | None, wait_seconds: float) -> Events:
    """Ask for what happened since; waits for it, if the monitor has a thread to spare.

    Raises:
        RequestFailed: as of `ask_backends`.
    """
    query = {"wait": f"{wait_seconds:g}"}
    if after is not None:
        query["after"] = str(after)
    answer = client.get("/events", query, timeout_seconds=wait_seconds + 10)
    return _converted(client, answer, Events)


def seconds_since(moment: datetime | None) -> float | None:
    """How long ago that was; 0 where the clocks differ so that it is yet to come."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())


def _converted(client: Client, answer: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        said = f"{client.url} does not answer as a monitor does ({error}): is it one?"
        raise RequestFailed(client.url, said) from None
