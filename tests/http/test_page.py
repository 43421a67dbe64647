"""The page's files: what is served, to whom, with which headers, and that it needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import monitor_plugin
from monitor_plugin import Monitor
from monitor_plugin.http.resources.page import ASSETS, PAGE_PATHS

from ..support import Client
from .test_app import assert_error

FOLDER = Path(monitor_plugin.__file__).parent / "http" / "static"
OWN = [path for path in sorted(FOLDER.iterdir()) if path.suffix in (".html", ".js", ".css")]


def test_every_file_of_the_folder_is_served(client: Client) -> None:
    """Each file answers under its name, but for the notes on what is vendored."""
    files = {path.name: path for path in FOLDER.rglob("*.*") if path.name != "README.md"}
    assert set(ASSETS) == set(files) - {"index.html"}
    for name in ASSETS:
        assert client.request("GET", f"/assets/{name}").body == files[name].read_bytes()
    assert client.request("GET", "/").body == files["index.html"].read_bytes()


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/assets/app.js", "text/javascript; charset=utf-8"),
        ("/assets/style.css", "text/css; charset=utf-8"),
        ("/assets/icon.svg", "image/svg+xml"),
        ("/assets/uPlot-LICENSE.txt", "text/plain; charset=utf-8"),
    ],
)
def test_the_headers_of_a_file(path: str, media_type: str, client: Client) -> None:
    """A file has its type and the strict policy, and is kept until a new version is there."""
    answer = client.request("GET", path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
    assert answer.headers["Cache-Control"] == "no-cache"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    head = client.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(answer.body))
    tag = answer.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = client.request("GET", path, None, {"If-None-Match": known})
        assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)
    assert client.request("GET", path, None, {"If-None-Match": '"other"'}).status == 200


def test_only_the_files_of_the_page_need_no_token(
    make_monitor: Callable[..., Monitor],
) -> None:
    """The page and its assets are open to read, and no other path beneath them is."""
    client = Client(make_monitor(token="s3cret").url)
    for path in PAGE_PATHS:
        assert client.request("GET", path).status == client.request("HEAD", path).status == 200
        assert client.request("POST", path).status == 401
    for path in ("/assets/", "/assets/more", "/assets/app.js/", "/backends", "/events", "/history"):
        assert client.request("GET", path).status == 401, path


@pytest.mark.parametrize(
    "path", ["/assets", "/assets/", "/assets/x.js", "/assets/README.md", "/assets/index.html",
             "/assets/../app.js", "/assets/..%2fmonitor.py", "/assets/%2e%2e/monitor.py",
             "/assets/vendored/uPlot.min.css", "/assets//etc/passwd", "/assets/app.js%00"]
)  # fmt: skip
def test_no_other_name_leads_to_a_file(path: str, client: Client) -> None:
    """What is not one of the names is not there, however it is spelled."""
    assert_error(client.request("GET", path), 404, "not_found")


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_a_file_loads_only_assets_of_the_page(path: Path) -> None:
    """Each file names assets that are there, no other host, and nothing that parses markup."""
    text = path.read_text()
    assert not re.search(r"https?:|['\"(]//", text)
    assert not re.search(r"\w*(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"<[^>]*\s(style|on\w+)=|<style|<script>", text)
    named = re.findall(r'(?:src|href)="([^"#]+)"', text) if path.suffix == ".html" else []
    named += [f"assets/{name}" for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{name}" for name in named} <= set(PAGE_PATHS)


def test_vendored_files_are_recorded() -> None:
    """The notes have the version that stands in the file, and the license is beside it."""
    notes = (FOLDER / "vendored" / "README.md").read_text()
    (version,) = re.findall(r"\(v([\d.]+)\)", (FOLDER / "vendored/uPlot.iife.min.js").read_text())
    assert f"| {version} | MIT," in notes
    assert "The MIT License" in (FOLDER / "vendored" / "uPlot-LICENSE.txt").read_text()
