"""The models that a host can run, whether or not a backend of them runs."""

from __future__ import annotations

import msgspec

#: The values of `KnownModel.state`.
MODEL_STATES = ("running", "starting", "stopped", "waiting", "failed", "exited")


class KnownModel(msgspec.Struct, frozen=True):
    """A model that a host can run, and what the host is doing with it.

    Attributes:
        model: the model's name, free text.
        state: `running`; `starting` (the host has started the process, and does not count it as
            running yet); `stopped` (the host was asked to stop it, or was never asked to start it);
            `waiting` (the process has ended, and the host will start it again: supervisord's
            BACKOFF); `failed` (the host has given up: supervisord's FATAL); `exited` (the process
            has ended by itself, and the host leaves it so).
        detail: what the host says about the state, for people; None if it says nothing.
        can_start: whether the host can start the model: see the hook `monitor_start_model`.
    """

    model: str
    state: str
    detail: str | None = None
    can_start: bool = False
