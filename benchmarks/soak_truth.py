"""What may be true of each model at each time, and which answers are not."""

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


class ByGrpc(NamedTuple):
    """The backend's own word, with its own marker in the memory; None: whatever memory."""

    breakdown: Mapping[str, int] | None
    states: Collection[int] = (2,)

    def fits(self, answer: Answer) -> bool:
        """Whether the answer is this."""
        if answer.kind != "grpc" or answer.body["state"] not in self.states:
            return False
        memory = answer.body["memory"] or {"breakdown": {}}  # null: about to end, it holds nothing
        return self.breakdown is None or bool(self.breakdown == memory["breakdown"])


class ByProcess(NamedTuple):
    """A sample, after one of these gRPC codes (none: any), of at least and at most so many MiB."""

    codes: Collection[str]
    mebibytes: tuple[int, int]

    def fits(self, answer: Answer) -> bool:
        """Whether the answer is this."""
        if answer.kind != "psutil" or (self.codes and answer.rpc_error not in self.codes):
            return False
        rss = answer.body["memory_info"]["rss"]
        if rss is None:  # it has let go of its memory, and is about to be gone
            return not self.codes
        least, most = self.mebibytes
        return bool(least <= rss / 1024**2 <= most)


class NotLoaded(NamedTuple):
    """Not loaded: because of that PID's end, in one of these words; None: it never was."""

    pid: int | None
    words: Collection[str] = ()

    def fits(self, answer: Answer) -> bool:
        """Whether the answer is this."""
        if (answer.status, answer.kind) != (500, "model_not_loaded"):
            return False
        message = answer.body["error"]["message"]
        if self.pid is None:
            return str(message).endswith("is not loaded")
        said = re.search(r": its process (\d+) (.*) \d+ s ago$", message)
        return said is not None and int(said[1]) == self.pid and said[2] in self.words


Expected = ByGrpc | ByProcess | NotLoaded


@dataclass
class Span:
    """From when on these answers are right, until the next span of the model."""

    since: float
    allowed: tuple[Expected, ...]


@dataclass
class Truth:
    """What may be true, and all that was found.

    Attributes:
        wrong: wrong answers and broken promises, in words.
        seconds: how long answers took, by kind.
        late: answers over their bound, in words; those excluded that the machine made late.
        hurried: fallbacks of healthy backends that missed the deadline.
    """

    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late: list[str] = field(default_factory=list)
    hurried: int = 0
    _spans: dict[str, deque[Span]] = field(default_factory=dict)
    _lags: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=10_000))

    @property
    def models(self) -> list[str]:
        """All that were ever spoken of."""
        return list(self._spans)

    def now(self, model: str, *allowed: Expected) -> None:
        """From now on these answers are right for a model, and none else."""
        spans = self._spans.setdefault(model, deque(maxlen=50))
        spans.append(Span(time.monotonic(), allowed))

    def allowed(self, model: str) -> tuple[Expected, ...]:
        """What is right at this moment."""
        return self._spans[model][-1].allowed

    def check(self, model: str, answer: Answer, bound_seconds: float) -> None:
        """Compare a reading with all that was true while it was made."""
        self.took(f"monitor {answer.kind}", answer, bound_seconds)
        spans = list(self._spans[model])
        ends = [span.since for span in spans[1:]] + [float("inf")]
        allowed = [
            expected
            for span, end in zip(spans, ends, strict=True)
            if span.since <= answer.done_at and end >= answer.sent_at
            for expected in span.allowed
        ]
        if any(expected.fits(answer) for expected in allowed):
            return
        if answer.rpc_error == "DEADLINE_EXCEEDED":  # of a call that others may have begun earlier
            self.hurried += 1  # true, and the machine's fault, unless there are many
            return
        self.wrong.append(f"{model}: {answer}, where right was {allowed}")

    def took(self, kind: str, answer: Answer, bound_seconds: float) -> None:
        """Note what an answer took, and whether that was too long."""
        self.seconds[kind].append(answer.seconds)
        lag = sum(lag for at, lag in self._lags if answer.sent_at <= at <= answer.done_at + 0.1)
        if answer.seconds - lag > bound_seconds:
            self.late.append(f"{kind}: {answer.seconds:.2f} s, over {bound_seconds:g} s")

    async def feel_lags(self) -> None:
        """Note how late this process itself gets its turn: the machine's noise."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            self._lags.append((now, now - before - _TICK_SECONDS))
