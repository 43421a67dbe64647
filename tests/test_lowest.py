"""The lower ends of the requirements' ranges: the versions that are promised, and those tried."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pinned() -> dict[str, str]:
    """Read the versions of tests/lowest.txt, by package."""
    text = (ROOT / "tests" / "lowest.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))


def test_lower_bounds_are_the_versions_that_tox_installs() -> None:
    """The lower bounds in setup.cfg are the versions of tests/lowest.txt."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    bounds = dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join(required)))
    of_the_tests_alone = {"grpcio-health-checking", "pytest", "setuptools"}
    assert bounds == {k: v for k, v in pinned().items() if k not in of_the_tests_alone}


@pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME") != "lowest", reason="the newest versions are tried here"
)
def test_lowest_environment_has_the_lowest_versions() -> None:
    """In tox's environment `lowest` exactly these versions are installed."""
    assert {name: importlib.metadata.version(name) for name in pinned()} == pinned()
