"""The states of models, for those of supervisord's programs."""

from __future__ import annotations

from typing import Any

import pytest
from supervisor.states import ProcessStates

from monitor_plugin import KnownModel
from monitor_plugin.hosts.supervisord.programs import ModelProgram, known_models, model_program

FAILED, TIME = "Exited too quickly (process log may have details)", "Nov 30 07:26 PM"


def info(state: str, spawnerr: str = "", description: str = "") -> dict[str, Any]:
    """Return what `getProcessInfo` says, as far as it matters here."""
    return {
        "state": getattr(ProcessStates, state),
        "spawnerr": spawnerr,
        "description": description,
        "start": 0,
        "pid": 0,
        "stdout_logfile": "/out",
        "stderr_logfile": "",
    }


def program(name: str, *facts: str, redirects: bool = False) -> ModelProgram:
    return model_program("m", f"g:{name}", f"g:{name}", info(*facts), redirects)


@pytest.mark.parametrize(
    ("facts", "state", "detail"),
    [
        (("RUNNING", "", "pid 7, uptime 0:00:05"), "running", None),
        (("STARTING",), "starting", None),
        (("STOPPED", "", "Not started"), "stopped", "Not started"),
        (("STOPPED", FAILED, TIME), "stopped", f"{FAILED}; {TIME}"),
        (("STOPPING",), "stopped", "supervisord is stopping it"),
        (("BACKOFF", FAILED, FAILED), "waiting", FAILED),
        (("EXITED", "", TIME), "exited", TIME),
        (("EXITED", "Bad exit code 3", TIME), "exited", f"Bad exit code 3; {TIME}"),
        (("FATAL", FAILED, FAILED), "failed", FAILED),
        (("UNKNOWN",), "failed", "supervisord does not know its state"),
    ],
)
def test_model_has_the_state_of_its_program(
    facts: tuple[str, ...], state: str, detail: str | None
) -> None:
    assert known_models([program("a", *facts)]) == [KnownModel("m", state, detail, True)]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("RUNNING FATAL BACKOFF", "failed"),
        ("RUNNING BACKOFF STARTING", "waiting"),
        ("STOPPED RUNNING STARTING", "starting"),
        ("STOPPED EXITED RUNNING", "running"),
        ("STOPPED EXITED STOPPING", "exited"),
    ],
)
def test_model_of_several_programs_has_the_state_to_be_seen_first(
    states: str, expected: str
) -> None:
    """The detail names the program."""
    programs = [program(state, state, "", "so it is") for state in states.split()]
    (model,) = known_models(programs)
    assert (model.model, model.state) == ("m", expected)
    name = {"failed": "FATAL", "waiting": "BACKOFF", "exited": "EXITED"}.get(expected)
    assert model.detail == (name and f"g:{name}: so it is")


def test_standard_error_is_in_the_log_of_standard_output_if_it_is_redirected() -> None:
    """Without `redirect_stderr`, a program without `stderr_logfile` has no such log."""
    assert program("a", "RUNNING").logs == {"stdout": ("stdout", "/out")}
    both = dict.fromkeys(("stdout", "stderr"), ("stdout", "/out"))
    assert program("a", "RUNNING", redirects=True).logs == both
