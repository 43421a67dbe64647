"""The programs of supervisord that are models, as the last poll found them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from supervisor.states import ProcessStates

from ...domain.known_models import KnownModel
from ..model_states import ProgramState, merge_states

# The states of a model for those of a program.
_MODEL_STATES = {
    ProcessStates.FATAL: "failed",
    ProcessStates.UNKNOWN: "failed",
    ProcessStates.BACKOFF: "waiting",
    ProcessStates.STARTING: "starting",
    ProcessStates.RUNNING: "running",
    ProcessStates.EXITED: "exited",
    ProcessStates.STOPPING: "stopped",
    ProcessStates.STOPPED: "stopped",
}


class LogFile(NamedTuple):
    """The log of a stream. `channel` is the stream for which supervisord keeps it."""

    channel: str
    path: str


class ModelProgram(NamedTuple):
    """A program that is a model.

    Attributes:
        model: its model.
        name: its full name, `group:name`.
        display_name: its name as `supervisorctl status` shows it.
        pid: its process; 0 if none runs.
        state: its state, of supervisord's numbers.
        detail: what supervisord says about the state; None if it says nothing that people need.
        started_at: when its last process was started, in seconds since the epoch; 0 if none was.
        logs: the logs of its streams that supervisord writes to files.
    """

    model: str
    name: str
    display_name: str
    pid: int
    state: int
    detail: str | None
    started_at: int
    logs: Mapping[str, LogFile]


def model_program(
    model: str, name: str, display_name: str, info: Mapping[str, Any], redirects: bool
) -> ModelProgram:
    """Make the record of a program.

    Args:
        model: its model.
        name: its full name.
        display_name: its name for people.
        info: what `getProcessInfo` says of it.
        redirects: whether its standard error goes to its standard output (`redirect_stderr`).
    """
    logs = {}
    for stream in ("stdout", "stderr"):
        channel = "stdout" if redirects else stream
        if path := info[f"{channel}_logfile"]:
            logs[stream] = LogFile(channel, path)
    state, detail = info["state"], _detail(info)
    pid, started_at = info["pid"], info["start"]
    return ModelProgram(model, name, display_name, pid, state, detail, started_at, logs)


def _detail(info: Mapping[str, Any]) -> str | None:
    state = info["state"]
    if state in (ProcessStates.RUNNING, ProcessStates.STARTING):
        return None
    if state == ProcessStates.STOPPING:
        return "supervisord is stopping it"
    if state == ProcessStates.UNKNOWN:
        return "supervisord does not know its state"
    # For EXITED the description is a time, and `spawnerr` names an unexpected exit code.
    facts = (info["spawnerr"], info["description"])
    return "; ".join(dict.fromkeys(filter(None, facts))) or None


def known_models(programs: Iterable[ModelProgram]) -> list[KnownModel]:
    """List the models of these programs, each once."""
    return merge_states(
        ProgramState(each.model, each.display_name, _MODEL_STATES[each.state], each.detail)
        for each in programs
    )
