"""Signed posts: what a receiver verifies, what is tried again, and what is never done."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from monitor_plugin.hook_support.delivery import NotSent
from monitor_plugin.hook_support.signed_post import Message, SignedPost, parse_url

from ..receiver import Receiver
from ..support import eventually, free_port

MESSAGE = Message("msg_1", b'{"type": "ended"}')


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def post_to(url: str, secret: str = "s3cret", timeout_seconds: float = 20) -> SignedPost:
    return SignedPost(parse_url(url), secret, timeout_seconds)


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("s3cret ß", "s3cret ß".encode()),
        (f"whsec_{base64.b64encode(bytes(range(24))).decode()}", bytes(range(24))),
    ],
)
def test_post_is_signed(secret: str, key: bytes, receiver: Receiver) -> None:
    """The signature covers the id, the time of the try, and the exact body."""
    before = int(time.time())
    post_to(f"{receiver.url}/a/b?c=d%20e", secret).send(MESSAGE)
    (post,) = receiver.posts
    assert (post.path, post.body) == ("/a/b?c=d%20e", MESSAGE.body)
    assert post.headers["Content-Type"] == "application/json"
    assert post.headers["Host"] == f"localhost:{receiver.port}"
    assert post.headers["webhook-id"] == "msg_1"
    assert before <= int(post.headers["webhook-timestamp"]) <= time.time()
    assert post.is_signed(key)
    assert not post._replace(body=post.body + b" ").is_signed(key)


def test_the_secret_is_not_kept() -> None:
    """No attribute of a post contains the secret."""
    post = post_to("http://host", "hunter2")
    assert "hunter2" not in repr([post, vars(post)])


@pytest.mark.parametrize(
    ("status", "headers", "again", "after_seconds"),
    [
        (503, {}, True, 0),
        (429, {"Retry-After": "7"}, True, 7),
        (503, {"Retry-After": "86400"}, True, 300),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, True, 0),
        (408, {}, True, 0),
        (400, {}, False, 0),
        (410, {"Retry-After": "7"}, False, 7),
        (302, {"Location": "/elsewhere"}, False, 0),
    ],
)
def test_status_other_than_2xx_is_a_failure(
    status: int, headers: dict[str, str], again: bool, after_seconds: float, receiver: Receiver
) -> None:
    """Temporary failures are tried again, after `Retry-After`; refusals are final."""
    receiver.answers = [(status, headers)]
    with pytest.raises(NotSent, match=f"the response has status {status}") as raised:
        post_to(receiver.url).send(MESSAGE)
    assert (raised.value.again, raised.value.after_seconds) == (again, after_seconds)
    assert len(receiver.posts) == 1  # a redirect is not followed


def test_refused_connection_is_a_failure() -> None:
    """The failure is temporary; proxies of the environment are not used."""
    nobody = f"http://localhost:{free_port()}"
    with pytest.raises(NotSent, match="ConnectionRefusedError") as raised:
        post_to(nobody).send(MESSAGE)
    assert raised.value.again


def test_no_proxy_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment would learn the models' names."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    post_to(receiver.url).send(MESSAGE)
    assert len(receiver.posts) == 1


def test_hanging_post_times_out_or_is_interrupted(receiver: Receiver) -> None:
    """Both failures are temporary."""
    receiver.open.clear()
    with pytest.raises(NotSent, match="timed out"):
        post_to(receiver.url, timeout_seconds=0.1).send(MESSAGE)
    post, failures = post_to(receiver.url), []

    def send() -> None:
        try:
            post.send(MESSAGE)
        except NotSent as error:
            failures.append(error)

    post.interrupt()  # nothing is under way
    thread = threading.Thread(target=send)
    thread.start()
    eventually(lambda: len(receiver.posts) == 2)
    post.interrupt()
    thread.join(10)
    assert [failure.again for failure in failures] == [True]


def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown authority is refused; SSL_CERT_FILE adds one."""
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Receiver(tls) as receiver:
        with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
            post_to(receiver.url).send(MESSAGE)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
            post_to(receiver.url.replace("localhost", "127.0.0.1")).send(MESSAGE)
        assert receiver.posts == []
        post_to(receiver.url).send(MESSAGE)
        assert len(receiver.posts) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/",
        "https://",
        "https:///path",
        "host:80/path",
        "https://user:hunter2@host/",
        "https://host:0/",
        "https://host:99999/",
        "https://host:x/",
        "https://[::1/",
        "https://host/a b",
        "https://host/\r\nX: y",
        "https://höst/",
        "https://host/#part",
        "https://a..b/",
        f"https://{'a' * 64}.example/",
    ],
)
def test_invalid_url_is_refused(url: str) -> None:
    """The error omits the URL, which may contain a secret."""
    with pytest.raises(ValueError, match=r"^it (has an invalid host|is not an https)") as raised:
        parse_url(url)
    assert "hunter2" not in str(raised.value)


def test_invalid_secret_is_refused() -> None:
    """The text after whsec_ must be base64, and not empty."""
    with pytest.raises(ValueError, match="empty"):
        post_to("http://host", "whsec_")
    with pytest.raises(ValueError, match=r"^(?!.*hunter)"):
        post_to("http://host", "whsec_hunter2!")
