"""A real Chromium, as Debian packages it, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def lacking(what: str) -> None:
    """Skip the test, or fail in an environment that must have everything."""
    assert not os.environ.get("CI"), f"there is no {what} here; .ci/setup or tox installs it"
    pytest.skip(f"there is no {what} here")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    program = shutil.which("chromium")
    if program is None:
        lacking("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Tab(NamedTuple):
    """A page of the browser, and the errors and foreign requests that it caused."""

    page: Page
    faults: list[str]
    requests: list[str]


class Tabs:
    """Opens tabs. At the end, none may have had an error, or a request to another host."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._tabs: list[Tab] = []

    def open(self, url: str, wait: bool = True, expected: str = "", **options: Any) -> Tab:
        """Open a page.

        Args:
            url: the URL of the monitor.
            wait: whether to wait until the page shows data of the monitor.
            expected: a part of the console errors that are expected.
            options: options of the browser's context.
        """
        context = self._browser.new_context(**options)
        context.set_default_timeout(20_000)
        tab = Tab(context.new_page(), [], [])
        self._tabs.append(tab)
        host = urlsplit(url).netloc

        def note(kind: str) -> Callable[[Any], None]:
            def noted(message: Any) -> None:
                text = getattr(message, "text", None) or str(message)
                if not (expected and expected in text):
                    tab.faults.append(f"{kind}: {text}")

            return noted

        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                note(message.type)(f"{message.text} ({message.location['url']})")

        def requested(request: Any) -> None:
            tab.requests.append(request.url)
            if not request.url.startswith("data:") and urlsplit(request.url).netloc != host:
                tab.faults.append(f"a request to {request.url}")

        def asked(dialog: Any) -> None:
            tab.faults.append(f"a dialog of its own: {dialog.message}")
            dialog.dismiss()

        tab.page.on("console", console)
        tab.page.on("pageerror", note("exception"))
        tab.page.on("dialog", asked)
        tab.page.on("request", requested)
        tab.page.goto(f"{url}/")
        if wait:
            tab.page.wait_for_selector("#connection[data-tone=good]")
        return tab

    def close(self) -> None:
        """Close all tabs, and fail with their errors, if any."""
        faults = [fault for tab in self._tabs for fault in tab.faults]
        for tab in self._tabs:
            if tab.faults:
                faults += tab.page.locator("#notices p").all_inner_texts()
            tab.page.context.close()
        assert not faults, "\n".join(faults)
