"""Permissions to read and to stop: TLS, NKeys and credentials with a real NATS server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

from monitor_plugin import Monitor, Settings
from monitor_plugin.domain.errors import SettingsError

from ...support import Client, eventually
from .conftest import ROOT, MakeHost, MakeLocal, NatsServer, NodeClient
from .rogue import Rogue

EXAMPLE = (ROOT / "examples" / "nats" / "nats-server.conf").read_text()

PREFIXES = {"operator": 14 << 3, "account": 0, "user": 20 << 3}


class Key:
    """A new NKey of a user, an account or an operator."""

    def __init__(self, kind: str = "user") -> None:
        self.seed: bytes = bytes(nkeys.encode_seed(os.urandom(32), PREFIXES[kind]))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def file(self, path: Path) -> str:
        """Write the seed to a file, and return its path."""
        path.write_bytes(self.seed)
        return str(path)

    def sign_claims(self, subject: str, name: str, nats: dict[str, Any]) -> str:
        """Make a JWT with claims for NATS."""
        claims: dict[str, Any] = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": {"version": 2, **nats},
        }
        identity = hashlib.sha256(json.dumps(claims).encode()).digest()
        claims["jti"] = base64.b32encode(identity).decode().rstrip("=")
        parts = [
            _b64(json.dumps(each).encode())
            for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)
        ]
        text = ".".join(parts)
        return f"{text}.{_b64(self._pair.sign(text.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Example:
    """A NATS server with the example's configuration, TLS, and keys for its users."""

    def __init__(self, make_nats: Callable[..., NatsServer], directory: Path) -> None:
        self._directory = directory
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.cert_chain_pems[0].write_to_path(directory / "server.pem")
        certificate.private_key_pem.write_to_path(directory / "server.key")
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.keys = {"gpu-1": Key(), "gpu-2": Key(), "dashboard": Key()}
        text = EXAMPLE.replace("listen: 0.0.0.0:4222", "")
        text = text.replace('"server.', f'"{directory}/server.')
        for name, key in self.keys.items():
            text = text.replace(f"U{name.upper().replace('-', '')}", key.public)
        config = directory / "nats.conf"
        config.write_text(text)
        self.server = make_nats("-c", str(config))

    def key_file(self, name: str) -> str:
        """Return a file with a user's seed. An unknown user gets a new key."""
        return self.keys.setdefault(name, Key()).file(self._directory / f"{name}.nkey")

    def node(self, make_local: MakeLocal, name: str, *models: str) -> NodeClient:
        """Start a node as the example's user of that name."""
        settings = {"cluster_ca_file": str(self.ca), "cluster_nkey_file": self.key_file(name)}
        return make_local(name, self.server.url, *models, **settings)


@pytest.fixture
def example(make_nats: Callable[..., NatsServer], tmp_path: Path) -> Example:
    """A NATS server as the example configures it."""
    return Example(make_nats, tmp_path)


