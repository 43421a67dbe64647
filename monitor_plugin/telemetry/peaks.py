"""Stores the peaks of each model: in memory, and in a file that a separate thread writes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..config.reloading_file import reason_of
from ..domain.errors import SettingsError
from ..domain.gpus import Gpu, gtt_component, is_gpu_component
from ..domain.models import Observation, TreeUsage
from ..domain.peaks import MAX_DEVICES, MAX_MODELS, GpuPeak, ModelPeaks, merge_peaks

if TYPE_CHECKING:
    from .peak_file import PeakFile

# The time between two writes. A monitor that is killed loses the peaks of at most this time, or of
# the retry time after a failure.
_WRITE_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_MAX_COMPONENT_LENGTH = 255

_logger = logging.getLogger(__name__)


class PeakStore:
    """Stores the peaks of the MAX_MODELS models that were seen last. Thread-safe.

    A separate thread writes the file. No other thread waits for the file.

    Args:
        path: the setting `state_file`, the path of a SQLite file. None: the peaks are stored in
            memory only.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file = None if path is None else _open_file(path)
        self._lock = threading.Lock()
        self._peaks = self._file.load() if self._file else {}
        self._unwritten: set[str] = set()
        self._wake = threading.Event()  # there is something to write, or the store is closing
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Start to write the file.

        Raises:
            RuntimeError: no thread can be started.
        """
        if self._file is None:
            return
        # Each thread has its own event, so that a thread that a slow disk has blocked during
        # `close` ends afterwards.
        closing = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(self._file, closing), name="monitor-peaks", daemon=True
        )
        thread.start()
        self._closing, self._thread = closing, thread  # only a started thread can be joined

    def close(self) -> None:
        """Write the last changes, and end the thread. Waits at most 5 s for a slow disk."""
        self._closing.set()
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread:
            thread.join(_CLOSE_SECONDS)
            if thread.is_alive():
                _logger.error(
                    "%s: the file was not written within %g s; the last peaks may be lost",
                    self._path,
                    _CLOSE_SECONDS,
                )

    def add(self, observations: Iterable[Observation], gpus: Sequence[Gpu]) -> None:
        """Merge the observations of a sweep into the peaks.

        Args:
            observations: the observations.
            gpus: the GPUs of the machine, which give the UUIDs of components.
        """
        uuids = {name: gpu.uuid for gpu in gpus for name in (gpu.component, gtt_component(gpu))}
        now = time.time()
        has_changed = False
        with self._lock:
            for observation in observations:
                new = _peaks_of(observation, uuids, now)
                old = self._peaks.get(new.model)
                merged = merge_peaks(old, new) if old else new
                if merged is not old:
                    self._peaks[new.model] = merged
                    self._unwritten.add(new.model)
                    has_changed = True
            if len(self._peaks) > MAX_MODELS:
                self._trim()
        if has_changed and self._file:
            self._wake.set()

    def read(self, model: str | None = None) -> list[ModelPeaks]:
        """Return the peaks of one model (empty if it was never seen), or of all models."""
        with self._lock:
            if model is None:
                return list(self._peaks.values())
            return [self._peaks[model]] if model in self._peaks else []

    def _trim(self) -> None:
        by_age = sorted(self._peaks.values(), key=lambda each: each.last_seen_at)
        for each in by_age[:-MAX_MODELS]:
            del self._peaks[each.model]
        self._unwritten &= self._peaks.keys()

    def _run(self, file: PeakFile, closing: threading.Event) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            is_closing = closing.is_set()
            is_written = self._write(file)
            if is_closing:
                return
            closing.wait(_WRITE_SECONDS if is_written else _RETRY_SECONDS)
            if not is_written:
                self._wake.set()

    def _write(self, file: PeakFile) -> bool:
        """Write the peaks that have changed; return False if that failed."""
        peaks: dict[str, ModelPeaks] = {}
        try:
            is_new = file.is_new()  # True also if the file was removed since
            with self._lock:
                models = list(self._peaks) if is_new else list(self._unwritten)
                peaks = {model: self._peaks[model] for model in models}
                self._unwritten.clear()
            merged = file.merge(peaks) if peaks else []
        except Exception as error:  # the thread must survive any error
            with self._lock:
                self._unwritten |= peaks.keys() & self._peaks.keys()
            self._log_failure(reason_of(error))
            return False
        self._log_failure(None)
        with self._lock:
            for each in merged:  # another monitor may have written higher peaks
                if each.model in self._peaks:
                    self._peaks[each.model] = merge_peaks(self._peaks[each.model], each)
        return True

    def _log_failure(self, failure: str | None) -> None:
        """Log a failure once, and the first success after it."""
        previous, self._failure = self._failure, failure
        if failure is not None and previous is None:
            _logger.error(
                "%s cannot be written: %s; the peaks of models are kept in memory, and written "
                "when that is possible again",
                self._path,
                failure,
            )
        elif failure is None and previous is not None:
            _logger.warning("%s can be written again", self._path)


def _open_file(path: str) -> PeakFile:
    try:
        from .peak_file import PeakFile  # a Python can be built without sqlite3
    except ImportError as error:
        raise SettingsError("state_file", f"setting state_file: {error}") from None
    return PeakFile(path)


def _peaks_of(observation: Observation, uuids: dict[str, str | None], now: float) -> ModelPeaks:
    tree, source = observation.tree, observation.memory_source
    # The pages that several processes share would make the peak too high for ever.
    rss_counts = not observation.awaits_pss or (tree is not None and tree.processes == 1)
    total = observation.memory.total if observation.memory else None
    if source == "rss" and not rss_counts:
        total = None
    tree_memory = total
    if source == "backend":
        tree_memory = _pss_or_rss(tree, rss_counts) if tree else None
    process = observation.process
    if tree_memory is not None and process and process.peak_rss is not None:
        tree_memory = max(tree_memory, process.peak_rss)
    return ModelPeaks(
        model=observation.backend.model,
        memory=total,
        memory_at=None if total is None else now,
        tree_memory=tree_memory,
        tree_memory_at=None if tree_memory is None else now,
        gpus=_gpu_peaks(observation, uuids, now),
        ready_seconds=observation.ready_seconds,
        ready_at=observation.ready_at,
        ready_pid=None if observation.ready_at is None else observation.backend.pid,
        longest_ready_seconds=observation.ready_seconds,
        since=now,
        last_seen_at=now,
    )


def _pss_or_rss(tree: TreeUsage, rss_counts: bool) -> int | None:
    if tree.pss is not None:
        return tree.pss
    return tree.rss if rss_counts else None


def _gpu_peaks(
    observation: Observation, uuids: dict[str, str | None], now: float
) -> tuple[GpuPeak, ...]:
    breakdown = observation.memory.breakdown if observation.memory else {}
    amounts = {
        name: amount
        for name, amount in breakdown.items()
        if amount and is_gpu_component(name) and _is_plain(name)
    }
    if any(name.startswith("vram:") for name in amounts):
        amounts.pop("vram", None)  # the sum of the named devices, or a second report of one
    if len(amounts) > MAX_DEVICES:
        amounts = dict(sorted(amounts.items(), key=lambda each: -each[1])[:MAX_DEVICES])
    return tuple(
        GpuPeak(
            component=name,
            uuid=uuids.get(name),
            memory=amount,
            memory_at=now,
            part_of_largest_sum=amount,
        )
        for name, amount in amounts.items()
    )


def _is_plain(name: str) -> bool:
    """Whether a name from a backend can be stored: short, and without surrogates."""
    return len(name) <= _MAX_COMPONENT_LENGTH and name.isprintable()
