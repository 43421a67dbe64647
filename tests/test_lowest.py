"""The lower ends of the requirements' ranges: the versions that are promised, and their tests."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "monitor_plugin"
# The names that are imported, where they are not those of the requirements.
MODULES = {
    "dbus-fast": "dbus_fast",
    "grpcio": "grpc",
    "nats-py": "nats",
    "nkeys": "nats",  # which imports it
    "nvidia-ml-py": "pynvml",
    "protobuf": "google",
}


def pinned() -> dict[str, str]:
    """Read the versions of tests/lowest.txt, by package."""
    text = (ROOT / "tests" / "lowest.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))


def lower_bounds() -> dict[str, str]:
    """Read the lower bounds of setup.cfg, by package."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join(required)))


def paths_that_test(requirement: str) -> set[str]:
    """Return the paths of the tests of each sub-package and hook file that import a requirement."""
    module = MODULES.get(requirement, requirement)
    imports = re.compile(rf"^\s*(from|import) {module}\b|import_module\(.{module}\b", re.MULTILINE)
    importing = [path for path in PACKAGE.rglob("*.py") if imports.search(path.read_text())]
    folders = {f"tests/{path.relative_to(PACKAGE).parts[0]}" for path in importing}
    hooks = [path for path in (ROOT / "hooks").glob("*.py") if imports.search(path.read_text())]
    files = {f"tests/hooks/test_{path.name}" for path in hooks}
    return files | {name for name in folders if (ROOT / name).is_dir()}


def test_lower_bounds_are_the_versions_that_tox_installs() -> None:
    """The lower bounds in setup.cfg are the versions of tests/lowest.txt."""
    of_the_tests_alone = {"grpcio-health-checking", "pytest", "setuptools"}
    assert lower_bounds() == {k: v for k, v in pinned().items() if k not in of_the_tests_alone}


@pytest.mark.parametrize("requirement", lower_bounds())
def test_what_imports_a_requirement_is_tried_with_its_lowest_version(requirement: str) -> None:
    """Tests of each sub-package that imports it are among those of tox's `lowest`."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    files = config["lowest"]["files"].split()
    assert [name for name in files if not (ROOT / name).exists()] == []
    paths = paths_that_test(requirement)
    assert paths
    assert [each for each in paths if not any(name.startswith(each) for name in files)] == []


@pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME") != "lowest", reason="the newest versions are tried here"
)
def test_lowest_environment_has_the_lowest_versions() -> None:
    """In tox's environment `lowest` exactly these versions are installed."""
    assert {name: importlib.metadata.version(name) for name in pinned()} == pinned()