@pytest.mark.once
def test_example_permissions_keep_readers_from_stopping(
    example: Example, make_local: MakeLocal, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader reads all nodes' models, and stops only its own.

    The errors say that NATS refuses.
    """
    stops = example.node(make_local, "gpu-1", "M/x", "both")
    holds = example.node(make_local, "gpu-2", "own", "both", "there")
    reads = example.node(make_local, "dashboard")
    wrong = example.node(make_local, "nobody")
    for each in (stops, holds, reads):
        eventually(partial(each.lists, "gpu-1", "gpu-2", "dashboard"))
        eventually(partial(each.reads, "M/x"))
        eventually(partial(each.merges, "both", "gpu-1", "gpu-2"))
    for each in (holds, reads):
        refused = each.client.shutdown("M/x")
        assert (refused.status, refused.json["error"]["type"]) == (403, "node_forbidden")
        message = refused.json["error"]["message"]
        assert "NATS does not let this node publish to monitor.shutdown.model.M=2Fx" in message
        assert each.client.shutdown("M/x", node="gpu-1").status == 403
    partly = holds.client.shutdown("both")
    assert (partly.status, partly.json["error"]["type"]) == (403, "node_forbidden")
    assert "stopped on gpu-2" in partly.json["error"]["message"]
    assert reads.reads("M/x"), "it was stopped all the same"
    assert reads.merges("both", "gpu-1")
    assert holds.client.shutdown("own").status == 200
    assert stops.client.shutdown("there").status == 200
    # A node with an unknown key is refused, logs that, and serves its own models.
    assert wrong.client.monitor("M/x").status == 504
    eventually(lambda: "Authorization Violation" in caplog.text)
    assert example.keys["nobody"].seed.decode() not in caplog.text
    # A server with a certificate of another authority is refused.
    trustme.CA().cert_pem.write_to_path(example.ca)
    example.node(make_local, "gpu-1")
    eventually(lambda: "certificate verify failed" in caplog.text)


@pytest.mark.once
def test_example_permissions_keep_readers_from_starting(
    example: Example, make_local: MakeLocal, make_host: MakeHost
) -> None:
    """A reader starts and restarts its own models only, also for an admin's token."""
    starts = example.node(make_local, "gpu-1")
    settings = {"cluster_ca_file": str(example.ca)}
    programs = {"own": "", "m": ""}
    key = example.key_file("gpu-2")
    holds = make_host("gpu-2", example.server.url, programs, cluster_nkey_file=key, **settings)
    reads = example.node(make_local, "dashboard")
    for each in (starts, holds, reads):
        eventually(partial(each.lists, "gpu-1", "gpu-2", "dashboard"))
    own = {"model": "own"}
    assert holds.client.request("POST", "/backend/load", own).status == 200
    for path in ("/backend/load", "/backend/restart"):
        for body in ({"model": "m"}, {"model": "m", "node": "gpu-2"}, own):
            refused = reads.client.request("POST", path, body)
            assert (refused.status, refused.json["error"]["type"]) == (403, "node_forbidden")
            message = refused.json["message"]
            assert "publish to monitor.shutdown.node.gpu-" in message
            assert "nothing was" in message
    assert holds.host.started == ["own"]
    for path in ("/backend/load", "/backend/restart"):
        assert starts.client.request("POST", path, {"model": "m"}).status == 200
    assert holds.host.started == ["own", "m", "m"]
    assert holds.client.request("POST", "/backend/restart", own).status == 200


@pytest.mark.once
@pytest.mark.parametrize("name", ["gpu-2", "dashboard"])
def test_example_permissions_let_no_node_pose_as_another(example: Example, name: str) -> None:
    """A node publishes, subscribes and replies in its own name only, and a reader stops nothing."""
    tls = ssl.create_default_context(cafile=str(example.ca))
    rogue = Rogue(example.server.url, tls=tls, nkeys_seed=example.key_file(name))
    try:
        publish = [
            "nodes.gpu-1",
            "reply.gpu-1.1.hello.gpu-1",
            "reply.gpu-1.1.2",
            "shutdown.model.m",
            "shutdown.node.gpu-1",
            "shutdown.now.gpu-1.1",
        ]
        listen = [
            "read.node.gpu-1",
            "read.node.*",
            "reply.gpu-1.1.>",
            "reply.>",
            "shutdown.node.gpu-1",
            "shutdown.now.gpu-1.1",
            "shutdown.>",
            ">",
        ]
        for subject in publish:
            rogue.publish(f"monitor.{subject}", b"x")
            eventually(partial(rogue.was_refused, f'publish to "monitor.{subject}"'))
        for subject in listen:
            rogue.subscribe(f"monitor.{subject}")
            eventually(partial(rogue.was_refused, f'subscription to "monitor.{subject}"'))
        before = len(rogue.errors)
        for subject in (f"nodes.{name}", f"reply.gpu-1.1.2.{name}", "read.model.m"):
            rogue.publish(f"monitor.{subject}", b"x")
        assert len(rogue.errors) == before
    finally:
        rogue.close()


@pytest.mark.once
def test_nodes_join_with_credentials_from_files(
    make_nats: Callable[..., NatsServer],
    make_local: MakeLocal,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nodes with `.creds` files of one account see each other; a node without one is refused."""
    operator, account = Key("operator"), Key("account")
    limits = {"subs": -1, "data": -1, "payload": -1}
    account_limits = {
        **limits,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
    }
    tokens = {
        "operator": operator.sign_claims(operator.public, "o", {"type": "operator"}),
        "account": operator.sign_claims(
            account.public, "a", {"type": "account", "limits": account_limits}
        ),
    }
    config = tmp_path / "nats.conf"
    config.write_text(
        f"operator: {tokens['operator']}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {tokens['account']} }}\n"
    )
    server = make_nats("-c", str(config))
    nodes = []
    for name in "ab":
        user = Key()
        token = account.sign_claims(user.public, name, {"type": "user", **limits})
        path = tmp_path / f"{name}.creds"
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )
        nodes.append(make_local(name, server.url, f"m{name}", cluster_creds_file=str(path)))
    eventually(lambda: all(node.lists("a", "b") for node in nodes))
    eventually(lambda: nodes[0].client.monitor("mb").status == 200)
    assert nodes[0].client.shutdown("mb").status == 200
    without = make_local("c", server.url)
    eventually(lambda: "will try again" in caplog.text)
    assert without.client.monitor("ma").status == 504


def test_replaced_key_file_is_used_for_the_next_connection(
    make_nats: Callable[..., NatsServer],
    make_local: MakeLocal,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An incomplete file does not end the link for good, and another user's key is accepted."""
    old, new = Key(), Key()
    config = tmp_path / "nats.conf"
    config.write_text(
        f"authorization {{ users: [{{nkey: {old.public}}}, {{nkey: {new.public}}}] }}\n"
    )
    server = make_nats("-c", str(config))
    path = tmp_path / "a.nkey"
    a = make_local("a", server.url, cluster_nkey_file=old.file(path))
    eventually(lambda: a.get("/backends").json["cluster_error"] is None)
    server.kill()
    path.write_bytes(b"")
    server.start()
    eventually(lambda: "invalid seed" in caplog.text)
    new.file(path)
    eventually(lambda: a.get("/backends").json["cluster_error"] is None)


def test_client_sends_nothing_to_a_server_without_the_demanded_tls(
    make_monitor: Callable[..., Monitor], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that does not ask for TLS gets no byte.

    This pins names of nats-py that it does not document; setup.cfg keeps nats-py below the next
    major version for their sake.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        monitor = make_monitor(cluster=f"tls://127.0.0.1:{server.getsockname()[1]}", node="a")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            connection.sendall(b'INFO {"max_payload":1048576,"headers":true}\r\n')
            assert connection.recv(4096) == b""
        eventually(lambda: "speaks no TLS, which the settings demand" in caplog.text)
        assert Client(monitor.url).monitor("m").status == 504


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "nats://nats.example:4222"}, "tls://"),
        ({"cluster": "nats://127.0.0.1,nats://10.0.0.1"}, "tls://"),
        ({"cluster": "tls://nats.example"}, "credentials"),
        ({"cluster": "nats://user:secret@127.0.0.1"}, "password"),
        ({"cluster": "http://127.0.0.1"}, "no NATS server"),
        ({"cluster": " , "}, "no NATS server"),
        ({"cluster_namespace": "a.*"}, "no prefix"),
        ({"node": "a b"}, "no node's name"),
        ({"node": "a\nb"}, "no node's name"),
        ({"cluster_url": "ftp://x"}, "no address"),
    ],
)
def test_settings_refuse_open_or_wrong_clusters(settings: dict[str, Any], message: str) -> None:
    """A NATS server on another machine needs TLS and credentials; no error quotes a password."""
    with pytest.raises(SettingsError, match=message) as caught:
        Settings(**settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster": "nats://localhost"},
        {"cluster": "127.0.0.1:4222, [::1]:4222"},
        {"cluster": "nats://nats.example", "insecure": True},
        {"cluster": "tls://nats.example", "cluster_creds_file": "/x"},
        {
            "cluster": "nats://nats.example",
            "cluster_ca_file": "/x",
            "cluster_nkey_file": "/x",
        },
    ],
)
def test_settings_accept_safe_or_explicitly_insecure_clusters(settings: dict[str, Any]) -> None:
    """Loopback needs nothing; other servers need TLS and credentials, or `insecure`."""
    Settings(**settings)


@pytest.mark.parametrize("setting", ["cluster_ca_file", "cluster_creds_file", "cluster_nkey_file"])
def test_monitor_names_a_file_that_cannot_be_read(setting: str) -> None:
    """The monitor does not start with a missing file, and names it."""
    given: dict[str, Any] = {setting: "/nowhere/file"}
    with pytest.raises(SettingsError, match="/nowhere/file"):
        Monitor(Settings(listen=None, cluster="nats://127.0.0.1:4", **given))
