"""Where the server listens: nowhere open by accident, and at unix sockets that are its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monitor_plugin import Monitor, Settings
from monitor_plugin.domain.errors import ListenError
from monitor_plugin.http.server import listener as listening
from monitor_plugin.http.server.listener import open_listener, plain_address

from ..support import Client, Spawner, descriptors, free_port


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "monitor.sock"


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    previous = os.umask(value)
    try:
        yield
    finally:
        os.umask(previous)


@contextlib.contextmanager
def other_server(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind is socket.SOCK_STREAM:
            other.listen()
        yield


def leave_stale_socket(path: Path) -> None:
    with other_server(path):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "0", "[::ffff:0.0.0.0]"])
def test_an_open_address_requires_a_token(host: str) -> None:
    """Without a token what is no loopback is refused, saying what to set, and nothing is bound."""
    port = free_port()
    before = descriptors()
    with pytest.raises(ListenError) as caught:
        Monitor(Settings(listen=f"{host}:{port}")).start()
    message = str(caught.value)
    for word in (f"{host}:{port}", "MONITOR_TOKEN", "--token-file", "--insecure", "127.0.0.1"):
        assert word in message
    assert descriptors() <= before
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize(
    "allowed",
    [
        Settings(token="secret"),
        Settings(token_file="/run/tokens"),
        Settings(insecure=True),
    ],
    ids=["token", "token_file", "insecure"],
)
def test_an_open_address_is_bound_with_a_token_or_insecure(allowed: Settings) -> None:
    """A token, a file of them, or `insecure` opens it."""
    listener = open_listener("0.0.0.0:0", allowed)
    assert listener.url == f"http://0.0.0.0:{listener.socket.getsockname()[1]}"
    listener.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_loopback_needs_no_token(host: str) -> None:
    """Every loopback address is bound as it is, by name too."""
    open_listener(f"{host}:0", Settings()).close()


def test_the_bound_address_decides_and_not_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A harmless name that leads to an open address is refused."""

    def resolve(host: str, port: int, **options: object) -> object:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ListenError, match=r"0\.0\.0\.0 is not a loopback address"):
        open_listener("localhost:0", Settings())


def test_an_invalid_host_name_is_a_clear_error() -> None:
    """A label that is too long for a name is refused like a name that is unknown."""
    with pytest.raises(ListenError, match="cannot listen on"):
        open_listener(f"{'é' * 70}.invalid:0", Settings())


def test_mapped_addresses_are_shown_plain() -> None:
    """What came over IPv6 from an IPv4 address is that address; others stay as they are."""
    given = ["::ffff:192.0.2.1", "192.0.2.1", "2001:db8::1", "localhost", "fe80::1%eth0"]
    assert [plain_address(each) for each in given] == ["192.0.2.1", *given[1:]]


def test_a_unix_socket_is_served(make_monitor: Callable[..., Monitor], path: Path) -> None:
    """Requests over it are answered, its URL is `unix:/PATH`, and nothing else is left there."""
    monitor = make_monitor(listen=f"unix:{path}")
    assert monitor.url == f"unix:{path}"
    assert Client(monitor.url).monitor("x").json["error"]["type"] == "model_not_loaded"
    assert os.listdir(path.parent) == [path.name]
    monitor.close()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
