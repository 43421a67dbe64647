"""What an address says of how its backend is called: in the clear or by TLS, and with which token.

Local backends are called in the clear, all others by TLS that verifies them, unless `insecure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import grpc

from ..config.reloading_file import ReloadingFile
from ..config.settings import Settings
from ..config.tokens import fault_in_token
from ..domain.address import TLS_SCHEME, canonical_address, is_local
from ..domain.errors import SettingsError

T = TypeVar("T")

_PEM_CERTIFICATE = "-----BEGIN CERTIFICATE-----"


class ChannelSecurity:
    """Decides on transport security and credentials. Safe to call from any thread.

    Args:
        settings: of which `insecure`, `grpc_ca_file` and `grpc_token_file` are used.

    Raises:
        SettingsError: a file cannot be read, or holds no certificate or no token.
    """

    def __init__(self, settings: Settings) -> None:
        self._insecure = settings.insecure
        self._ca = _watch("grpc_ca_file", settings.grpc_ca_file, _parse_certificates)
        self._token = _watch("grpc_token_file", settings.grpc_token_file, _parse_token)

    def check(self, address: str) -> None:
        """Refuse an address whose backend may not be called.

        Raises:
            ValueError: it is not local, and nothing says how to protect it, or that it need not be.
        """
        self._wants_tls(address)

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Give what the channel to a backend verifies it by; None for a channel in the clear.

        Raises:
            ValueError: as `check`.
        """
        if not self._wants_tls(address):
            return None
        # None stands for gRPC's own roots, or those that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
        return grpc.ssl_channel_credentials(self._ca.get() if self._ca else None)

    def with_token(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Add the token for all backends to a call's metadata, unless that has one of its own."""
        if self._token is None:
            return metadata
        return {"authorization": f"Bearer {self._token.get()}", **metadata}

    def _wants_tls(self, address: str) -> bool:
        if address.startswith(TLS_SCHEME):
            return True
        if is_local(canonical_address(address)):
            return False
        if self._ca is None and not self._insecure:
            raise ValueError(
                f"address {address!r} is not on this machine, and calls would go there in the "
                f"clear; use {TLS_SCHEME}{address.removeprefix('dns:///')}, or set grpc_ca_file "
                "(TLS to all that are not local), or insecure to allow it"
            )
        return self._ca is not None


def _watch(setting: str, path: str | None, parse: Callable[[str], T]) -> ReloadingFile[T] | None:
    if path is None:
        return None
    try:
        return ReloadingFile(path, parse)
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(setting, f"setting {setting}: {path!r}: {fault}") from None


def _parse_certificates(text: str) -> bytes:
    if _PEM_CERTIFICATE not in text:
        raise ValueError(f"it holds no certificate in PEM ({_PEM_CERTIFICATE})")
    return text.encode()


def _parse_token(text: str) -> str:
    token = text.strip()
    if fault := fault_in_token(token):
        raise ValueError(fault)
    return token
