"""Settings of Sphinx, which builds these pages: `make docs`. The build needs no network."""

from __future__ import annotations

import configparser
import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

_ROOT = Path(__file__).parent.parent
_SETUP = configparser.ConfigParser(interpolation=None)
_SETUP.read(_ROOT / "setup.cfg", encoding="utf-8")

project = _SETUP["metadata"]["name"]
release = version = _SETUP["metadata"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

# Headings get the anchors that GitHub gives them, so that a link works in both places.
myst_heading_anchors = 4

# Docstrings write code in single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True

# Each reference to a name of this package must have a target. Those of other packages have none.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!monitor_plugin\.).*"),
    (r"py:.*", r".*\.[A-Z]"),  # type variables
    # Only annotations have them: a subclass of pluggy's, and `Monitor` as hooks know it.
    (r"py:class", r"monitor_plugin\.(plugins\.manager\.PluginManager|hookspecs\.Monitor)"),
]

_URLS = dict(line.split(" = ") for line in _SETUP["metadata"]["project_urls"].split("\n") if line)
_REPOSITORY = f"{_URLS['Source']}/blob/main"
# How Sphinx writes the type `Bytes` in signatures. Its bounds are of no use to a reader.
_BYTES = re.compile(r"~?typing\.Annotated\[int, ~?msgspec\.Meta\([^)]*\)\]")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def _rewrite_links(text: str, folder: str) -> str:
    """Let relative links lead to the pages of the site, or to the repository for other files.

    Args:
        text: the Markdown of a page, or of a file that a page includes.
        folder: the folder of the page or file, relative to the root of the repository.
    """

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if path == "ARCHITECTURE.md":
            path = "docs/explanation/architecture.md"  # the page that includes it
        inside = path.startswith("docs/")
        target = path.removeprefix("docs") if inside else f"{_REPOSITORY}/{path}"
        return f"]({target}{match[2] or ''})"

    return _LINK.sub(link, text)


def _page_read(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = _rewrite_links(content[0], posixpath.dirname(f"docs/{name}"))


def _include_read(app: Sphinx, path: Path, name: str, content: list[str]) -> None:
    content[0] = _rewrite_links(content[0], "")  # only files of the root are included


def _signature_read(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str,
) -> tuple[str | None, str]:
    return _BYTES.sub("int", signature or "") or None, returns


def setup(app: Sphinx) -> None:
    """Connect the handlers; Sphinx calls this."""
    app.connect("source-read", _page_read)
    app.connect("include-read", _include_read)
    app.connect("autodoc-process-signature", _signature_read)
