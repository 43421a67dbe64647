"""What the commands say of backends in a word or a line, and in which order."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone

from ...api.schemas import ClusterBackendsAnswer, EndItem, NodeBackendItem
from .text import amount, duration

# Names for gRPC's codes. A backend that does not answer can be busy.
_FAILURES = {
    "DEADLINE_EXCEEDED": "no answer",
    "UNAVAILABLE": "unreachable",
    "UNIMPLEMENTED": "no status",
}
# An operator should look at these.
ALARMING = ("error", "no answer", "unreachable")
# How long a backend has been in one of these matters.
_LASTING = ("busy", "uninitialized", "error")


def condition(item: NodeBackendItem) -> str:
    """Return the phase of its shutdown, its state, or why the state is unknown."""
    if item.shutdown:
        return item.shutdown.phase
    if item.state is None:
        return _FAILURES.get(item.rpc_error or "", "unknown")
    return f"unknown ({item.state})" if item.state_name == "unknown" else item.state_name


def condition_seconds(item: NodeBackendItem) -> float | None:
    """Return for how long it has been in its condition; None if that is unknown or irrelevant."""
    if item.shutdown:
        return item.shutdown.seconds
    return seconds_since(item.state_changed_at) if condition(item) in _LASTING else None


def memory_bytes(item: NodeBackendItem) -> int | None:
    """Return the memory of a backend in bytes; None if it is unknown."""
    return item.memory.total if item.memory else None


def memory_percent(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> float | None:
    """Return the memory of a backend in percent of its machine's; None if it is unknown."""
    machines = {each.node: each.machine for each in answer.nodes}
    machine = machines.get(item.node) or answer.machine
    if item.memory is None or not machine or not machine.memory_total:
        return None
    return 100 * item.memory.total / machine.memory_total


def cpu_percent(item: NodeBackendItem) -> float | None:
    """Return the CPU usage of a backend's process tree in percent of one core."""
    if item.process is None:
        return None
    tree = item.process.tree
    if tree is None or tree.cpu_percent is None:
        return item.process.cpu_percent
    return tree.cpu_percent


def describe_source(item: NodeBackendItem) -> str:
    """Say where a reading comes from: `grpc`, `psutil: UNIMPLEMENTED`."""
    return ": ".join(part for part in (item.source, item.rpc_error) if part) or "not read yet"


def by_memory(item: NodeBackendItem) -> tuple[int, str, int]:
    """Sort by memory: the largest first, those of unknown size last."""
    return -item.memory.total if item.memory else 1, item.model, item.pid


def missing_parts(answer: ClusterBackendsAnswer) -> list[str]:
    """Say why an answer is not complete: each node's error, and that of the cluster itself."""
    errors = [each.error for each in answer.nodes if each.error]
    return [*errors, *([answer.cluster_error] if answer.cluster_error else [])]


def not_loaded(answer: ClusterBackendsAnswer) -> str:
    """Say of a model which is not in an answer that it is not loaded, as far as is known."""
    return f"is not loaded{_where(answer)}"


def summarize(answer: ClusterBackendsAnswer) -> str:
    """Say in a line how many backends there are, their memory, and their conditions."""
    if not answer.backends:
        return f"No model is loaded{_where(answer)}."
    count = len(answer.backends)
    used = sum(memory_bytes(item) or 0 for item in answer.backends)
    machines = [each.machine for each in answer.nodes if each.machine]
    if not machines and answer.machine:
        machines = [answer.machine]
    total = sum(machine.memory_total for machine in machines) or None
    conditions = Counter(map(condition, answer.backends)).most_common()
    conditions.sort(key=lambda each: each[0] not in ALARMING)  # these first
    return f"{count} backend{'s' * (count > 1)}, {amount(used)} of {amount(total)}; " + ", ".join(
        f"{number} {name}" for name, number in conditions
    )


def _where(answer: ClusterBackendsAnswer) -> str:
    return " on any node that answers" if missing_parts(answer) else ""


def seconds_since(moment: datetime | None) -> float | None:
    """Return how long ago a moment was; 0 if it lies ahead, as the two clocks may differ."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())


def ago(end: EndItem) -> str:
    """Say how long ago a backend ended."""
    return f"{duration(seconds_since(end.ended_at))} ago"
