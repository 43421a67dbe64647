"""Knows the right answers of each model over time, and records answers that are wrong or late."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from soak_client import Answer

_TICK_SECONDS = 0.02


class ExpectedStatus(NamedTuple):
    """A status with this memory breakdown and one of these states; None: any memory."""

    breakdown: Mapping[str, int] | None
    states: Collection[int] = (2,)

    def matches(self, answer: Answer) -> bool:
        """Whether the answer is this status."""
        if answer.kind != "grpc" or answer.body["state"] not in self.states:
            return False
        memory = answer.body["memory"] or {"breakdown": {}}  # null while the backend ends
        return self.breakdown is None or bool(self.breakdown == memory["breakdown"])


class ExpectedSample(NamedTuple):
    """A sample after one of these gRPC codes (empty: any), with an RSS in this range (MiB)."""

    codes: Collection[str]
    rss_mib: tuple[int, int]

    def matches(self, answer: Answer) -> bool:
        """Whether the answer is this sample."""
        if answer.kind != "psutil" or (self.codes and answer.rpc_error not in self.codes):
            return False
        rss = answer.body["memory_info"]["rss"]
        if rss is None:  # the process is ending, and has released its memory
            return not self.codes
        least, most = self.rss_mib
        return bool(least <= rss / 1024**2 <= most)


class ExpectedNotLoaded(NamedTuple):
    """The error that a model is not loaded, since that PID ended (None: it never was loaded).

    Attributes:
        words: how the message may describe the end.
    """

    pid: int | None
    words: Collection[str] = ()

    def matches(self, answer: Answer) -> bool:
        """Whether the answer is this error."""
        if (answer.status, answer.kind) != (500, "model_not_loaded"):
            return False
        message = answer.body["error"]["message"]
        if self.pid is None:
            return str(message).endswith("is not loaded")
        found = re.search(r": its process (\d+) (.*) \d+ s ago$", message)
        return found is not None and int(found[1]) == self.pid and found[2] in self.words


Expected = ExpectedStatus | ExpectedSample | ExpectedNotLoaded


@dataclass
class Period:
    """The time during which these answers are right. It ends when the model's next one begins."""

    since: float
    allowed: tuple[Expected, ...]


@dataclass
class Expectations:
    """The right answers of each model over time, and the findings.

    Attributes:
        wrong: descriptions of wrong answers and broken promises.
        seconds: the durations of answers, by kind.
        late: descriptions of late answers, except those that are late because of the machine.
        missed_deadlines: samples of healthy backends whose `Status` missed the deadline.
    """

    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late: list[str] = field(default_factory=list)
    missed_deadlines: int = 0
    _periods: dict[str, deque[Period]] = field(default_factory=dict)
    _lags: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=10_000))

    @property
    def models(self) -> list[str]:
        """All models with expectations."""
        return list(self._periods)

    def expect(self, model: str, *allowed: Expected) -> None:
        """Expect one of these answers, and no other, for a model from now on."""
        periods = self._periods.setdefault(model, deque(maxlen=50))
        periods.append(Period(time.monotonic(), allowed))

    def allowed(self, model: str) -> tuple[Expected, ...]:
        """Return the answers that are right at this moment."""
        return self._periods[model][-1].allowed

    def check(self, model: str, answer: Answer, bound_seconds: float) -> None:
        """Check that a reading was right at some moment between its request and its answer."""
        self.check_duration(f"monitor {answer.kind}", answer, bound_seconds)
        periods = list(self._periods[model])
        ends = [period.since for period in periods[1:]] + [float("inf")]
        allowed = [
            expected
            for period, end in zip(periods, ends, strict=True)
            if period.since <= answer.done_at and end >= answer.sent_at
            for expected in period.allowed
        ]
        if any(expected.matches(answer) for expected in allowed):
            return
        # Another reader may have begun the call earlier. A busy machine causes some of these.
        if answer.rpc_error == "DEADLINE_EXCEEDED":
            self.missed_deadlines += 1
            return
        self.wrong.append(f"{model}: {answer}, expected one of {allowed}")

    def check_duration(self, kind: str, answer: Answer, bound_seconds: float) -> None:
        """Record the duration of an answer, and whether it was too long."""
        self.seconds[kind].append(answer.seconds)
        lag = sum(lag for at, lag in self._lags if answer.sent_at <= at <= answer.done_at + 0.1)
        if answer.seconds - lag > bound_seconds:
            self.late.append(f"{kind}: {answer.seconds:.2f} s, over {bound_seconds:g} s")

    async def measure_lags(self) -> None:
        """Record how late this process's event loop wakes up, which other processes cause."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            self._lags.append((now, now - before - _TICK_SECONDS))
