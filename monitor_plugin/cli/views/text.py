"""Text and figures for people: escaped names, numbers with units, a backend's condition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone

from ...api.schemas import (
    ClusterBackendsAnswer,
    ClusterGpusAnswer,
    EndItem,
    Machine,
    NodeBackendItem,
    NodeEndItem,
    NodeModelItem,
    NodeRefusedItem,
    PeaksItem,
)
from ...domain.byte_sizes import format_bytes
from ...domain.freed import describe_freed
from ...domain.models import STARTING, Freed, LeftBehindProcess, Limits, describe_process
from ...domain.units import HostUnit

UNKNOWN = "?"
_PLAIN_NAME = re.compile(r"[\w.:/][\w.:/-]*", re.ASCII)
# Names for gRPC's codes.
_FAILURES = {
    "DEADLINE_EXCEEDED": "no answer",
    "UNAVAILABLE": "unreachable",
    "UNIMPLEMENTED": "no status",
    "UNAUTHENTICATED": "no access",
    "INTERNAL": "bad answer",
}
# The condition of a backend whose address another process serves.
ADDRESS_TAKEN = "address taken"
# Conditions that an operator should check.
ALARMING = ("error", "no answer", "unreachable", "no access", "bad answer", ADDRESS_TAKEN)
# Conditions that are shown with their duration.
_LASTING = ("busy", "uninitialized", "error")
# The number of processes that a line names.
_PROCESSES_SHOWN = 8


def escape_name(name: str) -> str:
    r"""Escape control characters, invisible characters, and spaces at both ends (`\x20`).

    Letters of every script and spaces between them stay. A backslash is doubled, so that no name
    looks like the escaped form of another name.
    """
    core = name.strip(" ")
    before, _, after = name.partition(core) if core else (name, "", "")
    core = printable(core.replace("\\", r"\\"))
    return r"\x20" * len(before) + core + r"\x20" * len(after)


def printable(text: str) -> str:
    r"""Escape characters that are not printable: `\x1b`, `\u202e`."""
    if text.isprintable():
        return text  # nearly all lines of logs: 18 ms for 1 MiB instead of 160
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def printable_line(text: str) -> str:
    r"""Escape a line of a log: as `printable`, but tabs stay, and a `\r` at the end is left out."""
    return "\t".join(printable(part) for part in text.removesuffix("\r").split("\t"))


def amount(count: float | None) -> str:
    """Format bytes: `96.0 MiB`."""
    return UNKNOWN if count is None else format_bytes(count)


def percent(share: float | None) -> str:
    """Format a percentage, without `%`."""
    return UNKNOWN if share is None else f"{share:.1f}"


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units: `45s`, `3m20s`, `5h2m`, `12d3h`."""
    if seconds is None:
        return UNKNOWN
    minutes, whole_seconds = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (whole_seconds, "s")]
    while parts[0][0] == 0 and len(parts) > 1:
        del parts[0]
    return "".join(f"{count}{unit}" for count, unit in parts[:2] if count) or "0s"


def condition(item: NodeBackendItem) -> str:
    """Return the phase of its shutdown, its state, or why the state is unknown."""
    if item.shutdown:
        return item.shutdown.phase
    if item.state is None and item.state_name == STARTING:
        return STARTING
    if item.state is None and item.address_owner is not None:
        return ADDRESS_TAKEN
    if item.state is None:
        return _FAILURES.get(item.rpc_error or "", "unknown")
    return f"unknown ({item.state})" if item.state_name == "unknown" else item.state_name


def condition_seconds(item: NodeBackendItem) -> float | None:
    """Return the age of a backend's condition; None if it is unknown or irrelevant."""
    if item.shutdown:
        return item.shutdown.seconds
    return seconds_since(item.state_changed_at) if condition(item) in _LASTING else None


def zombies(item: NodeBackendItem) -> int:
    """Return the number of zombies among a backend's processes; 0 if it is unknown."""
    return item.process.tree.zombies if item.process and item.process.tree else 0


def memory_bytes(item: NodeBackendItem) -> int | None:
    """Return the memory of a backend in bytes; None if it is unknown."""
    return item.memory.total if item.memory else None


