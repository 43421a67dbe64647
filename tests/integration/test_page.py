"""The page in a real Chromium, against a real monitor and real backends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from monitor_plugin import (
    Backend,
    InvalidBackend,
    KnownModel,
    Monitor,
    StartFailed,
    Status,
    hookimpl,
)
from monitor_plugin.domain.known_models import MODEL_STATES

from ..gpus import GpuFile, make_gpu
from ..support import Backend as Spawned
from ..support import Client, Spawner, eventually, free_port, is_running, read_line
from .browser import Tabs, chromium, skip_without

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.once, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)>"
Register = Callable[..., Spawned]
# Notes each word that a first row's state becomes.
NOTE_STATES = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const word = document.querySelector("#backends-table tbody .badge")?.textContent;
    if (word && word !== window.seen.at(-1)) window.seen.push(word);
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""
# What stands out of a screen of 360 px.
OVER_THE_EDGE = """[...document.querySelectorAll("main *:not(.unseen, .unseen *, thead, thead *)")]
  .filter((node) => node.getBoundingClientRect().right > 360).map((node) => node.outerHTML)"""
# Whether something is drawn on a chart.
INK = """chart => {
  const canvas = chart.querySelector("canvas");
  const empty = Object.assign(document.createElement("canvas"), {
    width: canvas.width, height: canvas.height,
  });
  return canvas.toDataURL() !== empty.toDataURL();
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Tabs]:
    tabs = Tabs(browser)
    yield tabs
    tabs.close()


@pytest.fixture
def make_swept(make_monitor: Callable[..., Monitor]) -> Callable[..., Monitor]:
    """Makes monitors that notice another state at once."""
    return lambda **options: make_monitor(**{"sweep_interval_seconds": 0.2, **options})


@pytest.fixture
def register(spawner: Spawner) -> Register:
    """Starts a backend, and registers it."""

    def register(monitor: Monitor, model: str, *switches: str) -> Spawned:
        backend = spawner.backend(*switches)
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
        return backend

    return register


def row(page: Page, model: str) -> Locator:
    """The row of a backend."""
    return page.locator("#backends-table tbody tr").filter(has=page.get_by_text(model, exact=True))


def badge(page: Page, model: str) -> Callable[[str], None]:
    """Waits until a backend's state is a word."""
    return lambda word: row(page, model).locator(".badge", has_text=word).wait_for()


def shows(page: Page, model: str, *texts: str) -> None:
    """Waits until a backend's row has these texts: its state may come before its figures."""

    def has_all() -> bool:
        text = row(page, model).inner_text().replace("\xa0", " ")
        return all(each in text for each in texts)

    eventually(has_all)


def await_polls(page: Page, number: int) -> None:
    """Wait until the page has asked so often for events."""
    for _ in range(number):
        page.wait_for_event("request", lambda request: "/events" in request.url)


def has_focus(locator: Locator) -> bool:
    return bool(locator.evaluate("node => node === document.activeElement"))


def end_of(page: Page, model: str) -> str:
    """What is said of an end, once it is."""
    line = page.locator("#ends-table tbody tr").filter(has=page.get_by_text(model, exact=True))
    line.wait_for()
    return str(line.inner_text())


def stop_button(page: Page, model: str) -> Locator:
    return row(page, model).locator("button.stop")


def confirm(page: Page, model: str) -> None:
    stop_button(page, model).click()
    page.get_by_role("button", name="Stop it").click()


def test_page_updates_without_a_reload(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """A new state, a new backend and its memory appear, and the page announces them."""
    monitor = make_swept()
    backend = register(monitor, "org/a model")
    page = tabs.open(monitor.url).page
    page.evaluate("window.same = true")
    badge(page, "org/a model")("ready")
    shows(page, "org/a model", "weights 2 MiB", "kv_cache 1 MiB")
    os.kill(backend.pid, signal.SIGUSR1)
    badge(page, "org/a model")("busy")
    page.locator("#changes", has_text="org/a model is busy").wait_for(state="attached")
    register(monitor, "b")
    badge(page, "b")("ready")
    eventually(lambda: page.locator("#counts").inner_text().split("\n") == ["1 busy", "1 ready"])
    assert page.evaluate("window.same")


def test_zombies_are_shown_beside_the_state(
    make_swept: Callable[..., Monitor], spawner: Spawner, tabs: Tabs
) -> None:
    """A process of the backend was killed, and its parent has not waited for it."""
    monitor = make_swept()
    process = spawner.with_zombie()
    monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address="127.0.0.1:1")
    shows(tabs.open(monitor.url).page, "m", "1 zombie")


