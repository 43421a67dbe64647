"""Makes the providers of the GPUs that the machine has."""

from __future__ import annotations

from .drm import DrmProvider
from .nvidia import NvidiaProvider
from .provider import GpuProvider


def make_providers(setting: str) -> list[GpuProvider]:
    """Make the providers that the setting `gpu` selects, without reading any device.

    A provider whose library or devices are missing lists no device.
    """
    providers: list[GpuProvider] = []
    if setting in ("auto", "nvidia"):
        providers.append(NvidiaProvider(is_required=setting == "nvidia"))
    if setting in ("auto", "drm"):
        providers.append(DrmProvider(is_required=setting == "drm"))
    return providers
