"""The settings, from Python, from the environment and from the command line."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from ..domain.address import MAX_SOCKET_PATH_BYTES
from ..domain.errors import SettingsError
from ..domain.protocols import parse_protocol_rule
from .cluster import validate_cluster, validate_namespace, validate_node, validate_node_url
from .origins import ip_address, validate_allowed_host, validate_allowed_origin
from .tokens import validate_token

ENVIRONMENT_PREFIX = "MONITOR_"

_DAY = 86400.0
_Positive = Annotated[float, msgspec.Meta(gt=0, le=_DAY)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_DAY)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's settings. An invalid value raises `SettingsError` at once.

    `Settings(...)` does not read the environment. `Settings.from_environment()`, `Monitor()` and
    the command line do: each field is a variable `MONITOR_<FIELD>`; an empty variable counts as
    unset. A tuple is separated by commas there, and None is `none`.

    Attributes:
        listen: `HOST:PORT` of the HTTP server (port 0: any free port) or `unix:/PATH`; None: no
            HTTP server. An address that is not loopback requires a token, or `insecure`.
        insecure: allow an address that is not loopback without a token, and gRPC without TLS to
            backends on other machines.
        socket_mode: the permissions of the unix socket (as text: octal, `0600`).
        token: the secret that clients must send, as `Authorization: Bearer`; its role is admin.
        token_file: a file with one token a line, `ROLE:NAME:TOKEN`, where ROLE is `read` or
            `admin`. It is read again when it changes.
        allowed_hosts: names by which clients may address the monitor (the `Host` header), besides
            loopback names and the host in `listen`; without a port; `*` allows any.
        allowed_origins: origins of sites whose pages may use the monitor, such as
            `https://example.com`.
        trusted_proxy: the IP address of a proxy whose `X-Forwarded-For` is believed; `unix` for
            all clients of the unix socket.
        status_timeout_seconds: the maximum time that a reading waits for its hooks and for a gRPC
            `Status` call, together; also the deadline of `Free`.
        reading_max_age_seconds: the maximum age of a reading that further requests get; 0: requests
            share a reading only while it is made.
        start_grace_seconds: how long after its registration a backend that has not answered yet is
            `starting`; later it is unreachable. 0: it is unreachable immediately.
        start_timeout_seconds: the maximum time that a start of a model waits until a backend of the
            model is ready.
        drain_timeout_seconds: the maximum time that a shutdown waits for a busy backend.
        stop_timeout_seconds: how long a stop waits after SIGTERM before it sends SIGKILL (a process
            that is found during the stop gets at least half of this time after its SIGTERM); how
            long the stop then waits for the end; and the time that a `monitor_stop_backend` hook
            gets.
        stop_signal_target: the processes that get SIGTERM when a stop begins. `root`: the
            registered process; the other members get SIGTERM when it has ended, or at half of
            `stop_timeout_seconds`. `all`: all members.
        memory_release_seconds: the maximum time that a shutdown waits, after the end of the
            processes, until the driver has freed their GPU memory.
        respawn_watch_seconds: how long a shutdown watches whether the host starts the model again.
        hook_timeout_seconds: the time limit of one call of a hook; in a reading at most
            `status_timeout_seconds`.
        sweep_interval_seconds: the time from one sweep of all backends to the next; 0: no sweeps
            and no history.
        gpu: the GPUs that the monitor reads. `auto`: all of the machine; `nvidia`: NVIDIA's,
            through nvidia-ml-py (extra `nvidia`); `drm`: AMD's and Intel's, through the kernel;
            `off`: none. The hook `monitor_list_gpus` is called with each of these values.
        state_file: the path of a SQLite file that stores the peaks of each model. None: the peaks
            are lost when the monitor ends.
        http_threads: the number of threads that answer requests; shutdowns use at most half of
            them, and so do starts.
        hooks_dir: a folder of hook files to load, whose code is run. The folder and the files must
            belong to root or to the monitor's user, and nobody else may be able to write to them.
        hook: hook files to load after those of `hooks_dir`, under the same conditions.
        disable_hook: names of plugins to leave out: of entry points, of hook files (with or without
            `monitor_plugin_hooks.` before the name), or of members of `plugins=`. The code of an
            entry point or a hook file is then not run.
        grpc_ca_file: a file of certificates (PEM) that verify the servers of backends; all backends
            that are not local are then called with TLS. It is read again when it changes, for new
            connections. None: TLS for `grpcs://` only, with gRPC's own certificates or those of the
            variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
        grpc_token_file: a file with a token that is sent to each backend as the gRPC metadata
            `authorization: Bearer TOKEN`, unless a `monitor_call_metadata` hook gives another. It
            is read again when it changes.
        protocol: the protocol by which backends are asked for their status: a name, or a list of
            `PATTERN=NAME`, where PATTERN is a shell pattern of models. A variable MONITOR_PROTOCOL
            in the environment of a backend's process has precedence. Without a name, addresses of
            gRPC are asked by `localai`, and a server that speaks HTTP by the protocol it answers.
        busy_when: when a server that speaks HTTP is BUSY. `any`: while it works on a request;
            `full`: while it can take no further request.
        cluster: NATS servers that connect the monitors of several machines: `nats://HOST:4222` or
            `tls://HOST:4222`, separated by commas; None: this machine only. A server that is not on
            loopback requires TLS and credentials, or `insecure`.
        node: this monitor's name in the cluster; None: the host name.
        cluster_namespace: the first part of all NATS subjects.
        cluster_timeout_seconds: the time after which a silent node counts as unreachable; at least
            3 s while it stops a model.
        cluster_url: the URL `http://HOST:PORT` at which others, such as Prometheus, reach this
            monitor; None: the address in `listen`.
        cluster_ca_file: a file of certificates (PEM) that verify NATS servers; all of them are then
            used with TLS.
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
    start_grace_seconds: _NotNegative = 300.0
    start_timeout_seconds: _Positive = 300.0
    drain_timeout_seconds: _NotNegative = 30.0
    stop_timeout_seconds: _Positive = 10.0
    stop_signal_target: Literal["root", "all"] = "root"
    memory_release_seconds: _NotNegative = 5.0
    respawn_watch_seconds: _NotNegative = 1.0
    hook_timeout_seconds: _Positive = 1.0
    sweep_interval_seconds: _NotNegative = 5.0
    gpu: Literal["auto", "off", "nvidia", "drm"] = "auto"
    state_file: str | None = None
    http_threads: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 16
    hooks_dir: str | None = None
    hook: tuple[str, ...] = ()
    disable_hook: tuple[str, ...] = ()
    grpc_ca_file: str | None = None
    grpc_token_file: str | None = None
    protocol: tuple[str, ...] = ()
    busy_when: Literal["any", "full"] = "any"
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
                choices = _choices(field.type)
                reason = f"{getattr(self, field.name)!r} is none of {choices}" if choices else error
                raise SettingsError(field.name, f"setting {field.name}: {reason}") from None
        validators: dict[str, Callable[[str], object]] = {
            "listen": parse_listen,
            "token": validate_token,
            "allowed_hosts": validate_allowed_host,
            "allowed_origins": validate_allowed_origin,
            "protocol": parse_protocol_rule,
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
        """Return the fields without the token. rich uses this in place of the repr."""
        return [
            (name, "***" if name == "token" and value is not None else value)
            for name, value in msgspec.structs.asdict(self).items()
        ]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Make settings from the variables of `environ` (pass `os.environ`).

        Raises:
            SettingsError: a variable has an invalid value.
        """
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            variable = ENVIRONMENT_PREFIX + field.name.upper()
            if environ.get(variable):
                values[field.name] = parse_setting(field.name, environ[variable], source=variable)
        return cls(**values)


def parse_setting(name: str, text: str, *, source: str) -> Any:
    """Convert the text of a variable or a flag to the value of a setting.

    Args:
        name: the name of the field.
        text: the text; `none` means None, or an empty tuple.
        source: the variable or flag, for the message of an error.

    Raises:
        SettingsError: the text cannot be converted to the type of the field.
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
        choices = _choices(field.type)
        reason = f"it is none of {choices}" if choices else error
        raise SettingsError(name, f"{source}={text!r}: {reason}") from None


def _choices(kind: Any) -> str:
    """Return the values of a `Literal` for people, `root or all`; empty for another type."""
    if get_origin(kind) is not Literal:
        return ""
    *others, last = get_args(kind)
    return f"{', '.join(others)} or {last}"


def setting_text(name: str, value: Any) -> str:
    """Return the text from which `parse_setting` makes the value."""
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
    """The address to listen at: the path of a unix socket, or a host and a port."""

    path: str | None
    host: str
    port: int


def parse_listen(listen: str) -> Listen:
    """Parse `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH`.

    Raises:
        ValueError: the text has none of these forms.
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
