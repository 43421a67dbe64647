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
        """Remove the unix socket's file, if it is still the one that was bound here.

        To be called while the socket is open. While it is, no other monitor takes the file for a
        stale one and replaces it between the check and the removal, and the number of its inode is
        not reused.
        """
        if self._path is not None and self._node is not None:
            with contextlib.suppress(OSError):  # the file or its folder may be gone already
                if os.path.samestat(self._path.lstat(), self._node):
                    self._path.unlink()

    def close(self) -> None:
        """Stop listening, and remove the unix socket's file.

        The socket is shut down as well, for a child process may have inherited it: the port is
        free again, and clients are refused instead of waiting in the child's backlog.
        """
        self.remove()
        with contextlib.suppress(OSError):  # only Linux supports this
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def open_listener(listen: str, settings: Settings) -> Listener:
    """Listen on `HOST:PORT`, with port 0 for any free one, or on `unix:/PATH`.

    Raises:
        ListenError: the address cannot be bound, or it is open to other machines and no token is
            set. Nothing stays bound.
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
    """Turn an IPv4 address in IPv6 form (`::ffff:1.2.3.4`) into plain IPv4; return others as is."""
    with contextlib.suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address


def _listen_tcp(listen: str, host: str, port: int, *, loopback_only: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # If a name has addresses of both families, take IPv4: clients of `localhost` try it, too.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        # The address counts, not the name, which /etc/hosts may map to any address.
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
    except ListenError:  # is an OSError, too
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
            _clear(path)
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


def _clear(path: Path) -> None:
    """Remove a stale unix socket, at which no process listens any more.

    Raises:
        OSError: a process listens there, or the file is not a socket; it is left alone.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, f"the file at {path} is not a socket, and is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # if the backlog is full: EAGAIN instead of waiting
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EACCES:  # another user's socket, which may be live or stale
                raise
    raise OSError(errno.EADDRINUSE, f"another process listens at {path}")


def _bind(listening: socket.socket, path: Path, mode: int) -> os.stat_result:
    """Bind with exactly this mode, at no moment with a wider one, and listen.

    The umask belongs to the whole process, so it is not changed: other threads of the host would
    notice. Linux creates the file with the socket's own mode less the umask. So the socket's mode
    is set first, and the file's mode after the bind. No client connects before `listen()`.
    """
    with contextlib.suppress(OSError):  # only Linux supports this
        os.fchmod(listening.fileno(), mode)
    listening.bind(str(path))
    try:
        if sys.platform == "linux":
            # Through a descriptor: if another process puts a link there, its target keeps its mode.
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