def test_the_socket_file_has_the_exact_mode(
    mode: int, mask: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, the file has the mode that was set, at no moment a wider one."""
    seen: list[int] = []
    chmod = Path.chmod

    def recording_chmod(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(path.lstat().st_mode))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", recording_chmod)
    with umask(mask):
        listener = open_listener(f"unix:{path}", Settings(socket_mode=mode))
        assert os.umask(mask) == mask
    assert seen == [mode & ~mask]
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    listener.close()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    """A file at which nobody listens any more makes room."""
    leave_stale_socket(path)
    listener = open_listener(f"unix:{path}", Settings())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def make_symlink(path: Path) -> None:
    target = path.with_name("target.sock")
    leave_stale_socket(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: path.write_text("precious"), "not a socket"),
        (lambda path: path.mkdir(), "not a socket"),
        (lambda path: path.symlink_to("nowhere"), "not a socket"),
        (make_symlink, "not a socket"),
        (lambda path: os.mkfifo(path), "not a socket"),
    ],
    ids=["file", "folder", "dangling link", "link to a stale socket", "pipe"],
)
def test_other_kinds_of_file_are_not_removed(
    put: Callable[[Path], object], said: str, path: Path
) -> None:
    """A file, folder, link or pipe in the way is named, and stays."""
    put(path)
    before, files = path.lstat(), sorted(os.listdir(path.parent))
    with pytest.raises(ListenError, match=said) as caught:
        open_listener(f"unix:{path}", Settings())
    assert str(path) in str(caught.value)
    assert os.path.samestat(path.lstat(), before)
    assert sorted(os.listdir(path.parent)) == files


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_live_socket_is_not_removed(path: Path, kind: socket.SocketKind) -> None:
    """Where another process listens, whatever it speaks, its socket stays its own."""
    with other_server(path, kind):
        node = path.lstat()
        with pytest.raises(ListenError, match="another process listens"):
            open_listener(f"unix:{path}", Settings())
        assert os.path.samestat(path.lstat(), node)


def test_a_socket_with_a_full_backlog_is_live(path: Path) -> None:
    """One that takes no more connections for now is not stale, and is not waited for."""
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(path))
        other.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ListenError, match="another process listens"):
            open_listener(f"unix:{path}", Settings())


def test_a_second_monitor_does_not_steal_the_first_ones_socket(
    make_monitor: Callable[..., Monitor], path: Path
) -> None:
    """It fails with a clear error, and the first is still reached."""
    first = make_monitor(listen=f"unix:{path}")
    with pytest.raises(ListenError, match="another process listens"):
        Monitor(Settings(listen=f"unix:{path}")).start()
    assert Client(first.url).monitor("x").status == 500


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_concurrent_binds_wins(stale: bool, path: Path) -> None:
    """Whatever the order, exactly one listens, and it is the one that is reached."""
    count = 8
    for _ in range(30):
        if stale:
            leave_stale_socket(path)
        barrier = threading.Barrier(count)

        def start(barrier: threading.Barrier = barrier) -> listening.Listener | None:
            barrier.wait()
            with contextlib.suppress(ListenError):
                return open_listener(f"unix:{path}", Settings())
            return None

        with ThreadPoolExecutor(count) as pool:
            started = [pool.submit(start) for _ in range(count)]
            winners = [each for each in (one.result() for one in started) if each]
        assert len(winners) == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            winners[0].socket.accept()[0].close()
        winners[0].close()
        assert os.listdir(path.parent) == []


def test_a_folder_that_stays_locked_is_not_waited_for_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the folder locked costs a bounded wait and gives a clear error."""
    monkeypatch.setattr(listening, "_LOCK_SECONDS", 0.1)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(ListenError, match="keeps the folder"):
            open_listener(f"unix:{path}", Settings())
    finally:
        os.close(folder)
    open_listener(f"unix:{path}", Settings()).close()


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    """The message names the path and the reason, and no descriptor is left."""
    before = descriptors()
    with pytest.raises(ListenError, match=r"nowhere/m.sock: No such file or directory"):
        open_listener(f"unix:{tmp_path}/nowhere/m.sock", Settings())
    assert descriptors() <= before


def test_a_folder_without_permission_is_a_clear_error(spawner: Spawner) -> None:
    """A user who may not write there is told so; as root, another user is tried."""
    code = (
        "import os; from monitor_plugin import Settings, errors\n"
        "from monitor_plugin.http.server.listener import open_listener\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: open_listener('unix:/monitor-test.sock', Settings())\n"
        "except errors.ListenError as error: print(error)"
    )
    process = spawner.python(code, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    assert "cannot listen on unix:/monitor-test.sock: Permission denied" in output


def test_only_its_own_file_is_removed(path: Path) -> None:
    """What somebody else put there meanwhile stays, and a folder that is gone is no error."""
    listener = open_listener(f"unix:{path}", Settings())
    path.unlink()
    path.write_text("precious")
    listener.close()
    assert path.read_text() == "precious"
    path.unlink()
    listener = open_listener(f"unix:{path}", Settings())
    path.unlink()
    path.parent.rmdir()
    listener.close()


def test_a_failure_after_the_bind_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the mode cannot be set, neither the file nor a descriptor is left."""

    def refuse(self: Path, mode: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    before = descriptors()
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(ListenError, match="Operation not permitted"):
        open_listener(f"unix:{path}", Settings())
    assert not path.exists()
    assert descriptors() <= before
