"""What can be set, from Python, from the environment and from the command line."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import msgspec

from ..domain.address import MAX_SOCKET_PATH_BYTES
from ..domain.errors import SettingsError
from .cluster import validate_cluster, validate_namespace, validate_node, validate_node_url
from .origins import ip_address, validate_allowed_host, validate_allowed_origin
from .tokens import validate_token

ENVIRONMENT_PREFIX = "MONITOR_"

_DAY = 86400.0
_Positive = Annotated[float, msgspec.Meta(gt=0, le=_DAY)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_DAY)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's settings. A bad value raises `SettingsError` at once.

    `Settings(...)` does not read the environment; `Settings.from_environment()`, `Monitor()` and
    the command line do, where each field is `MONITOR_<FIELD>`; an empty variable counts as unset.

    Lists are tuples here, and separated by commas in the environment and on the command line.

    Attributes:
        listen: `HOST:PORT` of the HTTP server, port 0 for any free one, or `unix:/PATH`; None (in
            the environment and on the command line `none`) for no server of our own. What is not
            loopback wants a token, or `insecure`.
        insecure: allow what is open: an address other than loopback without a token, and gRPC in
            the clear to backends elsewhere.
        socket_mode: the permissions of the unix socket, as of a file (octal as text: `0600`).
        token: the secret that clients must send, as `Authorization: Bearer`; it may do everything.
        token_file: a file with a token a line, `ROLE:NAME:TOKEN`, ROLE being `read` or `admin`; it
            is read again when it changes.
        allowed_hosts: names by which clients may address the monitor (their `Host`), besides those
            of loopback and the one in `listen`; without a port, `*` for any.
        allowed_origins: sites whose pages may use the monitor: `https://example.com` say.
        trusted_proxy: the IP address of a proxy whose `X-Forwarded-For` is believed; `unix` for
            whoever connects to the unix socket.
        status_timeout_seconds: how long a gRPC `Status` call may keep a reading waiting; also the
            deadline of `Free`.
        reading_max_age_seconds: how old a reading may be that further requests get too; 0: none is
            kept, and only those join it who ask while it is made.
        drain_timeout_seconds: how long a shutdown waits for a busy backend.
        stop_timeout_seconds: how long a process has between SIGTERM and SIGKILL, then once more to
            vanish after SIGKILL; also what a `monitor_stop_backend` hook gets.
        respawn_watch_seconds: how long a shutdown watches whether the host starts the model again.
        hook_timeout_seconds: how long one call of one hook may keep a reading or an event waiting.
        sweep_interval_seconds: from one reading of all backends in the background to the next; 0:
            none, and no history.
        http_threads: threads that answer requests; shutdowns hold at most half of them.
        hooks_dir: a folder of hook files to load, which runs their code; they and it must belong
            to root or to the monitor's user, and be writable by nobody else.
        hook: single hook files to load after those of `hooks_dir`; for them and their folders the
            same holds.
        disable_hook: names of plugins to leave out, without running their code where it comes from
            a file or an installed package: an entry point's, a hook file's (with or without
            `monitor_plugin_hooks.` before it), or that of a member of `plugins=`.
        grpc_ca_file: a file of certificates (PEM) by which backends' servers are verified, and TLS
            for all that are not local; it is read again when it changes, for connections made
            after that. None: TLS for `grpcs://` alone, and gRPC's own certificates, or those that
            the variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
        grpc_token_file: a file with the token to send to each backend, as the gRPC metadata
            `authorization: Bearer TOKEN`, where no `monitor_call_metadata` hook gives another; it
            is read again when it changes.
        cluster: NATS servers over which the monitors of several machines answer for one another:
            `nats://HOST:4222`, or `tls://`, separated by commas; None: this machine alone. What is
            not loopback wants TLS and credentials, or `insecure`.
        node: this monitor's name among them; None for the host's name.
        cluster_namespace: the first part of all NATS subjects that are used.
        cluster_timeout_seconds: how long another node may be silent before it counts as
            unreachable; while it stops a model 3 s at least.
        cluster_url: `http://HOST:PORT` at which others, Prometheus say, reach this monitor; None
            for what `listen` says.
        cluster_ca_file: a file of certificates (PEM) by which NATS servers are verified, and TLS
            for all of them.
        cluster_creds_file: a file with this node's NATS credentials (`.creds`).
        cluster_nkey_file: a file with the seed of this node's NKey.
    """

    listen: str | None = "127.0.0.1:8080"
    insecure: bool = False
    socket_mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0o600
    token: str | None = None
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxy: str | None = None
    status_timeout_seconds: _Positive = 1.0
    reading_max_age_seconds: _NotNegative = 0.02
    drain_timeout_seconds: _NotNegative = 30.0
    stop_timeout_seconds: _Positive = 10.0
    respawn_watch_seconds: _NotNegative = 1.0
    hook_timeout_seconds: _Positive = 1.0
    sweep_interval_seconds: _NotNegative = 5.0
    http_threads: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 16
    hooks_dir: str | None = None
    hook: tuple[str, ...] = ()
    disable_hook: tuple[str, ...] = ()
    grpc_ca_file: str | None = None
    grpc_token_file: str | None = None
    cluster: str | None = None
    node: str | None = None
    cluster_namespace: str = "monitor"
    cluster_timeout_seconds: _Positive = 5.0
    cluster_url: str | None = None
    cluster_ca_file: str | None = None
    cluster_creds_file: str | None = None
    cluster_nkey_file: str | None = None

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            try:
                msgspec.convert(getattr(self, field.name), field.type)
            except msgspec.ValidationError as error:
                raise SettingsError(field.name, f"setting {field.name}: {error}") from None
        validators: dict[str, Callable[[str], object]] = {
            "listen": parse_listen,
            "token": validate_token,
            "allowed_hosts": validate_allowed_host,
            "allowed_origins": validate_allowed_origin,
            "trusted_proxy": _validate_trusted_proxy,
            "node": validate_node,
            "cluster_url": validate_node_url,
            "cluster_namespace": validate_namespace,
            "cluster": partial(
                validate_cluster,
                has_ca=self.cluster_ca_file is not None,
                has_credentials=bool(self.cluster_creds_file or self.cluster_nkey_file),
                insecure=self.insecure,
            ),
        }
        for name, validate in validators.items():
            value = getattr(self, name)
            try:
                for each in value if isinstance(value, tuple) else (value,):
                    if each is not None:
                        validate(each)
            except ValueError as error:
                raise SettingsError(name, f"setting {name}: {error}") from None

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={shown!r}' for name, shown in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Give what may be shown; rich, in tracebacks too, asks for this in place of the repr."""
        return [
            (name, "***" if name == "token" and value is not None else value)
            for name, value in msgspec.structs.asdict(self).items()
        ]

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
    if field.type == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip() not in ("", "none"))
    try:
        value: Any = int(text, 8) if name == "socket_mode" else text
        return msgspec.convert(value, field.type, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise SettingsError(name, f"{said_by}={text!r}: {error}") from None


def setting_text(name: str, value: Any) -> str:
    """Show a setting's value as `parse_setting` takes it."""
    if name == "socket_mode":
        return f"{value:04o}"
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value is None else str(value)


def _validate_trusted_proxy(proxy: str) -> str:
    if proxy != "unix" and ip_address(proxy) is None:
        raise ValueError(f"{proxy!r} is neither an IP address nor `unix`")
    return proxy


class Listen(NamedTuple):
    """Where to listen: the path of a unix socket, or else a host and a port."""

    path: str | None
    host: str
    port: int


def parse_listen(listen: str) -> Listen:
    """Take `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH` apart.

    Raises:
        ValueError: it is none of them.
    """
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:").removeprefix("//")
        size = len(os.fsencode(path))
        if not path.startswith("/") or "\0" in path or size > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"{listen!r}: a unix socket's path must be absolute, and take at most "
                f"{MAX_SOCKET_PATH_BYTES} bytes"
            )
        return Listen(path, "", 0)
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{listen!r} is neither HOST:PORT (127.0.0.1:8080, say) nor unix:/PATH")
    if host.startswith("[") and host.endswith("]"):
        try:
            return Listen(None, str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            raise ValueError(f"{host} is no IPv6 address") from None
    if ":" in host:
        raise ValueError(f"{listen!r}: an IPv6 address stands in brackets")
    return Listen(None, host, int(port))
