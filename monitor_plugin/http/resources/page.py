"""The page for browsers, and its assets: a fixed set of files, read once."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import falcon

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_INDEX = "index.html"
_FOLDERS = {
    "static": (
        "api.js",
        "app.js",
        "backends.js",
        "bars.js",
        "charts.js",
        "conditions.js",
        "dom.js",
        "ends.js",
        "feed.js",
        "format.js",
        "history.js",
        "icon.svg",
        "notices.js",
        "overview.js",
        "row.js",
        "stopping.js",
        "style.css",
        "token.js",
    ),
    "static/vendored": ("uPlot-LICENSE.txt", "uPlot.iife.min.js", "uPlot.min.css"),
}
_PREFIX = "/assets/"
ASSETS = {name: folder for folder, names in _FOLDERS.items() for name in names}
ASSET_TYPES = sorted({_MEDIA_TYPES[name.rpartition(".")[2]].partition(";")[0] for name in ASSETS})
PAGE_PATHS = ("/", *(_PREFIX + name for name in ASSETS))

# Nothing inline, nothing from another host, and (trusted types) no markup out of any string.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class PageResource:
    """`/` and `/assets/{name}`. They reveal no model, and so want no token."""

    def __init__(self) -> None:
        self._index = _File("static", _INDEX)
        self._assets = {name: _File(folder, name) for name, folder in ASSETS.items()}

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Give the page."""
        self._index.answer(request, response)

    def on_get_asset(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        """Give an asset; no other name leads to a file."""
        if name not in self._assets:
            raise falcon.HTTPNotFound
        self._assets[name].answer(request, response)

    on_head = on_get
    on_head_asset = on_get_asset


class _File:
    def __init__(self, folder: str, name: str) -> None:
        self._content = resources.files("monitor_plugin.http").joinpath(folder, name).read_bytes()
        self._media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
        self._tag = falcon.ETag(hashlib.sha256(self._content).hexdigest()[:32])

    def answer(self, request: falcon.Request, response: falcon.Response) -> None:
        # Kept, but asked for each time: a new version counts at once.
        response.set_header("Cache-Control", "no-cache")
        response.set_header("Content-Security-Policy", _POLICY)
        response.etag = self._tag
        known: list[Any] = request.if_none_match or []
        if any(tag in ("*", self._tag) for tag in known):
            response.status = falcon.HTTP_304
            return
        response.data = self._content
        response.content_type = self._media_type


def add_page(app: falcon.App[Any, Any]) -> None:
    """Add the page and its assets to the application."""
    page = PageResource()
    app.add_route("/", page)
    app.add_route(_PREFIX + "{name}", page, suffix="asset")
