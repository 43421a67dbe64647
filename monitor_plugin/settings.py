"""What can be set, from Python, from the environment and from the command line."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from .errors import SettingsError

ENVIRONMENT_PREFIX = "MONITOR_"

_DAY = 86400.0
_Positive = Annotated[float, msgspec.Meta(gt=0, le=_DAY)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_DAY)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's settings. A bad value raises `SettingsError` at once.

    `Settings(...)` does not read the environment; `Settings.from_environment()`, `Monitor()` and
    the command line do, where each field is `MONITOR_<FIELD>`; an empty variable counts as unset.

    Attributes:
        listen: `HOST:PORT` of the HTTP server, port 0 for any free one; None (in the environment
            and on the command line `none`) for no server of our own.
        token: reserved for authentication, which this version does not have: refused by `Monitor`.
        status_timeout_seconds: how long a gRPC `Status` call may keep a reading waiting; also the
            deadline of `Free`.
        drain_timeout_seconds: how long a shutdown waits for a busy backend.
        stop_timeout_seconds: how long a process has between SIGTERM and SIGKILL, then once more to
            vanish after SIGKILL; also what a `monitor_stop_backend` hook gets.
        respawn_watch_seconds: how long a shutdown watches whether the host starts the model again.
        hook_timeout_seconds: how long one call of one hook may keep a reading or an event waiting.
        http_threads: threads that answer requests; shutdowns hold at most half of them.
        hooks_dir: reserved for a folder of hook files, which this version does not load: refused
            by `Monitor`.
    """

    listen: str | None = "127.0.0.1:8080"
    token: str | None = None
    status_timeout_seconds: _Positive = 1.0
    drain_timeout_seconds: _NotNegative = 30.0
    stop_timeout_seconds: _Positive = 10.0
    respawn_watch_seconds: _NotNegative = 1.0
    hook_timeout_seconds: _Positive = 1.0
    http_threads: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 16
    hooks_dir: str | None = None

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            try:
                msgspec.convert(getattr(self, field.name), field.type)
            except msgspec.ValidationError as error:
                raise SettingsError(field.name, f"setting {field.name}: {error}") from None
        if self.listen is not None:
            parse_listen(self.listen)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={'***' if name == 'token' and value is not None else repr(value)}"
            for name, value in msgspec.structs.asdict(self).items()
        )
        return f"Settings({shown})"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read every field that `environ` names (pass `os.environ`).

        Raises:
            SettingsError: a variable has a value that cannot be used.
        """
        given: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            variable = ENVIRONMENT_PREFIX + field.name.upper()
            if environ.get(variable):
                given[field.name] = parse_setting(field.name, environ[variable], said_by=variable)
        return cls(**given)


def parse_setting(name: str, text: str, *, said_by: str) -> Any:
    """Turn the text of a variable or a flag into the value of a setting.

    Args:
        name: the field's name.
        text: the text; `none` where the field may be None.
        said_by: the variable or flag, for the error's message.

    Raises:
        SettingsError: the text cannot be turned into the field's type.
    """
    field = next(field for field in msgspec.structs.fields(Settings) if field.name == name)
    if field.type == (str | None):
        return None if text == "none" else text
    try:
        return msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(name, f"{said_by}={text!r}: {error}") from None


def parse_listen(listen: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        SettingsError: it is neither.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(
            "listen", f"setting listen: {listen!r} is not HOST:PORT, 127.0.0.1:8080 say"
        )
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            raise SettingsError("listen", f"setting listen: {host} is no IPv6 address") from None
    if ":" in host:
        raise SettingsError(
            "listen", f"setting listen: {listen!r}: an IPv6 address stands in brackets"
        )
    return host, int(port)
