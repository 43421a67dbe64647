"""The view of one end of a backend."""

from __future__ import annotations

from ...api.schemas import LastReadingItem, PostMortemItem
from .text import (
    UNKNOWN,
    ago,
    amount,
    describe_processes,
    duration,
    escape_name,
    output_lines,
    percent,
    printable,
)


def end_lines(end: PostMortemItem) -> list[str]:
    """Return the lines of a view of an end: a name and a value each, then the last output."""
    facts = [
        *([("node", printable(end.node))] if end.node else []),
        ("id", str(end.id)),
        ("PID", str(end.pid)),
        ("address", printable(end.address)),
        ("cause", f"{printable(end.cause)}: {printable(end.description)}"),
        *_exit(end),
        ("started", f"{end.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", f"{end.ended_at:%Y-%m-%d %H:%M:%S} UTC, {ago(end)}"),
        ("uptime", duration(end.uptime_seconds)),
        ("ready", f"after {end.ready_seconds:.1f} s" if end.ready_seconds is not None else UNKNOWN),
        ("peak memory", f"{amount(end.peak_rss)} (RSS of its tree)"),
        ("last reading", _last_reading(end)),
        ("left behind", _left_behind(end)),
        ("last hour", _ends_last_hour(end.ends_last_hour)),
    ]
    width = max(len(name) for name, _ in facts)
    return [
        escape_name(end.model),
        *(f"{name:<{width}}  {value}" for name, value in facts),
        *output_lines(end),
    ]


def _exit(end: PostMortemItem) -> list[tuple[str, str]]:
    facts = []
    if end.exit_code is not None:
        facts.append(("exit code", str(end.exit_code)))
    if end.signal is not None:
        facts.append(("signal", f"{end.signal} ({printable(end.signal_name or UNKNOWN)})"))
    if end.oom is not None:
        sure = ", probably" if end.oom and end.oom_certain is False else ""
        facts.append(("out of memory", f"{'yes' if end.oom else 'no'}{sure}"))
    return facts


def _last_reading(end: PostMortemItem) -> str:
    reading = end.last_reading
    if reading is None:
        return UNKNOWN
    seconds = (end.ended_at - reading.at).total_seconds()
    figures = [f"{printable(_state(reading))} {duration(seconds)} before the end"]
    if reading.memory:
        source = printable(reading.memory_source or UNKNOWN)
        figures.append(f"memory {amount(reading.memory.total)} ({source})")
    if reading.rss is not None:
        figures.append(f"rss {amount(reading.rss)}")
    if reading.cpu_percent is not None:
        figures.append(f"cpu {percent(reading.cpu_percent)} % of one core")
    if reading.processes is not None:
        figures.append(f"{reading.processes} process{'es' * (reading.processes != 1)}")
    return ", ".join(figures)


def _state(reading: LastReadingItem) -> str:
    if reading.state is None and reading.rpc_error:
        return f"{reading.state_name} ({reading.rpc_error})"
    return reading.state_name


def _left_behind(end: PostMortemItem) -> str:
    if end.left_behind is None:
        return UNKNOWN
    return describe_processes(end.left_behind) if end.left_behind else "nothing"


def _ends_last_hour(count: int | None) -> str:
    if count is None:
        return UNKNOWN
    return f"{count} end{'s' * (count != 1)} of the model, with this one"