def memory_percent(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> float | None:
    """Return the memory of a backend in percent of the memory that it may use; None if unknown.

    It may use memory up to its limit or, without a limit, all memory of its machine.
    """
    limit, total = _memory_limit(item, answer)
    usable = total if limit is None else limit
    return 100 * item.memory.total / usable if item.memory and usable else None


def memory_share(item: NodeBackendItem, answer: ClusterBackendsAnswer) -> str:
    """Return the memory of a backend in percent, with the base: `50.0 % of the machine's`."""
    limit, total = _memory_limit(item, answer)
    base = "the machine's" if limit is None else _limited(limit, total)
    return f"{percent(memory_percent(item, answer))} % of {base}"


def _memory_limit(
    item: NodeBackendItem, answer: ClusterBackendsAnswer
) -> tuple[int | None, int | None]:
    """Return the memory limit of a backend (None: no limit), and the memory of its machine."""
    machines = {each.node: each.machine for each in answer.nodes}
    machine = machines.get(item.node) or answer.machine
    limits = item.limits or machine
    return (limits.memory_limit if limits else None), (machine.memory_total if machine else None)


def _limited(limit: int, total: int | None) -> str:
    return f"{amount(limit)} (limit; the machine has {amount(total)})"


def requests(item: NodeBackendItem) -> str:
    """Return the running and the waiting requests of a backend: `2+3`, `2+?`; `?` if unknown."""
    counts = item.requests_running, item.requests_waiting
    if counts == (None, None):
        return UNKNOWN
    return "+".join(UNKNOWN if each is None else str(each) for each in counts)


def load_lines(item: NodeBackendItem) -> list[tuple[str, str]]:
    """Return names and texts for the figures that a backend reports of its requests."""
    counts = [(item.requests_running, "running"), (item.requests_waiting, "waiting")]
    known = [f"{count} {name}" for count, name in counts if count is not None]
    lines = [("requests", ", ".join(known))] if known else []
    if item.tokens_per_second is not None:
        lines.append(("tokens", f"{item.tokens_per_second:.1f} per second"))
    if item.kv_cache_percent is not None:
        lines.append(("KV cache", f"{percent(item.kv_cache_percent)} % in use"))
    return lines


def vram(item: NodeBackendItem) -> int | None:
    """Return the memory of a backend on GPUs in bytes; None if it uses none or it is unknown."""
    return item.process.tree.vram if item.process and item.process.tree else None


def vram_texts(items: Sequence[NodeBackendItem], answer: ClusterBackendsAnswer) -> list[str]:
    """Return the memory of each backend on GPUs; `-` for a backend that is known to use none."""
    nodes = {gpu.node for gpu in answer.gpus}
    known = nodes - {gpu.node for gpu in answer.gpus if gpu.ours is None}
    return [
        "-" if item.process and vram(item) is None and item.node in known else amount(vram(item))
        for item in items
    ]


def describe_limits(limits: Limits) -> str:
    """Return the text for the limits of a backend, and for the pressure on its control group."""
    memory = "no limit of memory"
    if limits.memory_limit is not None:
        memory = f"memory {amount(limits.memory_limit)}"
    if limits.memory_available is not None:
        memory += f" ({amount(limits.memory_available)} available)"
    cores = []
    if limits.cpu_limit is not None:
        cores = [f"{round(limits.cpu_limit, 2):g} CPU core{'s' * (limits.cpu_limit != 1)}"]
    pressures = _pressure("memory", limits.memory_pressure)
    pressures += _pressure("CPU", limits.cpu_pressure)
    return ", ".join([memory, *cores, *pressures])


def describe_unit(unit: HostUnit) -> str:
    """Return the text for the unit in which a host runs a backend, without unknown figures."""
    parts = [f"{printable(unit.name)} ({printable(unit.manager)})"]
    if unit.memory_current is not None:
        limit = "" if unit.memory_max is None else f" of {amount(unit.memory_max)}"
        parts.append(f"memory {amount(unit.memory_current)}{limit}")
    elif unit.memory_max is not None:
        parts.append(f"memory up to {amount(unit.memory_max)}")
    if unit.memory_peak is not None:
        parts.append(f"peak {amount(unit.memory_peak)}")
    if unit.tasks is not None:
        parts.append(f"{unit.tasks} task{'s' * (unit.tasks != 1)}")
    if unit.cpu_quota is not None:
        parts.append(f"{round(unit.cpu_quota, 2):g} CPU core{'s' * (unit.cpu_quota != 1)}")
    if unit.restarts is not None:
        parts.append(f"{unit.restarts} restart{'s' * (unit.restarts != 1)}")
    return ", ".join(parts)


def pressure_lines(answer: ClusterBackendsAnswer) -> list[str]:
    """Return a line for each machine with backends on which processes wait for memory."""
    machines = [(f"{printable(each.node)}: ", each.machine) for each in answer.nodes]
    return [
        prefix + line
        for prefix, machine in machines or [("", answer.machine)]
        if machine and answer.backends
        for line in _pressure("memory", machine.memory_pressure)
    ]


def _pressure(name: str, share: float | None) -> list[str]:
    """Return a text for the time in which some process waited; empty if unknown or about 0."""
    return (
        [f"{name} pressure {percent(share)} % of the last 10 s"] if share and share >= 0.05 else []
    )


def cpu_percent(item: NodeBackendItem) -> float | None:
    """Return the CPU usage of a backend's process tree in percent of one core."""
    if item.process is None:
        return None
    tree = item.process.tree
    if tree is None or tree.cpu_percent is None:
        return item.process.cpu_percent
    return tree.cpu_percent


def describe_source(item: NodeBackendItem) -> str:
    """Return the source of a reading: `grpc`, `psutil: UNIMPLEMENTED`, and why it is no status."""
    source = ": ".join(part for part in (item.source, item.rpc_error) if part) or "not read yet"
    if item.address_owner is not None:
        return f"{source}, address served by {describe_process(item.address_owner)}"
    return f"{source}, {item.status_error}" if item.status_error else source


def place(item: NodeEndItem | NodeRefusedItem) -> str:
    """Return the PID of an item, with its node in a cluster."""
    return f"{item.pid} on {printable(item.node)}" if item.node else str(item.pid)


def left_behind(ended: Sequence[NodeEndItem]) -> list[str]:
    """Return a line for each ended backend with processes that it left behind."""
    return [_describe_left_behind(end) for end in ended if end.left_behind]


def left_behind_hint(ended: Sequence[NodeEndItem]) -> str:
    """Return what ends the processes that were left behind; empty if there are none."""
    ends = [end for end in ended if end.left_behind]
    if not ends:
        return ""
    pid, model = (str(ends[0].pid), ends[0].model) if len(ends) == 1 else ("PID", "MODEL")
    # A name that needs quotes in a shell is not written out.
    model = model if _PLAIN_NAME.fullmatch(model) else "MODEL"
    return f"To end what is left behind: monitor-plugin stop --pid {pid} {model}"


def _describe_left_behind(end: NodeEndItem) -> str:
    name = f"{escape_name(end.model)} (PID {place(end)})"
    return f"{name} has ended, and left behind: {describe_processes(end.left_behind or [])}"


def describe_processes(processes: Sequence[LeftBehindProcess]) -> str:
    """Return a text for the first of some processes: `123 sleep (1.0 MiB), 124 sleep (?)`."""
    texts = [
        f"{each.pid} {printable(each.name or UNKNOWN)} ({amount(each.bytes)})"
        for each in processes[:_PROCESSES_SHOWN]
    ]
    if len(processes) > _PROCESSES_SHOWN:
        texts.append(f"{len(processes) - _PROCESSES_SHOWN} more")
    return ", ".join(texts)


def describe_given_back(freed: Freed | None) -> str:
    """Return the text `; gave back 256 MiB` to add to a result; "" if nothing is known of it."""
    text = describe_freed(freed) if freed else ""
    return f"; {text}" if text else ""


def by_memory(item: NodeBackendItem) -> tuple[int, str, int]:
    """Return a sort key: the largest memory first, unknown memory last."""
    return -item.memory.total if item.memory else 1, item.model, item.pid


def missing_parts(answer: ClusterBackendsAnswer | ClusterGpusAnswer) -> list[str]:
    """Return why an answer is not complete: the errors of nodes, then the cluster's error."""
    errors = [each.error for each in answer.nodes if each.error]
    return [*errors, *([answer.cluster_error] if answer.cluster_error else [])]


def not_loaded(answer: ClusterBackendsAnswer) -> str:
    """Return `is not loaded`, limited to the nodes that answered."""
    return f"is not loaded{where(answer)}"


def summarize(answer: ClusterBackendsAnswer) -> str:
    """Return a line: the backends, their memory, their conditions, and other processes' number."""
    left = sum(len(end.left_behind or ()) for end in answer.ended)
    rest = f"; {left} process{'es' * (left > 1)} left behind" if left else ""
    rest += f"; {len(answer.refused)} refused" if answer.refused else ""
    count = len(answer.models)
    rest += f"; {count} model{'s' * (count > 1)} without a backend" if count else ""
    if not answer.backends:
        return f"No model is loaded{where(answer)}{rest}."
    count = len(answer.backends)
    used = sum(memory_bytes(item) or 0 for item in answer.backends)
    machines = [each.machine for each in answer.nodes if each.machine]
    if not machines and answer.machine:
        machines = [answer.machine]
    conditions = Counter(map(condition, answer.backends)).most_common()
    conditions.sort(key=lambda each: each[0] not in ALARMING)  # alarming conditions first
    counts = ", ".join(f"{number} {name}" for name, number in conditions)
    held = f"{count} backend{'s' * (count > 1)}, {amount(used)} of {_capacity(machines)}"
    return f"{held}; {counts}{rest}"


def _capacity(machines: Sequence[Machine]) -> str:
    """Return the memory that backends of these machines may use, and whether it is limited."""
    total = sum(machine.memory_total for machine in machines) or None
    limits = [machine.memory_limit for machine in machines]
    if len(machines) == 1 and limits[0] is not None:
        return _limited(limits[0], total)
    if not any(limit is not None for limit in limits):
        return amount(total)
    usable = sum(
        machine.memory_total if machine.memory_limit is None else machine.memory_limit
        for machine in machines
    )
    return f"{amount(usable)} (limits; the machines have {amount(total)})"


def where(answer: ClusterBackendsAnswer | ClusterGpusAnswer) -> str:
    """Return ` on any node that answers` if the answer is not complete."""
    return " on any node that answers" if missing_parts(answer) else ""


def seconds_since(moment: datetime | None) -> float | None:
    """Return the seconds since a moment; 0 for a future moment, as the clocks may differ."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())


def output_lines(end: EndItem) -> list[str]:
    """Return lines for the last output of an ended backend; none if it is not known."""
    if not end.last_output:
        return []
    lines = end.last_output.removesuffix("\n").split("\n")
    return [f"Last output of process {end.pid}:", *(f"  {printable_line(each)}" for each in lines)]


def host_says(item: NodeModelItem) -> str:
    """Return what a host says of a model without a backend: `its host says failed: no memory`."""
    detail = f": {printable(item.detail)}" if item.detail else ""
    where = f" on {printable(item.node)}" if item.node else ""
    return f"its host{where} says {printable(item.state)}{detail}"


def peaks_lines(peaks: PeaksItem) -> list[str]:
    """Return lines for the peaks of a model and for its time to READY, without unknown figures."""
    figures = [
        ("memory", peaks.memory, peaks.memory_at),
        ("process tree", peaks.tree_memory, peaks.tree_memory_at),
        *((printable(each.component), each.memory, each.memory_at) for each in peaks.gpus),
    ]
    held = [
        f"{name} {amount(size)} ({duration(seconds_since(at))} ago)"
        for name, size, at in figures
        if size is not None
    ]
    lines = [f"Most that one backend held: {', '.join(held)}"] if held else []
    if peaks.ready_seconds is not None:
        longest = max(peaks.longest_ready_seconds or 0.0, peaks.ready_seconds)
        more = f", {longest:.1f} s at most" if longest > peaks.ready_seconds else ""
        lines.append(f"READY {peaks.ready_seconds:.1f} s after its last start{more}")
    return lines


def ago(end: EndItem) -> str:
    """Return how long ago a backend ended: `3m20s ago`."""
    return f"{duration(seconds_since(end.ended_at))} ago"
