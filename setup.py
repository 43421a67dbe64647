"""Gives PyPI the README with absolute links, as it shows no other file. setup.cfg has the rest."""

import configparser
import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def long_description() -> str:
    """Return the README with links to the files of this version in the public repository."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    metadata = config["metadata"]
    source = dict(re.findall(r"^(\w+) = (.+)$", metadata["project_urls"], re.MULTILINE))["Source"]

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1].endswith(".png") else "blob"  # an image itself, not its page
        return f"]({source}/{kind}/v{metadata['version']}/{match[1]})"

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", absolute, readme)


setup(long_description=long_description())
