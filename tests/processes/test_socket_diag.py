from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address

import pytest

from monitor_plugin.processes import sockets
from monitor_plugin.processes.socket_diag import TcpListener, list_tcp_listeners
from monitor_plugin.processes.sockets import take_snapshot

pytestmark = pytest.mark.once

HOSTS = ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("host", HOSTS)
def test_listening_socket_is_listed_until_it_is_closed(host: str) -> None:
    """A connection to it is not listed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError as error:
            pytest.skip(f"{host} is not available here: {error}")
        listener.listen()
        port = listener.getsockname()[1]
        inode = os.fstat(listener.fileno()).st_ino
        with socket.create_connection(("127.0.0.1" if host == HOSTS[-1] else host, port)):
            found = [each for each in list_tcp_listeners() if each.port == port]
    assert found == [TcpListener(ip_address(host).packed, port, inode)]
    assert not [each for each in list_tcp_listeners() if each.port == port]


def test_kernel_with_many_sockets_lists_them_all() -> None:
    """More than one answer of the kernel holds."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(500)]
    inodes = {os.fstat(each.fileno()).st_ino for each in listeners}
    assert inodes <= {each.inode for each in list_tcp_listeners()}
    for each in listeners:
        each.close()


def test_sockets_are_read_from_proc_where_the_kernel_refuses_to_list_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A seccomp profile may refuse it, and other kernels do not have it."""

    def refuse() -> None:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(sockets, "list_tcp_listeners", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loopback = [[socket.inet_aton("127.0.0.1")]]
        inodes = take_snapshot().tcp_inodes(listener.getsockname()[1], loopback)
        assert inodes == {os.fstat(listener.fileno()).st_ino}


def test_refusal_of_the_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may know nothing of a protocol: its module may be missing."""
    monkeypatch.setattr(socket, "IPPROTO_TCP", 255)
    with pytest.raises(OSError, match="No such file or directory"):
        list_tcp_listeners()


@pytest.mark.parametrize("answers", [[], [b""], [bytes(8)], [bytes(16)], [b"\x20" + bytes(31)]])
def test_answer_of_a_sandbox_is_an_error(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may accept the socket, and answer nothing or anything."""
    kernel, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for answer in answers:
        kernel.send(answer)
    with kernel, monkeypatch.context() as patch:
        patch.setattr(socket, "socket", lambda *arguments: client)
        with pytest.raises(OSError, match=r"temporarily unavailable|Protocol error"):
            list_tcp_listeners()
