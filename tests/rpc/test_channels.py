"""TLS, calls in the clear, and tokens, against real servers; some have wrong certificates."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme

from monitor_plugin import (
    Backend,
    InvalidBackend,
    Monitor,
    Reading,
    Settings,
    SettingsError,
    hookimpl,
)
from monitor_plugin.concurrency.blocking import BlockingObserver
from monitor_plugin.domain.address import grpc_socket_target
from monitor_plugin.rpc.channels import ChannelSecurity
from monitor_plugin.rpc.client import StatusClient
from monitor_plugin.rpc.protocol import SERVICE

from ..support import Spawner, eventually, logged, program, register

TOKEN = "s3cret-token"


class Server:
    """A gRPC server that records the `authorization` of each call. With a certificate: TLS."""

    def __init__(self, host: str, certificate: trustme.LeafCert | None) -> None:
        self.tokens: list[str | None] = []

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = {key: str(value) for key, value in context.invocation_metadata()}
            self.tokens.append(metadata.get("authorization"))
            return b"\x08\x02"

        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(answer)
        methods = {"Status": handler, "Free": handler}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, methods),)
        )
        if certificate is None:
            self.port = self._server.add_insecure_port(f"{host}:0")
        else:
            chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
            pair = (certificate.private_key_pem.bytes(), chain)
            credentials = grpc.ssl_server_credentials([pair])
            self.port = self._server.add_secure_port(f"{host}:0", credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


Serve = Callable[..., Server]
Read = Callable[..., Reading]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and stops them."""
    servers: list[Server] = []

    def start(certificate: trustme.LeafCert | None = None, host: str = "127.0.0.1") -> Server:
        servers.append(Server(host, certificate))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
def read(spawner: Spawner) -> Read:
    """Registers a process as the backend with an address, and reads it."""

    def read(monitor: Monitor, address: str, model: str = "m") -> Reading:
        pid = spawner.sleeper(serves=address).pid
        monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)
        return monitor.read(model)

    return read