def test_stop_is_confirmed_and_shown(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """A confirmed stop shows draining, stopping and gone, and is then listed among the exits."""
    monitor = make_swept(stop_timeout_seconds=3.0)  # so that the page is there meanwhile
    backend = register(monitor, "m", "--ignore-sigterm")
    register(monitor, "other")
    os.kill(backend.pid, signal.SIGUSR1)
    page = tabs.open(monitor.url).page
    badge(page, "m")("busy")
    page.evaluate(NOTE_STATES)
    confirm(page, "m")
    badge(page, "m")("draining")
    assert stop_button(page, "m").get_attribute("aria-disabled") == "true"
    assert is_running(backend.pid)
    os.kill(backend.pid, signal.SIGUSR1)
    badge(page, "m")("gone")
    seen = page.evaluate("window.seen")
    assert [word for word in seen if word in ("draining", "stopping", "gone")] == [
        "draining",
        "stopping",
        "gone",
    ]
    assert not is_running(backend.pid)
    assert "shutdown" in end_of(page, "m")
    freed = re.compile(r"the shutdown of m: stopped, gave back [\d.]+ MiB$")
    page.locator("#changes p", has_text=freed).wait_for(state="attached")
    row(page, "m").wait_for(state="detached")
    eventually(lambda: has_focus(stop_button(page, "other")))


def test_cancelled_stop_does_nothing(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """After Cancel or Escape no request was sent, and the focus is where it was."""
    monitor = make_swept()
    backend = register(monitor, "m")
    tab = tabs.open(monitor.url)
    dialog = tab.page.get_by_role("dialog", name="Stop m?")
    for cancel in ("click", "escape", "enter"):
        stop_button(tab.page, "m").click()
        dialog.wait_for()
        if cancel == "click":
            dialog.get_by_role("button", name="Cancel").click()
        else:  # Enter is for the button with the focus, which is Cancel
            tab.page.keyboard.press(cancel.capitalize())
        dialog.wait_for(state="hidden")
        eventually(lambda: has_focus(stop_button(tab.page, "m")))
    assert is_running(backend.pid)
    assert not [url for url in tab.requests if "shutdown" in url]


class Host:
    """A host that starts a model when `may_start` is set, and fails to start any other.

    Args:
        spawner: starts the backend.
    """

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self.may_start = threading.Event()
        self.monitor: Monitor | None = None
        self.backends: list[Spawned] = []

    @hookimpl
    def monitor_started(self, monitor: Monitor) -> None:
        self.monitor = monitor

    @hookimpl
    def monitor_list_models(self) -> Sequence[KnownModel]:
        return [
            KnownModel("a/stopped one", "stopped", None, True),
            KnownModel(HOSTILE, "failed", f"Exited too quickly {HOSTILE}", True),
            KnownModel("waits", "waiting", "exit status 1"),
        ]

    @hookimpl
    def monitor_read_log(
        self, model: str, pid: int | None, stream: str, max_bytes: int
    ) -> bytes | None:
        return b"its last words" if model == HOSTILE else None

    @hookimpl
    def monitor_start_model(self, model: str, timeout_seconds: float) -> bool:
        if model == HOSTILE:
            raise StartFailed(model, f"its program is missing: {HOSTILE}")
        self.may_start.wait()
        backend = self._spawner.backend()
        self.backends.append(backend)
        assert self.monitor
        self.monitor.hook.monitor_backend_spawned(
            model=model, pid=backend.pid, address=backend.address
        )
        return True


def model_row(page: Page, model: str) -> Locator:
    """The row of a model without a backend."""
    return page.locator("#models-table tbody tr").filter(has=page.get_by_text(model, exact=True))


def test_model_is_started_and_restarted(
    make_swept: Callable[..., Monitor], spawner: Spawner, tabs: Tabs
) -> None:
    """A model without a backend is shown, with its state. What fails is shown with the reason."""
    host = Host(spawner)
    monitor = make_swept(plugins=[host])
    tab = tabs.open(monitor.url, expected="500")
    page = tab.page
    stopped, failed = model_row(page, "a/stopped one"), model_row(page, HOSTILE)
    assert "stopped" in stopped.inner_text()
    assert "its host has given up" in failed.inner_text()
    assert f"Exited too quickly {HOSTILE}" in failed.inner_text()
    assert "exit status 1" in model_row(page, "waits").inner_text()
    assert not model_row(page, "waits").locator("button").is_visible()
    counts = page.locator("#counts").inner_text().split("\n")
    assert counts == ["1 failed", "1 waiting to start again"]
    assert page.title() == "(2) Monitor"
    page.get_by_label("Find").fill("stopped")
    failed.wait_for(state="detached")
    page.get_by_label("Find").fill("")

    failed.get_by_role("button").click()
    notice = page.get_by_role("alert").filter(has_text="its program is missing")
    notice.wait_for()
    assert notice.inner_text().count(HOSTILE) == 2
    assert "its last words" in notice.inner_text()
    eventually(lambda: failed.get_by_role("button").get_attribute("aria-disabled") == "false")

    page.get_by_role("button", name="Start a/stopped one").click()
    starting = page.get_by_role("button", name="Starting… a/stopped one")
    starting.wait_for()
    assert starting.get_attribute("aria-disabled") == "true"
    host.may_start.set()
    badge(page, "a/stopped one")("ready")
    stopped.wait_for(state="detached")

    (first,) = host.backends
    button = row(page, "a/stopped one").locator("button.restart")
    dialog = page.get_by_role("dialog", name="Restart a/stopped one?")
    eventually(lambda: button.inner_text() == "Restart")
    host.may_start.clear()
    button.click()
    dialog.wait_for()
    page.keyboard.press("Escape")
    eventually(lambda: has_focus(button))
    assert is_running(first.pid)
    button.click()
    dialog.get_by_role("button", name="Restart it").click()
    page.get_by_role("button", name="Restarting… a/stopped one", exact=True).wait_for()
    assert not is_running(first.pid)
    host.may_start.set()
    eventually(lambda: len(host.backends) == 2)
    again = f"Restart a/stopped one, PID {host.backends[1].pid}"
    page.get_by_role("button", name=again, exact=True).wait_for()
    badge(page, "a/stopped one")("ready")
    sent = [url for url in tab.requests if "/backend/" in url]
    assert [url.rpartition("/")[2] for url in sent] == ["load", "load", "restart"]
    assert page.locator("img").count() == 0


def test_replica_is_stopped_alone_or_with_the_others(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """For a model with several backends the dialog asks which; the default is the chosen one."""
    monitor = make_swept()
    first, second, third = (register(monitor, "m") for _ in range(3))
    page = tabs.open(monitor.url).page
    mine = page.get_by_role("button", name=f"Stop m, PID {second.pid}")
    mine.click()
    page.get_by_role("button", name="Stop it").click()
    eventually(lambda: not is_running(second.pid))
    page.locator("#ends-table tbody tr").wait_for()
    assert is_running(first.pid)
    assert is_running(third.pid)
    page.get_by_role("button", name=f"Stop m, PID {third.pid}").click()
    page.get_by_label("all 2").check()
    page.get_by_role("button", name="Stop it").click()
    eventually(lambda: not is_running(first.pid) and not is_running(third.pid))


def test_crash_appears_with_its_cause(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """A killed backend is shown as gone, with its signal."""
    monitor = make_swept()
    backend = register(monitor, "m")
    page = tabs.open(monitor.url).page
    badge(page, "m")("ready")
    os.kill(backend.pid, signal.SIGKILL)
    badge(page, "m")("gone")
    row(page, "m").filter(has_text="SIGKILL").wait_for()
    ended = end_of(page, "m")
    assert "killed" in ended
    assert "SIGKILL" in ended
    assert f"{backend.pid}" in ended
    stop_button(page, "m").focus()
    page.get_by_text("No backend is registered.").wait_for()
    eventually(lambda: page.evaluate("document.activeElement.id") == "backends")


def test_processes_left_behind_are_shown_until_they_end(
    make_swept: Callable[..., Monitor], spawner: Spawner, tabs: Tabs
) -> None:
    """With their memory, beside the end of their backend, and with a button that stops them."""
    monitor = make_swept()
    root = spawner.process("sh", "-c", "sleep 300 & echo $!; wait")
    assert root.stdout
    child = int(root.stdout.readline())
    monitor.hook.monitor_backend_spawned(model="m", pid=root.pid, address="127.0.0.1:1")
    page = tabs.open(monitor.url).page
    row(page, "m").wait_for()
    root.kill()
    line = page.locator("#ends-table .left").filter(has_text="Left 1 process behind")
    line.wait_for()
    assert f"{child} sleep (" in line.inner_text()
    page.locator("#counts").get_by_text("1 process left behind").wait_for()
    button = page.get_by_role("button", name=f"Stop what m, PID {root.pid}, left behind")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Stop what m left behind?").wait_for()
    page.keyboard.press("Escape")
    eventually(lambda: has_focus(button))
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop it").click()
    line.wait_for(state="hidden")
    eventually(lambda: page.evaluate("document.activeElement.id") == "ends")
    assert not is_running(child)


def test_page_names_the_process_that_serves_an_address(
    make_swept: Callable[..., Monitor], spawner: Spawner, tabs: Tabs
) -> None:
    """Beside the state of the backend to which the address belongs."""
    monitor = make_swept()
    server = spawner.backend()
    root = spawner.sleeper()
    monitor.hook.monitor_backend_spawned(model="m", pid=root.pid, address=server.address)
    page = tabs.open(monitor.url).page
    shows(page, "m", f"its address is served by {server.pid} (python")
    row(page, "m").locator("summary").click()
    shows(page, "m", f"{server.pid}, which is none of its processes")
    own = spawner.backend()
    monitor.hook.monitor_backend_spawned(model="own", pid=own.pid, address=own.address)
    row(page, "own").locator("summary").click()
    shows(page, "own", "Served by", f"PID {own.pid}\n")


def hasten(page: Page) -> None:
    """Reload the page, and have it ask every 0.3 s for what causes no event.

    Until `page.unroute_all`.
    """
    page.route(
        "**/events?*wait=5",
        lambda route: route.continue_(url=route.request.url.replace("wait=5", "wait=0.3")),
    )
    page.reload()


def edit_answers(page: Page, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change each answer of GET /backends before the page gets it, until `page.unroute_all`."""

    def edited(route: Any) -> None:
        body = route.fetch().json()
        edit(body)
        route.fulfill(json=body)

    page.route(re.compile(r"/backends\b(?!\.js)"), edited)
    hasten(page)


def test_page_shows_the_limits_in_force(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """The base is the monitor's limit, or the backend's own. Pressure is shown."""
    monitor = make_swept()
    for model in ("own", "shared"):
        register(monitor, model)
    page = tabs.open(monitor.url).page
    machine: dict[str, Any] = {"memory_total": 47 * 2**29, "cpus": 4}
    limited = {"memory_limit": 2**33, "memory_available": 2**32, "cpu_limit": 1.5}

    def edit(body: dict[str, Any]) -> None:
        for item in body["backends"]:
            item["memory"] = {"total": 2**30, "breakdown": {}}
            if item["model"] == "own":
                item["limits"] = {"memory_limit": 2**31, "cpu_limit": 2.0, "cpu_pressure": 0.0}
        body["machine"] = machine

    edit_answers(page, edit)
    held, more = page.locator("#held"), page.locator("#machines li")
    whole = r"hold 2 GiB of the machine.s 23\.5 GiB, 8\.5 %"
    eventually(lambda: re.search(whole, held.inner_text()))
    assert more.all_inner_texts() == ["4 CPU cores"]
    machine |= {**limited, "memory_pressure": 12.3, "cpu_pressure": 0.0}
    eventually(lambda: "of 8 GiB (limit; the machine has 23.5 GiB), 25 %" in held.inner_text())
    assert more.all_inner_texts() == [
        "4 GiB of memory available, 1.5 of 4 CPU cores (limit), "
        "memory pressure 12 % of the last 10 s"
    ]
    shows(page, "shared", "13 % of 8 GiB (limit; the machine has 23.5 GiB)")
    shows(page, "own", "50 % of 2 GiB (limit; the machine has 23.5 GiB)")
    for model, words in (
        ("own", "2 GiB (limit; the machine has 23.5 GiB), 2 CPU cores\n"),
        ("shared", "those of the monitor"),
    ):
        row(page, model).locator("summary").click()
        shows(page, model, words)
    page.unroute_all(behavior="ignoreErrors")


def test_page_shows_the_kinds_of_memory(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """Memory of files is lighter on the bar, and named. Peaks are shown, also of ended backends."""
    monitor = make_swept()
    register(monitor, "mapped", "--no-status")
    os.kill(register(monitor, "ended").pid, signal.SIGKILL)
    tab = tabs.open(monitor.url)
    page = tab.page
    end_of(page, "ended")
    tree: dict[str, Any] = {
        "pss": 500 * 2**20,
        "anonymous": 25 * 2**20,
        "file": 475 * 2**20,
        "shared": 0,
    }
    tree |= {"swap": 3 * 2**20, "memory_age_seconds": 12.0}
    tree["peak_rss"] = 700 * 2**20

    def edit(body: dict[str, Any]) -> None:
        for item in body["backends"]:
            item["memory"] = {"total": tree["pss"], "breakdown": {"vram:nvidia0": 2**30}}
            item["memory_source"] = "pss"
            item["process"]["tree"] |= tree
        for end in body["ended"]:
            end["peak_rss"] = 300 * 2**20

    edit_answers(page, edit)
    shows(page, "mapped", "anonymous 25 MiB", "files (can be dropped) 475 MiB")
    shows(page, "mapped", "vram:nvidia0 (GPU) 1 GiB")
    colours = (
        row(page, "mapped")
        .locator(".bar span")
        .evaluate_all(
            "spans => spans.map(s => [s.dataset.colour, getComputedStyle(s).backgroundImage])"
        )
    )
    assert [(colour, "gradient" in image) for colour, image in colours] == [
        ("anonymous", False),
        ("file", True),
    ]
    row(page, "mapped").locator("summary").click()
    shows(page, "mapped", "Anonymous\n25 MiB", "File\n475 MiB (the kernel can drop it)")
    shows(page, "mapped", "Shared\n0 B", "Swap\n3 MiB", "Memory read\n12 s ago")
    shows(page, "mapped", "Peak RSS\n700 MiB")
    assert "300 MiB" in end_of(page, "ended")
    page.unroute_all(behavior="ignoreErrors")


GPU: dict[str, Any] = {
    "index": 0, "uuid": "GPU-a", "name": HOSTILE, "vendor": "nvidia", "parent": None,
    "component": "vram:nvidia0", "total": 80 * 2**30, "used": 30 * 2**30, "free": 49 * 2**30,
    "ours": 22 * 2**30, "others": 6 * 2**30, "unexplained": 2 * 2**30, "gtt_total": None,
    "gtt_used": None, "utilization_percent": 37.0, "temperature_celsius": 61.0,
    "power_watts": 251.3, "note": None, "age_seconds": 0.3,
    "models": [{"model": HOSTILE, "pid": 4711, "memory": 22 * 2**30, "gtt": None}],
    "processes": [
        {"pid": 99, "name": HOSTILE, "user": "alice", "memory": 6 * 2**30, "gtt": None},
        {"pid": 98, "name": None, "user": None, "memory": None, "gtt": None},
    ],
}  # fmt: skip
UNKNOWN_GPU: dict[str, Any] = {
    **dict.fromkeys(GPU), "vendor": "nvidia", "component": "vram:nvidia0:mig1", "uuid": "MIG-b",
    "parent": "GPU-a", "used": 2**30, "models": [], "processes": [], "note": f"run it {HOSTILE}",
    "age_seconds": 40.0,
}  # fmt: skip
APU: dict[str, Any] = {
    **dict.fromkeys(GPU), "vendor": "amd", "component": "vram:amdgpu:0000:c4:00.0",
    "total": 2**29, "used": 2**28, "free": 2**28, "ours": 2**28, "others": 0, "unexplained": 0,
    "gtt_total": 60 * 2**30, "gtt_used": 24 * 2**30,
    "models": [{"model": f"m{n}", "pid": n, "memory": n, "gtt": 2**30} for n in range(10, 20)],
    "processes": [{"pid": 9, "name": "big", "user": "bob", "memory": 99, "gtt": None}],
}  # fmt: skip
EIGHT = [{**GPU, "uuid": f"{n}" * 200, "component": f"vram:nvidia{n}"} for n in range(1, 9)]


def test_panel_shows_each_gpu_and_its_holders(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """It is hidden without a GPU. Unknown figures are `unknown`, and no text is parsed as HTML."""
    monitor = make_swept()
    register(monitor, "m")
    page = tabs.open(monitor.url).page
    badge(page, "m")("ready")
    listed: list[dict[str, Any]] = []
    edit_answers(page, lambda body: body.update(gpus=listed))
    badge(page, "m")("ready")
    assert not page.locator("#gpus").is_visible()
    listed += [{**UNKNOWN_GPU}, {**APU}, {**GPU}]
    rows = page.locator("#gpus-table tbody tr")
    eventually(lambda: rows.count() == 3)
    assert page.locator("#gpus-sum").inner_text() == "2 devices, 30.3 GiB of 80.5 GiB used"
    apu, whole, part = (text.replace("\xa0", " ") for text in rows.all_inner_texts())
    for words in (
        f"{HOSTILE}\nindex 0, vram:nvidia0\nGPU-a", "30 GiB of 80 GiB (38 %)",
        "our models 22 GiB", "other processes 6 GiB", "unexplained 2 GiB", "free 49 GiB",
        f"{HOSTILE} 22 GiB PID 4711", f"{HOSTILE} 6 GiB another process, PID 99, user alice",
        "unknown unknown another process, PID 98, user unknown", "37 % utilisation\n61 °C\n251 W",
    ):  # fmt: skip
        assert words in whole
    for words in (
        "instance (MIG) of GPU-a", "1 GiB of unknown", "our models unknown", "unexplained unknown",
        "of unknown owners 1 GiB", "free unknown", f"run it {HOSTILE}", "read 40 s ago",
    ):  # fmt: skip
        assert words in part
    assert not re.search(r"\b0 ", part)
    for words in ("GTT (system memory) 24 GiB of 60 GiB", "m19 19 B and GTT 1 GiB", "4 more 46 B"):
        assert words in apu
    assert apu.index("big 99 B") < apu.index("m19 19 B")
    assert [rows.nth(at).get_attribute("class") or "" for at in range(3)] == ["", "", "instance"]
    widths = (
        rows.nth(1)
        .locator(".bar span")
        .evaluate_all("spans => spans.map(span => [span.dataset.colour, span.style.width])")
    )
    assert widths == [["ours", "27.5%"], ["others", "7.5%"], ["unexplained", "2.5%"]]
    for each in listed:
        each["node"] = "node-a"
    listed.append({**UNKNOWN_GPU, "node": "node-b"})
    eventually(lambda: rows.count() == 4)
    assert "vram:nvidia0:mig1 on node-b" in rows.nth(3).inner_text()
    assert not rows.nth(3).get_attribute("class")  # its GPU is not that of node-a
    summary = page.locator("#gpus-details > summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.locator("#gpus-table").wait_for(state="hidden")
    listed.clear()
    page.locator("#gpus").wait_for(state="hidden")
    assert page.locator("img").count() == 0
    page.unroute_all(behavior="ignoreErrors")


def test_details_tell_a_backend_without_gpu_memory_from_an_unknown_one(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """It uses none if the users of all devices are known; without a device nothing is unknown."""
    monitor = make_swept(gpu="off")
    register(monitor, "m")
    page = tabs.open(monitor.url).page
    listed: list[dict[str, Any]] = []
    edit_answers(page, lambda body: body.update(gpus=listed))
    badge(page, "m")("ready")
    row(page, "m").locator("summary").click()
    shows(page, "m", "GPU memory\nno GPU is seen")
    listed.append(GPU)
    shows(page, "m", "GPU memory\nnone")
    listed.append(UNKNOWN_GPU)
    shows(page, "m", "GPU memory\nunknown")
    page.unroute_all(behavior="ignoreErrors")


def test_panel_follows_the_devices(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs, tmp_path: Path
) -> None:
    """A device that a hook lists appears with its models, and goes again."""
    devices = GpuFile(tmp_path / "gpus.json")
    monitor = make_swept(plugins=[devices])
    backend = register(monitor, "on the GPU")
    devices.write(make_gpu({backend.pid: 300}, total=900))
    page = tabs.open(monitor.url).page
    hasten(page)
    device = page.locator("#gpus-table tbody tr")
    device.wait_for()
    text = device.inner_text().replace("\xa0", " ")
    for words in ("Test GPU", "600 B of 900 B", f"on the GPU 300 B PID {backend.pid}"):
        assert words in text
    shows(page, "on the GPU", "vram:test0 (GPU) 300 B")
    devices.write()
    page.locator("#gpus").wait_for(state="hidden")
    page.unroute_all(behavior="ignoreErrors")


class Components:
    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Sequence[int]) -> Mapping[str, int]:
        return {HOSTILE: 2**30, "vram:0": 2**31}


class Refuses:
    @hookimpl
    def monitor_before_shutdown(self, backend: Backend, force: bool) -> str:
        return HOSTILE


# A backend whose child has a child. It writes each line of its input to its log, with escapes of
# bytes replaced and without the end of the line.
WRITER = """
import subprocess, sys
subprocess.Popen(["sh", "-c", "sleep 1000 & echo $$ $!; wait"], stdin=subprocess.DEVNULL)
for line in sys.stdin:
    text = line.rstrip("\\n").encode().decode("unicode_escape")
    sys.stderr.buffer.write(text.encode("latin-1"))
    sys.stderr.flush()
sys.exit(3)
"""


class Writer:
    """A backend that writes what a test wants to its log, a file.

    Args:
        spawner: starts the backend.
        path: the file.
    """

    def __init__(self, spawner: Spawner, path: Path) -> None:
        with path.open("wb") as file:
            self.process = spawner.python(WRITER, stdin=subprocess.PIPE, stderr=file)
        self.pid = self.process.pid
        self.shell, self.sleeper = map(int, read_line(self.process).split())

    def write(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def test_panel_shows_the_processes_log_events_and_ends_of_a_model(
    make_swept: Callable[..., Monitor],
    register: Register,
    spawner: Spawner,
    tabs: Tabs,
    tmp_path: Path,
) -> None:
    """A link leads to the panel, which makes requests only while it is open."""
    monitor = make_swept()
    name = f"org/m & 50 % + {HOSTILE}#1"
    writer = Writer(spawner, tmp_path / "log")
    writer.write(rf"\x1b[31mfirst \xff {HOSTILE}\n")
    monitor.hook.monitor_backend_spawned(model=name, pid=writer.pid, address="127.0.0.1:1")
    register(monitor, "other")
    tab = tabs.open(monitor.url, expected="/backend/log")
    page = tab.page
    badge(page, "other")("ready")
    panel, log = page.locator("#panel"), page.locator("#log-lines")
    page.get_by_role("link", name=name, exact=True).click()
    panel.get_by_role("heading", name=name, exact=True).wait_for()
    assert page.evaluate("location.hash") == f"#model={quote(name, safe='()!*')}"
    assert page.title().startswith(name)
    assert not page.locator("#backends-table").is_visible()
    page.reload()  # the address alone leads to the panel

    rows = panel.locator(".members tbody tr")
    eventually(lambda: rows.count() == 3)
    depths = [
        (str(pid), depth)
        for pid, depth in zip((writer.pid, writer.shell, writer.sleeper), "012", strict=True)
    ]
    assert [
        (row.locator("b").inner_text(), row.locator("th > span").get_attribute("data-depth"))
        for row in rows.all()
    ] == depths
    assert f"sleep (child of {writer.shell})" in rows.nth(2).inner_text()
    for chart in panel.get_by_role("img").all():
        chart.locator("canvas").wait_for()
        eventually(lambda chart=chart: chart.evaluate(INK))  # type: ignore[misc]
        box = chart.bounding_box()
        assert box
        assert box["width"] > 300
    page.locator("#panel-events", has_text=f"{name} was registered").wait_for()
    first = rf"\x1b[31mfirst \xff {HOSTILE}"
    eventually(lambda: log.inner_text().split("\n") == [first])
    writer.write("second\\n")
    eventually(lambda: log.inner_text().split("\n") == [first, "second"])
    page.get_by_label("Follow").uncheck()
    writer.write("third\\n")
    page.get_by_label("Stream").select_option("stdout")
    page.locator("#log-note", has_text="pipe").wait_for()
    page.get_by_label("Stream").select_option("stderr")
    page.get_by_label("Follow").check()
    eventually(lambda: log.inner_text().split("\n")[1:] == ["second", "third"])

    writer.end()
    page.get_by_text("No backend of this model is registered.").wait_for()
    end = page.locator("#panel-ends summary", has_text="exited with code 3")
    end.focus()
    page.keyboard.press("Enter")
    whole = page.locator("#panel-ends .whole")
    whole.get_by_text("Its last output:").wait_for()
    for words in ("Code, signal\n3", "Last hour\n1 end", "Last reading", "second\nthird"):
        assert words in whole.inner_text()
    os.kill(writer.shell, signal.SIGKILL)
    os.kill(writer.sleeper, signal.SIGKILL)

    page.get_by_role("link", name="All models").click()
    badge(page, "other")("ready")
    page.go_back()
    panel.get_by_role("heading", name=name, exact=True).wait_for()
    page.go_forward()
    panel.wait_for(state="hidden")
    assert page.title() == "Monitor"
    last = page.locator("#ends-table .last")
    last.locator("summary").click()
    assert last.locator("pre").inner_text().endswith("second\nthird")
    tab.requests.clear()
    page.evaluate("location.hash = '#model=none'")
    page.get_by_text("No model of this name is known.").wait_for()
    page.evaluate("location.hash = '#model=%'")
    panel.get_by_role("heading", name="%", exact=True).wait_for()
    page.go_back()
    page.go_back()
    page.get_by_role("link", name="other").click()
    panel.locator(".members").wait_for()
    page.get_by_role("link", name="All models").click()
    hasten(page)
    await_polls(page, 1)
    tab.requests.clear()
    await_polls(page, 3)
    page.unroute_all(behavior="ignoreErrors")
    assert not [url for url in tab.requests if "/backend/" in url]
    assert page.locator("img").count() == 0


def test_panel_names_the_other_nodes_of_a_model(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """Each node answers for its own processes and logs, so the panel links to the other nodes."""
    monitor = make_swept()
    register(monitor, "m")
    tab = tabs.open(monitor.url, expected="/backend/log")
    page = tab.page
    nodes = [
        {"node": "here", "url": monitor.url},
        {"node": "b", "url": "http://b.example:8080/monitor"},
        {"node": "c", "url": None},
        {"node": "d", "url": "javascript:alert(1)"},
    ]
    listed = ["here", "b", "c", "d"]

    def edit(body: dict[str, Any]) -> None:
        (item,) = body["backends"]
        body["backends"] = [{**item, "node": node} for node in listed]
        body["nodes"] = nodes

    page.route(
        "**/version",
        lambda route: route.fulfill(
            response=(answer := route.fetch()), headers={**answer.headers, "X-Monitor-Node": "here"}
        ),
    )
    edit_answers(page, edit)
    page.goto(f"{monitor.url}/#model=m")
    others = page.locator("#panel-nodes")
    others.get_by_text("page of node b").wait_for()
    link = others.get_by_role("link")
    assert link.count() == 1
    assert link.get_attribute("href") == "http://b.example:8080/monitor/#model=m"
    assert "node c, which does not tell its address" in others.inner_text()
    page.locator("#panel-members table").wait_for()
    page.locator("#log-section").wait_for()
    del listed[0]
    page.locator("#log-section").wait_for(state="hidden")
    assert not page.locator("#members-section").is_visible()
    tab.requests.clear()
    await_polls(page, 2)
    assert not [url for url in tab.requests if "/backend/members" in url]
    page.unroute_all(behavior="ignoreErrors")


def test_text_is_never_interpreted_as_markup(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """A model, a component and a refusal with a tag in their name are shown literally."""
    monitor = make_swept(plugins=[Components(), Refuses()])
    backend = register(monitor, HOSTILE)
    page = tabs.open(monitor.url, expected="409").page
    badge(page, HOSTILE)("ready")
    shows(page, HOSTILE, f"{HOSTILE} 1 GiB", "vram:0 (GPU) 2 GiB")
    confirm(page, HOSTILE)
    notice = page.get_by_role("alert").filter(has_text="refused")
    notice.wait_for()
    assert notice.inner_text().count(HOSTILE) == 2
    os.kill(backend.pid, signal.SIGKILL)
    end_of(page, HOSTILE)
    assert page.locator("img").count() == 0


def test_token_is_asked_for_once(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs, tmp_path: Path
) -> None:
    """The page asks again if it is wrong, keeps it in the tab, and explains the role read."""
    tokens = tmp_path / "tokens"
    tokens.write_text("read:grafana:r3ad\nadmin:ops:4dmin\n")
    monitor = make_swept(token_file=str(tokens))
    backend = register(monitor, "m")
    page = tabs.open(monitor.url, wait=False, expected="Failed to load resource").page
    dialog = page.get_by_role("dialog", name="The monitor wants a token")
    dialog.wait_for()
    assert "m" not in page.locator("#backends-table tbody").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The token that you gave is not valid.").wait_for()
    page.get_by_role("textbox", name="Token").fill("r3ad")
    page.keyboard.press("Enter")
    badge(page, "m")("ready")
    page.reload()
    badge(page, "m")("ready")
    assert dialog.is_hidden()
    assert "r3ad" not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    confirm(page, "m")
    notice = page.get_by_role("alert").filter(has_text="your token may look, and not stop")
    notice.wait_for()
    badge(page, "m")("ready")
    assert is_running(backend.pid)
    notice.get_by_role("button", name="Close").click()
    row(page, "m").locator("button.restart").click()
    page.get_by_role("button", name="Restart it").click()
    notice = page.get_by_role("alert").filter(has_text="your token may look, and not restart")
    notice.wait_for()
    notice.get_by_role("button", name="Close").click()
    page.get_by_role("link", name="m", exact=True).click()
    page.locator("#log-note", has_text="it needs an admin").wait_for()
    page.locator("#panel-members", has_text=f"{backend.pid} python").wait_for()
    page.get_by_role("button", name="Forget the token").click()
    page.get_by_role("textbox", name="Token").fill("4dmin")
    page.keyboard.press("Enter")
    eventually(lambda: "admin" not in page.locator("#log-note").inner_text())
    page.get_by_role("link", name="All models").click()
    confirm(page, "m")
    end_of(page, "m")
    assert not is_running(backend.pid)


def test_page_can_be_used_by_keyboard_alone(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """Tab and Enter find and stop a model; updates change neither the focus nor what is open."""
    monitor = make_swept()
    backend = register(monitor, "m")
    page = tabs.open(monitor.url).page
    badge(page, "m")("ready")

    def tab_to(what: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate(
                "document.activeElement.matches(arguments[0])".replace(
                    "arguments[0]", json.dumps(what)
                )
            ):
                return
        raise AssertionError(f"no way to {what}")

    tab_to("summary")
    page.keyboard.press("Enter")
    os.kill(backend.pid, signal.SIGUSR1)
    badge(page, "m")("busy")
    os.kill(backend.pid, signal.SIGUSR1)
    badge(page, "m")("ready")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert row(page, "m").get_by_text(backend.address).is_visible()
    tab_to("button.stop")
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Stop m?").wait_for()
    tab_to("#stop-yes")
    page.keyboard.press("Enter")
    badge(page, "m")("gone")
    assert not is_running(backend.pid)
    eventually(lambda: has_focus(stop_button(page, "m")))


def explain(body: dict[str, Any], **lists: Any) -> None:
    """Set lists of an answer of GET /backends, and why the backend `silent` has no status."""
    body.update(lists)
    for item in body["backends"]:
        if item["model"] == "silent":
            item["status_error"] = f"{HOSTILE} speaks HTTP"


class Requests:
    """Reports the load of one model."""

    @hookimpl
    def monitor_query_status(self, backend: Backend) -> Status | None:
        return Status(1, None, 2, 0, 41.5, 62.7) if backend.model == "busy one" else None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(
    scheme: str,
    make_swept: Callable[..., Monitor],
    register: Register,
    spawner: Spawner,
    tabs: Tabs,
) -> None:
    """axe-core finds nothing serious, with and without the dialog, in wide and narrow windows."""
    try:
        axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    except ModuleNotFoundError:
        skip_without("axe-playwright-python")
    monitor = make_swept(plugins=[Requests()])
    for model in ("busy one", "w" * 255):
        os.kill(register(monitor, model).pid, signal.SIGUSR1)
    register(monitor, "in error", "--state", "-1")
    register(monitor, "no status", "--no-status")
    for number, model in enumerate(("silent", "starts"), 1):
        pid, address = spawner.sleeper().pid, f"127.0.0.1:{number}"
        monitor.hook.monitor_backend_spawned(model=model, pid=pid, address=address)
    (silent,) = monitor._services.registry.records("silent")
    silent.registered_at -= 300
    os.kill(register(monitor, "crashed").pid, signal.SIGKILL)
    with pytest.raises(InvalidBackend):
        monitor.hook.monitor_backend_spawned(model="r" * 255, pid=pid, address="a" * 9999)
    page = tabs.open(
        monitor.url, color_scheme=scheme, viewport={"width": 1280, "height": 900},
        reduced_motion="reduce", expected="/backend/log",
    ).page  # fmt: skip
    models = [
        {"model": f"{state} one", "state": state, "detail": "it says so", "can_start": True}
        for state in MODEL_STATES
    ]
    gpus = [GPU, UNKNOWN_GPU, APU, *EIGHT]

    edit_answers(page, lambda body: explain(body, gpus=gpus, models=models))
    end_of(page, "crashed")
    shows(page, "busy one", "2 running, 0 waiting, 41.5 tokens/s, KV cache 63 %")
    shows(page, "silent", f"{HOSTILE} speaks HTTP (UNAVAILABLE)")
    assert "running" not in row(page, "in error").inner_text()
    page.locator("#gpus-details > summary").click()
    badge(page, "silent")("unknown")
    shows(page, "silent", "UNAVAILABLE")
    badge(page, "starts")("starting")
    page.evaluate(f"{axe}; 0")

    def check() -> None:
        found = page.evaluate("axe.run().then((result) => result.violations)")
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []

    check()
    page.set_viewport_size({"width": 360, "height": 740})
    for shown in (None, "w" * 255, "failed one", "crashed"):
        if shown is not None:
            page.evaluate("hash => { location.hash = hash; }", f"#model={quote(shown)}")
            page.locator("#panel-title", has_text=shown).wait_for()
            page.locator("#panel-models, #panel-events li").filter(visible=True).first.wait_for()
        if shown in ("w" * 255, "crashed"):
            check()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(OVER_THE_EDGE) == []
    page.get_by_role("link", name="All models").click()
    transition = "tr => getComputedStyle(tr.firstElementChild).transitionDuration"
    assert page.locator("tr").first.evaluate(transition) == "0s"
    stop_button(page, "in error").click()
    page.get_by_role("dialog", name="Stop in error?").wait_for()
    check()
    page.unroute_all(behavior="ignoreErrors")


def test_unreachable_monitor_is_asked_again(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """Meanwhile the page says so and keeps the last data; then it shows the new monitor's data."""
    listen = f"127.0.0.1:{free_port()}"
    monitor = make_swept(listen=listen)
    register(monitor, "before")
    page = tabs.open(monitor.url, expected="Failed to load resource").page
    badge(page, "before")("ready")
    monitor.close()
    page.get_by_text("The monitor is away").wait_for()
    assert row(page, "before").is_visible()
    page.set_viewport_size({"width": 360, "height": 300})
    page.locator("footer").scroll_into_view_if_needed()
    told = page.locator("#connection").bounding_box()
    assert told
    assert 0 <= told["y"] < 300
    monitor = make_swept(listen=listen)
    register(monitor, "after")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    badge(page, "after")("ready")
    page.get_by_text("Live", exact=True).wait_for()


def test_change_is_shown_before_the_next_sweep(
    make_monitor: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """A state that another client's reading found is shown, not that of the last sweep."""
    monitor = make_monitor(sweep_interval_seconds=3600)
    backend = register(monitor, "m")
    tab = tabs.open(monitor.url)
    badge(tab.page, "m")("ready")
    tab.requests.clear()
    os.kill(backend.pid, signal.SIGUSR1)
    eventually(lambda: Client(monitor.url).monitor("m").json["state"] == 1)
    badge(tab.page, "m")("busy")
    assert not [url for url in tab.requests if url.endswith("/backends")]


def test_page_requests_readings_without_sweeps(
    make_monitor: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """If the monitor makes no sweeps of its own, the page has the backends read."""
    monitor = make_monitor(sweep_interval_seconds=0)
    register(monitor, "m")
    page = tabs.open(monitor.url).page
    badge(page, "m")("ready")


def test_page_shows_a_start_without_alarm(
    make_swept: Callable[..., Monitor], spawner: Spawner, tabs: Tabs
) -> None:
    """A backend that has not answered yet needs no attention; after its answer it is ready."""
    monitor = make_swept()
    address = f"127.0.0.1:{free_port()}"
    launcher = spawner.launcher(address)
    monitor.hook.monitor_backend_spawned(model="m", pid=launcher.pid, address=address)
    page = tabs.open(monitor.url).page
    badge(page, "m")("starting")
    shows(page, "m", "it has not answered yet (UNAVAILABLE)")
    assert page.title() == "Monitor"
    launcher.launch()
    badge(page, "m")("ready")


def test_page_shows_refused_registrations(
    make_swept: Callable[..., Monitor], register: Register, spawner: Spawner, tabs: Tabs
) -> None:
    """A section has them while there are any; their texts are not parsed."""
    monitor = make_swept()
    register(monitor, "m")
    page = tabs.open(monitor.url).page
    badge(page, "m")("ready")
    assert not page.locator("#refused").is_visible()
    hasten(page)
    process = spawner.sleeper()
    with pytest.raises(InvalidBackend):
        monitor.hook.monitor_backend_spawned(
            model="<b>\u202eodd", pid=process.pid, address="<i>127.0.0.1:99999"
        )
    refusal = page.locator("#refused-table tbody tr")
    refusal.wait_for()
    assert refusal.locator("th").inner_text() == "<b>\u202eodd"
    texts = refusal.locator("td").all_inner_texts()
    assert "the port must be a number" in texts[0]
    assert texts[1:] == ["<i>127.0.0.1:99999", str(process.pid)]
    process.kill()
    process.wait()
    refusal.wait_for(state="detached")
    assert not page.locator("#refused").is_visible()
    page.unroute_all(behavior="ignoreErrors")


def test_page_shows_null_as_unknown(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """If the monitor's answer has null, the page says unknown, and never 0."""
    monitor = make_swept()
    register(monitor, "m")
    page = tabs.open(monitor.url).page
    nothing = {"state": None, "state_name": "unknown", "source": None, "rpc_error": None}
    nothing |= {"age_seconds": None, "memory": None, "memory_source": None, "process": None}
    nothing |= {"state_changed_at": None, "last_state": None, "protocol": None}

    def emptied(route: Any) -> None:
        body = route.fetch().json()
        body["backends"] = [{**item, **nothing} for item in body["backends"]]
        route.fulfill(json=body)

    page.route(re.compile(r"/backends\b(?!\.js)"), emptied)
    empty = {"interval_seconds": 5.0, "times": [], "backends": []}
    page.route("**/history", lambda route: route.fulfill(json=empty))
    page.reload()
    badge(page, "m")("unknown")
    row(page, "m").locator("summary").click()
    text = row(page, "m").inner_text().partition("Read by")[2]
    assert text.count("unknown") >= 7
    assert "0" not in text
    assert "hold an unknown amount of memory" in page.locator("#held").inner_text()
    page.unroute_all(behavior="ignoreErrors")


def test_charts_show_the_last_minutes(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """The charts begin with the monitor's history."""
    monitor = make_swept()
    register(monitor, "m")
    client = Client(monitor.url)
    eventually(lambda: len(client.request("GET", "/history").json["times"]) > 5)
    page = tabs.open(monitor.url).page

    def stretched(route: Any) -> None:  # a second is less than a pixel
        history = route.fetch().json()
        end = history["times"][-1]
        history["times"] = [end - 300 * (end - time) for time in history["times"]]
        route.fulfill(json=history)

    page.route("**/history", stretched)
    page.reload()
    charts = row(page, "m").get_by_role("img")
    charts.nth(1).wait_for()
    assert charts.count() == 2
    assert "between 3 MiB and 3 MiB" in str(charts.nth(1).get_attribute("aria-label"))
    for chart in charts.all():
        chart.locator("canvas").wait_for()
        eventually(lambda chart=chart: chart.evaluate(INK))  # type: ignore[misc]
    page.unroute_all(behavior="ignoreErrors")


def test_modules_of_the_page(monitor: Monitor, tabs: Tabs) -> None:
    """Figures have a readable format, and the history grows and forgets.

    It also grows if sweeps are an hour apart.
    """
    page = tabs.open(monitor.url).page
    assert page.evaluate(
        """async () => {
          const { bytes, percent, duration } = await import("./assets/format.js");
          return [
            [0, 1023, 1024, 1.25 * 2 ** 30, 999.9 * 2 ** 20, 2 ** 64, null, undefined].map(bytes),
            [0, 0.04, 3.14, 99.6, 250, null].map(percent),
            [0, 59.9, 60, 3600, 12000, 90061, null].map(duration),
          ];
        }"""
    ) == [
        ["0 B", "1 KiB", "1 KiB", "1.25 GiB", "0.98 GiB", "16 EiB", "unknown", "unknown"],
        ["0 %", "< 0.1 %", "3.1 %", "100 %", "250 %", "unknown"],
        ["0 s", "59 s", "1 min", "1 h", "3 h 20 min", "1 d 1 h", "unknown"],
    ]
    assert page.evaluate(
        """async () => {
          const { History } = await import("./assets/history.js");
          const item = (pid, total) => ({ model: "m", pid, memory: total && { total } });
          const history = new History();
          const backends = [{ model: "m", pid: 1, cpu_percent: [5], memory: [7] }];
          history.load({ interval_seconds: 5, times: [90, 100], backends });
          history.add([item(1, 8), item(2, null)], 105);
          history.add([item(1, 9), item(2, 3)], 106);
          const before = structuredClone([history.of(item(1)), history.of(item(2))]);
          history.add([item(1, 10)], 1002);
          const forgotten = [history.of(item(1)).memory, history.of(item(2)).times];
          history.load({ interval_seconds: 3600, times: [100], backends });
          for (const now of [105, 110, 115, 120]) history.add([item(1, 8)], now);
          return [...before, ...forgotten, history.of(item(1)).times];
        }"""
    ) == [
        {"times": [100, 105], "cpu": [5, None], "memory": [7, 8]},
        {"times": [105], "cpu": [None], "memory": [None]},
        [8, 10],
        [],
        [100, 115],
    ]


def test_texts_of_the_panel(monitor: Monitor, tabs: Tabs) -> None:
    """A tree has each process once, and a log at most 2000 lines of printable characters."""
    page = tabs.open(monitor.url).page
    assert page.evaluate(
        """async () => {
          const { treeOf } = await import("./assets/members.js");
          const tree = (...pairs) =>
            treeOf(pairs.map(([pid, parent]) => ({ pid, parent })))
              .map(({ member, depth }) => [member.pid, depth]);
          return [
            tree([5, 1], [9, 5], [7, 5], [8, 9], [6, 1]),
            tree([5, 6], [6, 5]), // PIDs that were reused while the table was read
            tree([5, null], [6, 8], [8, 6], [7, 7]),
          ];
        }"""
    ) == [
        [[5, 0], [9, 1], [8, 2], [7, 1], [6, 0]],
        [[5, 0], [6, 1]],
        [[5, 0], [7, 0], [6, 0], [8, 1]],
    ]
    lines, bounded = page.evaluate(
        """async () => {
          const { LogLines } = await import("./assets/log.js");
          const log = new LogLines(document.createElement("pre"));
          const shown = () => [...log.node.children].map((line) => line.textContent);
          log.add("one\\r\\nt");
          log.add("wo\\n\\n\\x1b[31mred\\0\\u202e\\t<b>\\r50 %\\r");
          log.add("\\n");
          log.addNote("left out");
          log.add("three");
          const first = shown();
          log.add("\\n" + "line\\n".repeat(3000) + "last");
          const many = [shown().length, shown().at(-1)];
          log.add("x".repeat(3e6));
          const long = shown().reduce((sum, line) => sum + line.length, 0);
          log.clear();
          log.add("new");
          return [first, [...many, long <= 2 ** 20, shown()]];
        }"""
    )
    assert lines == [
        "one", "two", "", "\\x1b[31mred\\x00\\u202e\t<b>\\x0d50 %", "left out", "three",
    ]  # fmt: skip
    assert bounded == [2000, "last", True, ["new"]]


def test_page_works_behind_a_prefix(
    make_swept: Callable[..., Monitor], register: Register, tabs: Tabs
) -> None:
    """If a proxy serves the page under a path, all its requests stay beneath that path."""
    monitor = make_swept()
    backend = register(monitor, "m")
    tab = tabs.open(monitor.url)
    tab.page.route(
        "**/under/here/**",
        lambda route: route.fulfill(
            response=route.fetch(url=route.request.url.replace("/under/here/", "/"))
        ),
    )
    tab.page.goto("about:blank")  # or it may ask once more, without the proxy
    tab.requests.clear()
    tab.page.goto(f"{monitor.url}/under/here/")
    badge(tab.page, "m")("ready")
    confirm(tab.page, "m")
    end_of(tab.page, "m")
    assert not is_running(backend.pid)
    tab.page.goto("about:blank")  # or it would ask without the proxy
    tab.page.unroute_all(behavior="ignoreErrors")
    assert [url for url in tab.requests if "/under/here/" not in url] == []
