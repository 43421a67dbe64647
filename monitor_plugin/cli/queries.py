"""Requests the lists of a monitor, and decodes them with the structs of `api/`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import msgspec

from ..api.schemas import (
    ClusterBackendsAnswer,
    ClusterGpusAnswer,
    EventsAnswer,
    LogAnswer,
    NodeEndItem,
    PeaksAnswer,
    PeaksItem,
    PostMortemItem,
)
from ..client import Client
from ..domain.errors import RequestFailed
from ..domain.models import Freed, ProcessName

_TIMEOUT_SECONDS = 20.0

T = TypeVar("T")


class EventItem(msgspec.Struct, frozen=True):
    """An event, with the facts that `top` and `events` show."""

    id: int
    type: str
    at: datetime | None = None
    model: str = ""
    pid: int = 0
    previous_name: str | None = None
    current_name: str | None = None
    cause: str | None = None
    description: str | None = None
    address_owner: ProcessName | None = None
    pids: list[int] = []
    phase: str | None = None
    outcome: str | None = None
    seconds: float | None = None
    freed: Freed | None = None
    action: str | None = None
    reason: str | None = None


def fetch_backends(
    client: Client,
    model: str | None = None,
    *,
    fresh: bool = True,
    node: str | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> tuple[ClusterBackendsAnswer, Any]:
    """Request `/backends`.

    Returns:
        The decoded answer, without nodes where there is no cluster; and its JSON.

    Raises:
        RequestFailed: there is no answer, or an error, or the answer of another kind of server.
    """
    query = {} if model is None else {"model": model}
    if not fresh:
        query["fresh"] = "false"
    if node is not None:
        query["node"] = node
    answer = client.get("/backends", query, timeout_seconds=timeout_seconds)
    return decode(client, answer, ClusterBackendsAnswer), answer


def fetch_gpus(client: Client, node: str | None = None) -> tuple[ClusterGpusAnswer, Any]:
    """Request `/gpus`; the arguments, results and errors are like those of `fetch_backends`."""
    query = {} if node is None else {"node": node}
    try:
        answer = client.get("/gpus", query, timeout_seconds=_TIMEOUT_SECONDS)
    except RequestFailed as error:
        if error.type != "not_found":
            raise
        message = f"the monitor at {client.url} is older than this command and lists no GPUs"
        raise RequestFailed(
            client.url, f"{message}: update it", error.status, error.type
        ) from error
    return decode(client, answer, ClusterGpusAnswer), answer


def fetch_peaks(client: Client, model: str) -> PeaksItem | None:
    """Request the peaks of a model; None if the monitor has none, or is too old to store peaks.

    Raises:
        RequestFailed: as `fetch_backends`.
    """
    try:
        answer = client.get("/models/peaks", {"model": model}, timeout_seconds=_TIMEOUT_SECONDS)
    except RequestFailed as error:
        if error.type != "not_found":
            raise
        return None
    return next(iter(decode(client, answer, PeaksAnswer).models), None)


def fetch_events(
    client: Client, after: int | None, wait_seconds: float
) -> tuple[EventsAnswer, list[EventItem]]:
    """Request the events after number `after`; raises as `fetch_backends`.

    Without such an event a monitor with a free thread waits for one, up to `wait_seconds`.
    """
    query = {"wait": f"{wait_seconds:g}"}
    if after is not None:
        query["after"] = str(after)
    answer = client.get("/events", query, timeout_seconds=wait_seconds + 10)
    events = decode(client, answer, EventsAnswer)
    return events, decode(client, events.events, list[EventItem])


def fetch_end(client: Client, end: NodeEndItem) -> tuple[PostMortemItem, Any]:
    """Request all that is known of an end; raises as `fetch_backends`."""
    query = {"node": end.node} if end.node else {}
    answer = client.get(f"/ended/{end.id}", query, timeout_seconds=_TIMEOUT_SECONDS)
    return decode(client, answer, PostMortemItem), answer


def fetch_log(
    client: Client,
    model: str,
    stream: str,
    pid: int | None,
    *,
    max_bytes: int,
    after: int | None = None,
) -> LogAnswer:
    """Request the end of a stream of a model's backend, or what follows the offset `after`.

    Raises:
        RequestFailed: as `fetch_backends`; without the role admin, and if there is no log.
    """
    query = {"model": model, "stream": stream, "bytes": str(max_bytes)}
    if pid is not None:
        query["pid"] = str(pid)
    if after is not None:
        query["after"] = str(after)
    answer = client.get("/backend/log", query, timeout_seconds=_TIMEOUT_SECONDS)
    return decode(client, answer, LogAnswer)


def fetch_unseen(client: Client) -> str:
    """Return what the monitor cannot see, as `/readyz` says; empty if it says nothing."""
    try:
        answer = client.get("/readyz")
    except RequestFailed:
        return ""
    unseen = answer.get("unseen") if isinstance(answer, dict) else None
    return unseen if isinstance(unseen, str) else ""


def decode(client: Client, answer: Any, kind: type[T]) -> T:
    """Convert the JSON of an answer to a struct; raises `RequestFailed` if the JSON does not fit.

    NaN and infinity become null, because views cannot print them.
    """
    try:
        return msgspec.json.decode(msgspec.json.encode(answer), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"{client.url} does not answer as a monitor does ({error}): is it one?"
        raise RequestFailed(client.url, message) from None
