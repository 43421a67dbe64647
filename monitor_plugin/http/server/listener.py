"""Where the HTTP server listens: a TCP port, or a unix socket that is bound here."""

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

# How long it is waited for another monitor that binds a socket in the same folder.
_LOCK_SECONDS = 5.0
_ADDRESS = "another address (Settings(listen=...), MONITOR_LISTEN, --listen"


class Listener:
    """A socket that listens.

    Attributes:
        socket: the socket.
        url: `http://HOST:PORT`, or `unix:/PATH`.
    """

    def __init__(
        self, listening: socket.socket, url: str, path: Path | None, node: os.stat_result | None
    ) -> None:
        self.socket = listening
        self.url = url
        self._path = path
        self._node = node

    def remove(self) -> None:
        """Take the unix socket's file away, if it is still the one that was bound here.

        To be called while the socket is open: so nobody takes the file for a stale one and puts
        another in its place between the look and the removal, nor is its inode's number reused.
        """
        if self._path is not None and self._node is not None:
            with contextlib.suppress(OSError):  # it is gone already, or the folder is
                if os.path.samestat(self._path.lstat(), self._node):
                    self._path.unlink()

    def close(self) -> None:
        """Stop listening, and remove the unix socket's file.

        For a child too that was forked meanwhile: the port is free again, and whoever connects is
        refused rather than left to wait.
        """
        self.remove()
        with contextlib.suppress(OSError):  # only Linux takes it
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def open_listener(listen: str, settings: Settings) -> Listener:
    """Listen at `HOST:PORT`, at any free port where it is 0, or at `unix:/PATH`.

    Raises:
        ListenError: it cannot, or it would let anybody in; nothing is left bound.
    """
    path, host, port = parse_listen(listen)
    if path is not None:
        listening, node = _listen_unix(listen, Path(path), settings.socket_mode)
        return Listener(listening, f"unix:{path}", Path(path), node)
    anywhere = settings.insecure or bool(settings.token or settings.token_file)
    listening = _listen_tcp(listen, host, port, anywhere=anywhere)
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Listener(listening, url, None, None)


def plain_address(address: str) -> str:
    """Give an IPv4 address that came over an IPv6 socket (`::ffff:1.2.3.4`) as such."""
    with contextlib.suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address


def _listen_tcp(listen: str, host: str, port: int, *, anywhere: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Where a name has both, IPv4 is what clients of `localhost` fall back to.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        # What is bound, and not the name, which may be anything in /etc/hosts.
        bound = plain_address(str(address[0]))
        if not anywhere and not ipaddress.ip_address(bound).is_loopback:
            raise ListenError(
                listen,
                f"not listening on {listen}: {bound} is no loopback address, and without a token "
                "whoever reaches it could stop models; set a token (MONITOR_TOKEN, --token-file), "
                "or listen on 127.0.0.1, or say that it is on purpose (--insecure, "
                "MONITOR_INSECURE=true, Settings(insecure=True))",
            )
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except BaseException:
            listening.close()
            raise
    except ListenError:  # an OSError too
        raise
    except (OSError, UnicodeError) as error:  # the latter is a name that cannot be one
        raise ListenError(
            listen,
            f"cannot listen on {listen}: {getattr(error, 'strerror', None) or error}; free it, or "
            f"set {_ADDRESS}; port 0 takes any free one)",
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
            f"user may make a socket in that folder, that nothing is in the way and the path is "
            f"at most 107 bytes long, or set {_ADDRESS})",
        ) from error


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Let no other monitor look at a socket here, or bind one, meanwhile; leaves no lock file."""
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
    """Remove the socket of a monitor that is no more.

    Raises:
        OSError: somebody listens there, or it is something else, which is left alone.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, f"there is something that is no socket at {path}, left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # where its backlog is full, EAGAIN rather than waiting
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EACCES:  # somebody else's, of which nothing can be said
                raise
    raise OSError(errno.EADDRINUSE, f"another process listens at {path}")


def _bind(listening: socket.socket, path: Path, mode: int) -> os.stat_result:
    """Bind with exactly that mode, never wider for a moment, and listen.

    The umask is the whole process's, so that changing it would be felt by a host's other threads.
    Linux gives the file the socket's own mode less the umask, which is therefore set first; the
    rest is given afterwards. Nobody connects before `listen()`.
    """
    with contextlib.suppress(OSError):  # only Linux takes it
        os.fchmod(listening.fileno(), mode)
    listening.bind(str(path))
    try:
        if sys.platform == "linux":
            # By a descriptor, or a link put there meanwhile would lend its target that mode.
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
