"""A real Chromium, as Debian packages it, driven by Playwright."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def skip_without(program: str) -> None:
    """Skip the test, because a program is not installed; fail in CI, where all must be."""
    assert not os.environ.get("CI"), f"there is no {program} here; .ci/setup or tox installs it"
    pytest.skip(f"there is no {program} here")


@contextlib.contextmanager
def network_lock(kind: int) -> Iterator[None]:
    """Let no test change the machine's networks while a browser runs.

    Chromium aborts its requests (ERR_NETWORK_CHANGED) when a network interface comes or goes.

    Args:
        kind: `fcntl.LOCK_SH` for a browser, `fcntl.LOCK_EX` for a change of the networks.
    """
    with open(__file__) as file:
        fcntl.flock(file, kind)  # until the file is closed
        yield


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser without a window."""
    program = shutil.which("chromium")
    if program is None:
        skip_without("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_without("playwright")
    with network_lock(fcntl.LOCK_SH), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Tab(NamedTuple):
    """A page of the browser, its faults, and the URLs that it requested."""

    page: Page
    faults: list[str]
    requests: list[str]


class Tabs:
    """Opens tabs. `close` fails if a tab had an error or made a request to another host."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._tabs: list[Tab] = []

    def open(self, url: str, wait: bool = True, expected: str = "", **options: Any) -> Tab:
        """Open a page.

        Args:
            url: the monitor's URL.
            wait: wait until the page shows the monitor's answer.
            expected: errors with this text are no faults.
            options: options of the browser's context.
        """
        context = self._browser.new_context(**options)
        context.set_default_timeout(20_000)
        tab = Tab(context.new_page(), [], [])
        self._tabs.append(tab)
        host = urlsplit(url).netloc

        def add_fault(kind: str, text: str) -> None:
            if not (expected and expected in text):
                tab.faults.append(f"{kind}: {text}")

        def on_console(message: Any) -> None:
            if message.type in ("error", "warning"):
                add_fault(message.type, f"{message.text} ({message.location['url']})")

        def on_request(request: Any) -> None:
            tab.requests.append(request.url)
            if not request.url.startswith("data:") and urlsplit(request.url).netloc != host:
                tab.faults.append(f"a request to {request.url}")

        def on_dialog(dialog: Any) -> None:
            tab.faults.append(f"a dialog of the browser: {dialog.message}")
            dialog.dismiss()

        tab.page.on("console", on_console)
        tab.page.on("pageerror", lambda error: add_fault("exception", str(error)))
        tab.page.on("dialog", on_dialog)
        tab.page.on("request", on_request)
        tab.page.goto(f"{url}/")
        if wait:
            tab.page.wait_for_selector("#connection[data-tone=good]")
        return tab

    def close(self) -> None:
        """Close all tabs; fail if there were faults, with the notices of their pages."""
        faults = [fault for tab in self._tabs for fault in tab.faults]
        for tab in self._tabs:
            if tab.faults:
                faults += tab.page.locator("#notices p").all_inner_texts()
            tab.page.context.close()
        assert not faults, "\n".join(faults)