@pytest.fixture
def make_client() -> Iterator[Callable[..., StatusClient]]:
    """Makes status clients that send only the token as metadata, and closes them."""
    clients: list[StatusClient] = []

    def make(**settings: Any) -> StatusClient:
        clients.append(
            StatusClient(
                30, lambda backend: {}, ChannelSecurity(Settings(**settings)), BlockingObserver()
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def long_timeout_monitor(make_monitor: Callable[..., Monitor]) -> Callable[..., Monitor]:
    """Makes monitors with a long timeout, so that a slow machine causes no DEADLINE_EXCEEDED."""

    def make(*plugins: object, **settings: Any) -> Monitor:
        return make_monitor(list(plugins), status_timeout_seconds=30.0, **settings)

    return make


def backend_at(address: str) -> Backend:
    return Backend("m", 1000, address, 1.0)


def own_address() -> str:
    """An IPv4 address of this machine that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family is socket.AF_INET and not each.address.startswith("127."):
                return each.address
    pytest.skip("this machine has no IPv4 address but loopback")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_verified_backend_is_called_with_tls(
    host: str,
    ca: trustme.CA,
    ca_file: str,
    token_file: Path,
    serve: Serve,
    long_timeout_monitor: Callable[..., Monitor],
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`grpcs://` works with names and addresses, with the token, and ignores the host's proxy."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    bound = "[::1]" if host == "[::1]" else "127.0.0.1"
    server = serve(ca.issue_cert(host.strip("[]")), bound)
    monitor = long_timeout_monitor(grpc_ca_file=ca_file, grpc_token_file=str(token_file))
    assert read(monitor, f"grpcs://{host}:{server.port}").source == "grpc"
    assert server.tokens == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("certificate", ["of another CA", "of another name", "in the clear"])
def test_a_backend_that_is_not_verified_gives_a_sample_and_gets_no_token(
    certificate: str,
    ca: trustme.CA,
    ca_file: str,
    token_file: Path,
    serve: Serve,
    long_timeout_monitor: Callable[..., Monitor],
    make_client: Callable[..., StatusClient],
    read: Read,
) -> None:
    """Neither `Status` nor `Free` reaches a server that TLS does not verify, and no token does."""
    certificates = {
        "of another CA": trustme.CA().issue_cert("localhost"),
        "of another name": ca.issue_cert("gpu1.example", "127.0.0.2"),
        "in the clear": None,
    }
    server = serve(certificates[certificate])
    address = f"grpcs://localhost:{server.port}"
    settings = {"grpc_ca_file": ca_file, "grpc_token_file": str(token_file)}
    reading = read(long_timeout_monitor(insecure=True, **settings), address)
    assert (reading.source, reading.rpc_error) == ("psutil", "UNAVAILABLE")
    assert reading.sample is not None
    assert make_client(insecure=True, **settings).free(backend_at(address)) == "UNAVAILABLE"
    assert server.tokens == []


def test_a_server_without_tls_gets_only_a_handshake(
    ca_file: str, token_file: Path, make_client: Callable[..., StatusClient]
) -> None:
    """With `grpcs://` the connection begins with TLS, and no token is sent."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def record() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    received.append(connection.recv(65536))
                    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=record)
        thread.start()
        client = make_client(insecure=True, grpc_ca_file=ca_file, grpc_token_file=str(token_file))
        address = f"grpcs://127.0.0.1:{listener.getsockname()[1]}"
        assert client.status(backend_at(address)).rpc_error == "UNAVAILABLE"
        client.close()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert received[0]
    assert all(each.startswith(b"\x16\x03") for each in received if each)
    assert TOKEN.encode() not in b"".join(received)


def test_without_a_ca_file_grpcs_own_roots_verify(
    ca: trustme.CA,
    ca_file: str,
    serve: Serve,
    make_client: Callable[..., StatusClient],
    spawner: Spawner,
) -> None:
    """A private CA is trusted only if gRPC's own variable names its file."""
    server = serve(ca.issue_cert("localhost"))
    address = f"grpcs://localhost:{server.port}"
    assert make_client().status(backend_at(address)).rpc_error == "UNAVAILABLE"
    code = (
        "import sys, tests.rpc.test_channels as t\n"
        "security = t.ChannelSecurity(t.Settings())\n"
        "client = t.StatusClient(30, lambda backend: {}, security, t.BlockingObserver())\n"
        "print(client.status(t.backend_at(sys.argv[1])).rpc_error)\n"
        "client.close()\n"
    )
    environment = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": ca_file}
    root = Path(__file__).parents[2]
    process = spawner.python(code, address, env=environment, cwd=root)
    assert process.communicate(timeout=60)[0] == "None\n"


def test_certificates_are_read_again_for_new_connections(
    ca: trustme.CA, ca_file: str, serve: Serve, make_client: Callable[..., StatusClient]
) -> None:
    """A backend of another CA is verified once the file holds that CA."""
    other = trustme.CA()
    server = serve(other.issue_cert("localhost"))
    backend = backend_at(f"grpcs://localhost:{server.port}")
    client = make_client(grpc_ca_file=ca_file)
    assert client.status(backend).rpc_error == "UNAVAILABLE"
    other.cert_pem.write_to_path(ca_file, append=True)
    eventually(lambda: client.status(backend).status)


def test_certificates_that_grpc_cannot_read_verify_no_backend(
    tmp_path: Path, serve: Serve, ca: trustme.CA, make_client: Callable[..., StatusClient]
) -> None:
    """The file may look like PEM and still be invalid."""
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    server = serve(ca.issue_cert("localhost"))
    client = make_client(grpc_ca_file=str(bad))
    assert client.status(backend_at(f"grpcs://localhost:{server.port}")).rpc_error == "UNAVAILABLE"


def test_an_address_is_the_same_with_and_without_tls(
    long_timeout_monitor: Callable[..., Monitor], read: Read, spawner: Spawner
) -> None:
    """Two backends may not have the same address, one with TLS and one in the clear."""
    monitor = long_timeout_monitor()
    read(monitor, "localhost:1")
    with pytest.raises(InvalidBackend, match="is held by process"):
        read(monitor, "grpcs://127.0.0.1:1")


REMOTE = ["gpu1.example:50051", "dns:///gpu1.example:50051", "192.0.2.77:1", "[2001:db8::1]:1"]


@pytest.mark.parametrize("address", REMOTE)
def test_a_remote_backend_in_the_clear_is_refused(
    address: str, long_timeout_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """The error names the settings that help, and nothing is registered."""
    monitor = long_timeout_monitor()
    pid = spawner.sleeper().pid
    with pytest.raises(InvalidBackend, match="clear") as raised:
        monitor.hook.monitor_backend_spawned(model="m", pid=pid, address=address)
    for said in (repr(address), "grpc_ca_file", "insecure"):
        assert said in str(raised.value)
    by_tls = "grpcs://" + address.removeprefix("dns:///")
    assert f"use {by_tls}," in str(raised.value)
    assert monitor.backends() == []
    monitor.hook.monitor_backend_spawned(model="m", pid=pid, address=by_tls)
    with pytest.raises(InvalidBackend, match="clear"):  # nor is a record changed to it
        monitor.hook.monitor_backend_spawned(model="m", pid=pid, address=address)
    assert monitor.backends()[0].address == by_tls


@pytest.mark.parametrize("address", REMOTE)
def test_credentials_of_remote_backends(address: str, ca_file: str) -> None:
    """TLS with `grpc_ca_file` or `grpcs://`; in the clear with `insecure`."""
    assert ChannelSecurity(Settings(insecure=True)).credentials(address) is None
    assert ChannelSecurity(Settings(grpc_ca_file=ca_file)).credentials(address)
    assert ChannelSecurity(Settings(grpc_ca_file=ca_file, insecure=True)).credentials(address)
    by_tls = "grpcs://" + address.removeprefix("dns:///")
    for settings in (Settings(), Settings(insecure=True), Settings(grpc_ca_file=ca_file)):
        assert ChannelSecurity(settings).credentials(by_tls)
    with pytest.raises(ValueError, match="clear"):
        ChannelSecurity(Settings()).credentials(address)


@pytest.mark.parametrize("address", ["localhost:1", "dns:///[::1]:1", "unix:/s", "0.0.0.0:1"])
def test_a_local_backend_is_called_in_the_clear(address: str, ca_file: str) -> None:
    """No setting changes that; only `grpcs://` does."""
    for settings in (Settings(), Settings(insecure=True), Settings(grpc_ca_file=ca_file)):
        assert ChannelSecurity(settings).credentials(address) is None


def test_remote_backends_over_a_real_network_address(
    ca: trustme.CA,
    ca_file: str,
    serve: Serve,
    long_timeout_monitor: Callable[..., Monitor],
    read: Read,
) -> None:
    """With TLS if there are certificates, in the clear only with `insecure`."""
    host = own_address()
    by_tls = serve(ca.issue_cert(host), host)
    in_clear = serve(None, host)
    strict, insecure = (
        long_timeout_monitor(grpc_ca_file=ca_file),
        long_timeout_monitor(insecure=True),
    )
    assert read(strict, f"{host}:{by_tls.port}", "a").source == "grpc"
    assert read(strict, f"dns:///{host}:{in_clear.port}", "b").rpc_error == "UNAVAILABLE"
    assert in_clear.tokens == []
    assert read(insecure, f"{host}:{in_clear.port}").source == "grpc"


def test_the_token_is_sent_with_status_and_free(
    token_file: Path, spawner: Spawner, make_client: Callable[..., StatusClient]
) -> None:
    """A backend that requires a token, as LocalAI's do, answers both calls."""
    backend = backend_at(spawner.backend("--token", TOKEN).address)
    with_token, without = make_client(grpc_token_file=str(token_file)), make_client()
    assert with_token.status(backend).rpc_error is None
    assert with_token.free(backend) is None
    assert without.status(backend).rpc_error == "UNAUTHENTICATED"
    assert without.free(backend) == "UNAUTHENTICATED"


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each for each in logged(caplog) if "grpc_token_file" in each]


@pytest.mark.parametrize("sends", ["nothing", "the file's token", "a hook's token"])
@pytest.mark.parametrize("switches", [(), ("--no-status",)], ids=["Status", "only Free"])
def test_a_backend_that_wants_another_token_is_logged_once(
    switches: tuple[str, ...],
    sends: str,
    token_file: Path,
    spawner: Spawner,
    long_timeout_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line for each backend, not for each call, names the setting and shows no token."""
    caplog.set_level(logging.DEBUG)

    class Hook:
        @hookimpl
        def monitor_call_metadata(self, backend: Backend) -> dict[str, str]:
            return {"authorization": f"Bearer {TOKEN}"} if sends == "a hook's token" else {}

    setting = {"grpc_token_file": str(token_file)} if sends == "the file's token" else {}
    monitor = long_timeout_monitor(Hook(), **setting)
    backends = [spawner.backend("--token", "another-s3cret", *switches) for _ in range(2)]
    for number, backend in enumerate(backends):
        backend.register(monitor, f"m{number}")
        with ThreadPoolExecutor(4) as pool:
            readings = list(pool.map(monitor.read, [f"m{number}"] * 8))
        assert {each.source for each in readings} == {"psutil"}
        monitor.shutdown(f"m{number}")  # calls `Free`
        lines = refusals(caplog)
        assert len(lines) == number + 1
        assert f"model 'm{number}' (process {backend.pid})" in lines[-1]
        assert "UNAUTHENTICATED" in lines[-1]
    assert "s3cret" not in caplog.text


def test_no_other_failure_is_taken_for_a_wrong_token(
    token_file: Path,
    spawner: Spawner,
    long_timeout_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A backend that accepts the token, and one that cannot be reached, are not logged."""
    monitor = long_timeout_monitor(grpc_token_file=str(token_file))
    spawner.backend("--token", TOKEN).register(monitor, "good")
    register(monitor, spawner.sleeper().pid, "away")
    for model in ("good", "away"):
        monitor.read(model)
        monitor.shutdown(model)
    assert refusals(caplog) == []


def test_a_changed_token_is_used_immediately(
    token_file: Path,
    spawner: Spawner,
    long_timeout_monitor: Callable[..., Monitor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a broken file the last token stays in use; no log shows a token.

    A backend that has accepted a token, and refuses the next one, is logged again.
    """
    caplog.set_level(logging.DEBUG)
    backend = spawner.backend("--token", "another-s3cret")
    monitor = long_timeout_monitor(grpc_token_file=str(token_file))
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=backend.address)
    assert monitor.read("m").rpc_error == "UNAUTHENTICATED"
    token_file.write_text("another-s3cret")
    assert monitor.read("m").source == "grpc"
    token_file.write_text("a broken s3cret")
    assert monitor.read("m").source == "grpc"
    assert f"{token_file} cannot be used" in caplog.text
    token_file.unlink()
    assert monitor.read("m").source == "grpc"
    assert len(refusals(caplog)) == 1
    token_file.write_text("wrong-s3cret")
    for _ in range(2):
        assert monitor.read("m").rpc_error == "UNAUTHENTICATED"
    assert len(refusals(caplog)) == 2
    assert "s3cret" not in caplog.text


def test_a_token_from_a_hook_replaces_the_one_from_the_file(
    token_file: Path, serve: Serve, long_timeout_monitor: Callable[..., Monitor], read: Read
) -> None:
    """Calls to other backends carry the token from the file."""

    class Tokens:
        @hookimpl
        def monitor_call_metadata(self, backend: Backend) -> dict[str, str]:
            return {"authorization": "Bearer own"} if backend.model == "own" else {"x-more": "1"}

    monitor = long_timeout_monitor(Tokens(), grpc_token_file=str(token_file))
    own, other = serve(), serve()
    assert read(monitor, f"127.0.0.1:{own.port}", "own").source == "grpc"
    assert read(monitor, f"127.0.0.1:{other.port}", "other").source == "grpc"
    assert (own.tokens, other.tokens) == (["Bearer own"], [f"Bearer {TOKEN}"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the token"),
        (b" \n\t", "the token"),
        (b"s3cret two", "the token"),
        (b"s3cret\ns3cret", "the token"),
        (b"s3cret\x00", "the token"),
        ("s3crét".encode(), "the token"),
        (b"s3cret\xff", "not UTF-8"),
        (b"s3cret" * 2**18, "more than"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("setting", ["grpc_token_file", "grpc_ca_file"])
def test_a_file_that_cannot_be_used_is_an_error(
    setting: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    """The error names the setting, the path and the fault, and quotes nothing from the file."""
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=setting) as raised:
        Monitor(Settings(listen=None, **{setting: str(path)}))  # type: ignore[arg-type]
    assert raised.value.setting == setting
    assert str(path) in str(raised.value)
    assert "s3cr" not in "".join(traceback.format_exception(raised.value))
    if setting == "grpc_ca_file":
        said = said.replace("the token", "no certificate in PEM")
    assert said in str(raised.value)


def test_a_key_is_no_certificate_and_a_folder_no_file(ca: trustme.CA, tmp_path: Path) -> None:
    """A wrong `grpc_ca_file` is an error at the start."""
    path = tmp_path / "key.pem"
    ca.private_key_pem.write_to_path(str(path))
    for wrong, said in ((path, "no certificate"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError, match=said):
            Monitor(Settings(listen=None, grpc_ca_file=str(wrong)))


def test_no_repr_shows_the_token(token_file: Path) -> None:
    """Neither the settings nor the channel security show it."""
    settings = Settings(grpc_token_file=str(token_file))
    security = ChannelSecurity(settings)
    assert security.add_token({}) == {"authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(settings) + repr(security) + repr(vars(security))


def test_hooks_get_channels_and_metadata_like_the_monitors_own(
    ca: trustme.CA,
    ca_file: str,
    token_file: Path,
    serve: Serve,
    make_monitor: Callable[..., Monitor],
) -> None:
    """A hook that speaks another protocol verifies the backend and sends the token."""
    server = serve(ca.issue_cert("localhost"))
    monitor = make_monitor(grpc_ca_file=ca_file, grpc_token_file=str(token_file))
    backend = backend_at(f"grpcs://localhost:{server.port}")
    with monitor.open_channel(backend) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Status", None, None)
        assert call(b"", timeout=60, metadata=tuple(monitor.call_metadata(backend).items()))
    assert server.tokens == [f"Bearer {TOKEN}"]
    with pytest.raises(ValueError, match="is not on this machine"):
        make_monitor().open_channel(backend_at("gpu1.example:1"))


@pytest.mark.parametrize("bound", ["127.0.0.1", "[::1]", "[::]", "0.0.0.0"])
@pytest.mark.parametrize(
    "dialled", [":{}", "*:{}", "[::]:{}", "0.0.0.0:{}", "ipv6:[::]:{}", "localhost:{}"]
)
def test_address_that_names_no_family_is_dialled_on_loopback(
    bound: str, dialled: str, serve: Serve, long_timeout_monitor: Callable[..., Monitor], read: Read
) -> None:
    """Whether the server listens at the address of one family or of both."""
    server = serve(None, bound)
    monitor = long_timeout_monitor()
    assert read(monitor, dialled.format(server.port)).source == "grpc"
    assert [each.address for each in monitor.backends()] == [dialled.format(server.port)]


def test_address_that_names_no_host_is_verified_as_localhost(
    ca: trustme.CA,
    ca_file: str,
    serve: Serve,
    long_timeout_monitor: Callable[..., Monitor],
    read: Read,
) -> None:
    """No certificate is issued for an unspecified address."""
    server = serve(ca.issue_cert("localhost"), "[::]")
    monitor = long_timeout_monitor(grpc_ca_file=ca_file)
    assert read(monitor, f"grpcs://:{server.port}").source == "grpc"


@pytest.mark.parametrize(
    "dialled", ["ipv4:127.0.0.1:{}", "ipv4:///127.0.0.1:{}", "dns:localhost:{}", "127.0.0.1%3A{}"]
)
def test_targets_of_grpc_are_dialled(
    dialled: str, serve: Serve, long_timeout_monitor: Callable[..., Monitor], read: Read
) -> None:
    """As gRPC takes them, with its percent-encoding."""
    server = serve()
    assert read(long_timeout_monitor(), dialled.format(server.port)).source == "grpc"


@pytest.mark.parametrize("dialled", ["ipv6:[::1]:{}", "ipv6:%5B::1%5D:{}", "dns:///%5B::1%5D:{}"])
def test_targets_of_grpc_are_dialled_by_ipv6(
    dialled: str, serve: Serve, long_timeout_monitor: Callable[..., Monitor], read: Read
) -> None:
    """As gRPC takes them, with its percent-encoding."""
    server = serve(None, "[::1]")
    assert read(long_timeout_monitor(), dialled.format(server.port)).source == "grpc"


@pytest.mark.parametrize("name", ["a b", "50%", "a?b#c", "na\u00efve", "a%20b"])
def test_path_of_a_socket_may_have_any_letters(
    name: str, spawner: Spawner, tmp_path: Path, long_timeout_monitor: Callable[..., Monitor]
) -> None:
    """They are written with percent-encoding, as gRPC reads them."""
    address = grpc_socket_target(f"{tmp_path}/{name}")
    backend = spawner.backend(addr=address)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    monitor = long_timeout_monitor()
    monitor.hook.monitor_backend_spawned(model="m", pid=backend.pid, address=address)
    (observation,) = monitor.sweep()
    assert observation.reading
    assert (observation.reading.source, observation.served_by) == ("grpc", backend.pid)


WITHOUT_IPV6 = """
import subprocess, sys
from pathlib import Path
from monitor_plugin import Monitor, Settings
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
command = [sys.executable, "-m", "monitor_plugin.demo.backend", "--addr", "127.0.0.1:50051"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as backend:
    backend.stdout.readline()
    with Monitor(Settings(listen=None, status_timeout_seconds=30.0)) as monitor:
        for address in ("[::]:50051", ":50051", "0.0.0.0:50051", "localhost:50051"):
            spawned = monitor.hook.monitor_backend_spawned
            spawned(model="m", pid=backend.pid, address=address)
            (observation,) = monitor.sweep()
            print(observation.reading.source, observation.served_by == backend.pid)
    backend.kill()
"""


def test_address_that_names_no_host_is_reached_where_ipv6_is_off() -> None:
    """Then a connection to ::1 fails at once."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    command = [program("unshare"), "--net", sys.executable, "-c", WITHOUT_IPV6]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "grpc True\n" * 4, done.stderr
