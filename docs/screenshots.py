"""Takes the pictures of the page for the documents: `make screenshots`.

Starts a monitor, demo backends and Debian's Chromium itself. Nobody wants to wait for a quarter of
an hour: what happens here in a minute is shown as if it had taken that long.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, sync_playwright

from monitor_plugin import Gpu, GpuUse, Monitor, Settings, hookimpl
from monitor_plugin.demo.host import DemoHost
from monitor_plugin.domain.errors import MonitorError

IMAGES = Path(__file__).parent / "images"
GIB = 2**30
SECONDS = 60.0
STRETCHED = 900 / SECONDS
MODELS: dict[str, Sequence[str]] = {
    "llama-3.2-1b-instruct": ("--weights-mib", "1200", "--kv-cache-mib", "500"),
    "org/bge-reranker": ("--weights-mib", "280", "--kv-cache-mib", "0", "--fork-workers", "2"),
    "piper-tts": ("--weights-mib", "120", "--kv-cache-mib", "0", "--no-status"),
    "qwen-2.5-coder": ("--weights-mib", "640", "--kv-cache-mib", "220", "--hang-status"),
    "whisper-small": ("--weights-mib", "460", "--kv-cache-mib", "90", "--state", "1"),
}
ENDS: dict[str, tuple[str, ...]] = {
    "phi-4-mini": (),
    "sdxl-turbo": ("--crash-after", "2"),
    "translate": (),
}


class ExampleGpus:
    """Lists a GPU that the machine of the pictures does not have."""

    pids: Sequence[int] = ()

    @hookimpl
    def monitor_list_gpus(self) -> Sequence[Gpu]:
        """List the GPU, which two backends and another process use."""
        sizes = (11 * GIB, 5 * GIB, 2 * GIB)
        uses = [GpuUse(pid, size) for pid, size in zip(self.pids, sizes, strict=False)]
        return [
            Gpu(
                component="vram:example0",
                vendor="example",
                uuid="GPU-0f6c2a1b",
                index=0,
                name="Example GPU",
                total=32 * GIB,
                used=19 * GIB,
                free=13 * GIB,
                utilization_percent=64.0,
                temperature_celsius=58.0,
                power_watts=212.0,
                uses=uses,
            )
        ]


def work(url: str, models: Sequence[str], ended: threading.Event) -> None:
    """Give the backends something to do, in bursts: each reading costs them a call."""
    chance = random.Random(6)  # noqa: S311 - the pictures' own
    while not ended.is_set():
        model = chance.choice(models)
        until = time.monotonic() + chance.uniform(0.5, 4)
        while time.monotonic() < until and not ended.is_set():
            urllib.request.urlopen(f"{url}/backend/monitor?model={quote(model)}").close()
        ended.wait(chance.uniform(0, 2))


def stretch(route: Any) -> None:
    """Answer with the monitor's history, as if it had taken 15 minutes."""
    answer = route.fetch().json()
    now = time.time()
    answer["times"] = [now - STRETCHED * (now - taken) for taken in answer["times"]]
    route.fulfill(json=answer)


def take(browser: Browser, url: str, name: str, **options: Any) -> None:
    """Take a picture of the page."""
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.route("**/history", stretch)
    page.goto(url)
    page.locator("#ends-table tr").nth(len(ENDS)).wait_for()
    page.locator(".badge", has_text="draining").wait_for()
    page.locator("#gpus-table li", has_text="PID").first.wait_for()
    if options["viewport"]["width"] > 400:  # on a phone the charts are below the screen
        page.locator("canvas").nth(1).wait_for()
    page.screenshot(path=IMAGES / name)
    page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def stop(monitor: Monitor, model: str) -> None:
    """Stop a model; one that is busy when all ends is reported as left."""
    try:
        monitor.shutdown(model)
    except MonitorError as error:
        print(error)


def main() -> int:
    """Take the pictures; returns the exit code."""
    program = shutil.which("chromium")
    if program is None:
        print("there is no chromium: apt-get install chromium", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    settings = Settings(
        listen="127.0.0.1:0",
        sweep_interval_seconds=SECONDS / 180,
        start_grace_seconds=0,
        gpu="off",
    )
    ended = threading.Event()
    gpus = ExampleGpus()
    with Monitor(settings, plugins=[gpus]) as monitor:
        host = DemoHost(monitor)
        try:
            for model, switches in {**MODELS, **ENDS}.items():
                host.spawn(model, switches)
            pids = {backend.model: backend.pid for backend in monitor.backends()}
            gpus.pids = (pids["llama-3.2-1b-instruct"], pids["qwen-2.5-coder"], os.getpid())
            served = [model for model in MODELS if model not in ("qwen-2.5-coder", "piper-tts")]
            arguments = (monitor.url, served, ended)
            threads = [threading.Thread(target=work, args=arguments, daemon=True)]
            threads.append(
                threading.Thread(target=stop, args=(monitor, "whisper-small"), daemon=True)
            )
            threads[0].start()
            monitor.shutdown("translate")
            time.sleep(SECONDS * 0.8)
            os.kill(pids["phi-4-mini"], signal.SIGKILL)
            time.sleep(SECONDS * 0.2)
            threads[1].start()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=program)
                wide = {"width": 1120, "height": 1600}
                take(browser, monitor.url, "page-light.png", viewport=wide, color_scheme="light")
                take(browser, monitor.url, "page-dark.png", viewport=wide, color_scheme="dark")
                narrow = {"width": 360, "height": 780}
                take(browser, monitor.url, "page-phone.png", viewport=narrow, color_scheme="dark")
                browser.close()
        finally:
            ended.set()
            host.stop()
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
