"""Binds the socket on which the HTTP server listens: a TCP port or a unix socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ...config.settings import Settings, parse_listen
from ...domain.errors import ListenError

# How long to wait for another monitor that is binding a socket in the same folder.
_LOCK_SECONDS = 5.0
_SET_ANOTHER = "set another address (--listen, MONITOR_LISTEN or Settings(listen=...))"


class Listener:
    """A listening socket.

    Attributes:
        socket: the socket.
        url: `http://HOST:PORT` or `unix:/PATH`.
    """

    def __init__(
        self, listening: socket.socket, url: str, path: Path | None, node: os.stat_result | None
    ) -> None:
        self.socket = listening
        self.url = url
        self._path = path
        self._node = node

    def remove(self) -> None:
        """Remove the unix socket's file, if it is still the file that this listener created.

        Call this while the socket is open. As long as a process listens, no other monitor replaces
        the file between the check and the removal, and the inode number is not reused.
        """
        if self._path is not None and self._node is not None:
            with contextlib.suppress(OSError):  # the file or its folder may be gone already
                if os.path.samestat(self._path.lstat(), self._node):
                    self._path.unlink()

    def close(self) -> None:
        """Stop listening, and remove the unix socket's file.

        The socket is also shut down, because a child process may have inherited it: the port
        becomes free, and clients are refused instead of waiting in the child's backlog.
        """
        self.remove()
        with contextlib.suppress(OSError):  # only Linux supports this
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def open_listener(listen: str, settings: Settings) -> Listener:
    """Listen on `HOST:PORT`, with port 0 for any free one, or on `unix:/PATH`.

    Raises:
        ListenError: the address cannot be bound, or other machines can reach it and no token is
            set. The address is not bound then.
    """
    path, host, port = parse_listen(listen)
    if path is not None:
        listening, node = _listen_unix(listen, Path(path), settings.socket_mode)
        return Listener(listening, f"unix:{path}", Path(path), node)
    protected = settings.insecure or bool(settings.token or settings.token_file)
    listening = _listen_tcp(listen, host, port, loopback_only=not protected)
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Listener(listening, url, None, None)


def plain_address(address: str) -> str:
    """Turn an IPv4-mapped IPv6 address (`::ffff:1.2.3.4`) into IPv4; return others unchanged."""
    with contextlib.suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address


def _listen_tcp(listen: str, host: str, port: int, *, loopback_only: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # If a name has addresses of both families, use IPv4: clients of `localhost` also try IPv4.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        # The check uses the address, because /etc/hosts may map a name to any address.
        bound = plain_address(str(address[0]))
        if loopback_only and not ipaddress.ip_address(bound).is_loopback:
            raise ListenError(
                listen,
                f"not listening on {listen}: {bound} is not a loopback address, and without a "
                "token anyone who can reach it could stop models; set a token (MONITOR_TOKEN or "
                "--token-file), or listen on 127.0.0.1, or allow it (--insecure, "
                "MONITOR_INSECURE=true or Settings(insecure=True))",
            )
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except BaseException:
            listening.close()
            raise
    except ListenError:  # which is an OSError
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: the name is not a valid host name
        raise ListenError(
            listen,
            f"cannot listen on {listen}: {getattr(error, 'strerror', None) or error}; free the "
            f"port, or {_SET_ANOTHER}; port 0 takes any free port",
        ) from error
    return listening


def _listen_unix(listen: str, path: Path, mode: int) -> tuple[socket.socket, os.stat_result]:
    try:
        with _folder_locked(path.parent):
            _remove_stale_socket(path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                return listening, _bind(listening, path, mode)
            except BaseException:
                listening.close()
                raise
    except OSError as error:
        raise ListenError(
            listen,
            f"cannot listen on {listen}: {error.strerror or error}; make sure that the monitor's "
            "user may create a socket in that folder, that no other file is in the way and that "
            f"the path has at most 107 bytes, or {_SET_ANOTHER}",
        ) from error


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Lock a folder so that only one monitor at a time checks and binds a socket in it.

    The folder itself is locked, so no lock file is left behind.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(
                        errno.EWOULDBLOCK, f"another process keeps the folder {folder} locked"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _remove_stale_socket(path: Path) -> None:
    """Remove the file of a unix socket on which no process listens.

    Raises:
        OSError: a process listens on it, or the file is not a socket. The file is not removed.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, f"the file at {path} is not a socket, and is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # EAGAIN if the backlog is full, instead of waiting
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if (
                error.errno == errno.EACCES
            ):  # another user's socket: it is unknown whether it is stale
                raise
    raise OSError(errno.EADDRINUSE, f"another process listens at {path}")


def _bind(listening: socket.socket, path: Path, mode: int) -> os.stat_result:
    """Bind a socket file with exactly this mode, never with a wider mode, and listen.

    The umask is not changed, because it would affect all threads of the host. Linux creates the
    file with the mode of the socket, reduced by the umask. So the mode of the socket is set before
    the bind, and the mode of the file after it. No client can connect before `listen()`.
    """
    with contextlib.suppress(OSError):  # only Linux supports this
        os.fchmod(listening.fileno(), mode)
    listening.bind(str(path))
    try:
        if sys.platform == "linux":
            # By a descriptor: if another process replaces the file by a link, the target of the
            # link keeps its mode.
            descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                Path(f"/proc/self/fd/{descriptor}").chmod(mode)
            finally:
                os.close(descriptor)
        else:
            path.chmod(mode, follow_symlinks=False)
        node = path.lstat()
        listening.listen()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return node
