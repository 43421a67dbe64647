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
    # `raw` answers with a page's text, but with an image as it is.
    kinds = {".png": "raw"}

    def absolute(match: re.Match[str]) -> str:
        path = match[1]
        return f"]({source}/{kinds.get(Path(path).suffix, 'blob')}/v{metadata['version']}/{path})"

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", absolute, readme)


setup(long_description=long_description())
