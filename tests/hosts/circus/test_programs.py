"""The states of models for those of watchers."""

from __future__ import annotations

import pytest

from monitor_plugin import KnownModel
from monitor_plugin.domain.exits import make_exit
from monitor_plugin.hosts.circus.client import WatcherState
from monitor_plugin.hosts.circus.history import WatcherHistory
from monitor_plugin.hosts.circus.programs import ModelWatcher, known_models
from monitor_plugin.hosts.discovery import Program

EXITED = "its last process exited with code 3 4 s ago"


def watcher(
    status: str,
    pid: int = 0,
    *,
    model: str = "m",
    name: str = "w",
    numprocesses: int | None = 1,
    respawns: bool | None = True,
    exit_code: int | None = None,
    gave_up: bool = False,
) -> ModelWatcher:
    history = WatcherHistory()
    history.exit = None if exit_code is None else make_exit(exit_code, False, None, 1.0)
    history.gave_up = gave_up
    programs = [Program(name, name, pid)]
    return ModelWatcher(
        model, WatcherState(name, status, programs, numprocesses, respawns, {}), history
    )


@pytest.mark.parametrize(
    ("given", "state", "detail"),
    [
        (watcher("active", 7), "running", None),
        (watcher("active", 7, exit_code=3), "running", None),
        (watcher("starting"), "starting", None),
        (watcher("starting", 7), "starting", None),
        (watcher("stopping"), "stopped", "circus is stopping it"),
        (watcher("stopped"), "stopped", None),
        (watcher("stopped", exit_code=3), "stopped", EXITED),
        (watcher("stopped", 7), "running", None),  # it was started meanwhile
        (watcher("stopped", gave_up=True), "failed", "circus could not start a process"),
        (watcher("active"), "waiting", None),
        (watcher("active", exit_code=3), "waiting", EXITED),
        (watcher("active", exit_code=-9), "waiting", "its last process was killed by SIGKILL"),
        (watcher("active", numprocesses=None, respawns=None), "waiting", None),
        (watcher("active", numprocesses=0), "stopped", "its numprocesses is 0"),
        (watcher("active", respawns=False), "exited", None),
        (watcher("stopped", respawns=False), "stopped", None),
        (watcher("stopped", respawns=False, exit_code=3), "exited", EXITED),
    ],
)
def test_state_and_detail_of_a_watcher(given: ModelWatcher, state: str, detail: str | None) -> None:
    """`active` alone does not tell whether a process runs."""
    (known,) = known_models([given], 5.0)
    assert (known.model, known.state, known.can_start) == ("m", state, True)
    assert str(known.detail).startswith(str(detail))


def test_model_of_several_watchers_is_listed_once() -> None:
    """The model has the state that an operator should see first; the detail names the watcher."""
    failed = watcher("stopped", name="b", gave_up=True)
    models = known_models(
        [watcher("active", 7, name="a"), failed, watcher("stopped", name="c", model="n")], 5.0
    )
    assert models == [
        KnownModel("m", "failed", "b: circus could not start a process, its log says why", True),
        KnownModel("n", "stopped", None, True),
    ]
