"""The version of the package, installed and in a checkout."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from monitor_plugin import Monitor
from monitor_plugin.cli import main
from monitor_plugin.domain.version import package_version

from ..support import Client

SETUP = Path(__file__).parents[2] / "setup.cfg"


def test_version_is_that_of_the_installed_package() -> None:
    """The version comes from the metadata of the installation."""
    config = configparser.ConfigParser()
    config.read(SETUP)
    assert package_version() == config["metadata"]["version"]


def test_checkout_without_installation_works(
    make_monitor: Callable[..., Monitor],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing is installed, the version is `unknown`, and nothing fails."""

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "monitor-plugin unknown\n"
    client = Client(make_monitor().url)
    assert client.request("GET", "/openapi.json").json["info"]["version"] == "unknown"
    assert client.request("GET", "/version").json["version"] == "unknown"
    assert 'version="unknown"' in client.request("GET", "/metrics").body.decode()
