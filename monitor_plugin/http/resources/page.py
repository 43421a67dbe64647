"""The page for browsers and its assets: the files of `static/`, which are read once."""

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
_PREFIX = "/assets/"


def _media_type(name: str) -> str | None:
    return _MEDIA_TYPES.get(name.rpartition(".")[2])


_STATIC = resources.files("monitor_plugin.http").joinpath("static")
_INDEX = _STATIC.joinpath("index.html")
# Every file with one of these types. The README of the vendored files is not served.
ASSETS = {
    file.name: file
    for folder in (_STATIC, _STATIC.joinpath("vendored"))
    for file in sorted(folder.iterdir(), key=lambda file: file.name)
    if _media_type(file.name) and file.name != _INDEX.name
}
ASSET_TYPES = sorted({str(_media_type(name)).partition(";")[0] for name in ASSETS})
PAGE_PATHS = ("/", *(_PREFIX + name for name in ASSETS))

# Nothing inline, nothing from another host, and (trusted types) no markup made of strings.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class PageResource:
    """`/` and `/assets/{name}`. They reveal no model, so they need no token."""

    def __init__(self) -> None:
        self._index = _File(_INDEX.name, _INDEX.read_bytes())
        self._assets = {name: _File(name, file.read_bytes()) for name, file in ASSETS.items()}

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the page."""
        self._index.send(request, response)

    def on_get_asset(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        """Answer with an asset; any other name is a 404."""
        if name not in self._assets:
            raise falcon.HTTPNotFound
        self._assets[name].send(request, response)

    on_head = on_get
    on_head_asset = on_get_asset


class _File:
    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._media_type = _media_type(name)
        self._etag = falcon.ETag(hashlib.sha256(self._content).hexdigest()[:32])

    def send(self, request: falcon.Request, response: falcon.Response) -> None:
        # Browsers keep the file, but ask each time whether there is a new version.
        response.set_header("Cache-Control", "no-cache")
        response.set_header("Content-Security-Policy", _POLICY)
        response.etag = self._etag
        known: list[Any] = request.if_none_match or []
        if any(etag in ("*", self._etag) for etag in known):
            response.status = falcon.HTTP_304
            return
        response.data = self._content
        response.content_type = self._media_type


def add_page(app: falcon.App[Any, Any]) -> None:
    """Add the page and its assets to the application."""
    page = PageResource()
    app.add_route("/", page)
    app.add_route(_PREFIX + "{name}", page, suffix="asset")
