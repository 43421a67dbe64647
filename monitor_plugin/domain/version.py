"""The version of this package."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """Return the version that is installed; `unknown` in a checkout that is not installed."""
    try:
        return metadata.version("monitor-plugin")
    except metadata.PackageNotFoundError:
        return "unknown"
