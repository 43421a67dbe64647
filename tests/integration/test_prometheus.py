"""A real Prometheus, its promtool, and what the examples give it."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from monitor_plugin import Backend, Gpu, Monitor, hookimpl

from ..gpus import make_gpu
from ..support import Client, Spawner, eventually, free_port, program

EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"
DASHBOARD = json.loads((EXAMPLES / "dashboard.json").read_text())
MODEL = 'org/a"b\\c: 模型 {x="y"} 1'
COMPONENT = 'vram "\\\n\r\x00\u2028'
# Prometheus' own.
FOREIGN = {"up"}
GRAFANA = {
    "$__rate_interval": "1m",
    "$__range": "3h",
    "$instance": ".*",
    "$model": ".*",
}


def promtool(*arguments: str, input: bytes | None = None) -> tuple[int, str]:
    """Run promtool, and give its exit code and all that it said."""
    process = subprocess.run(
        [program("promtool"), *arguments],
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return process.returncode, process.stdout.decode()


def expressions() -> list[str]:
    """List every PromQL expression of the dashboard and of the rules."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = (EXAMPLES / "alerts.yml").read_text()
    found += re.findall(r"^ +expr: (?!\|)(.*)", rules, re.M)
    found += re.findall(r"^ +expr: \|\n((?: {10,}.*\n)+)", rules, re.M)
    assert len(found) == len(re.findall('expr:|"expr":', rules + json.dumps(DASHBOARD)))
    return found


def variables() -> list[str]:
    """List the selectors of which the dashboard's variables are the labels' values."""
    queries = [each["query"] for each in DASHBOARD["templating"]["list"]]
    asked = [each["query"] for each in queries if isinstance(each, dict)]
    return [re.findall(r"^label_values\((.*), \w+\)$", each)[0] for each in asked]


def names_in(expression: str) -> set[str]:
    """Tell the metrics of an expression: what is left without labels, functions and keywords."""
    expression = re.sub(r'"(?:[^"\\]|\\.)*"|\{[^}]*\}|\[[^]]*\]', " ", expression)
    expression = re.sub(r"\b(by|on|without|ignoring|group_left)\s*\([^)]*\)", " ", expression)
    words = re.findall(r"\b[a-z_]\w*\b(?!\s*\()", expression)
    keywords = {"sum", "max", "count", "group", "unless", "and", "or", "offset"}
    return set(words) - keywords


def exposed(monitor: Monitor) -> set[str]:
    """List the names by which PromQL finds what is exposed."""
    text = Client(monitor.url).request("GET", "/metrics").body.decode()
    types = re.findall(r"^# TYPE (\S+) (\S+)", text, re.M)
    suffixes = {"histogram": ("_bucket", "_count", "_sum")}
    return {name + each for name, kind in types for each in suffixes.get(kind, ("",))}


class Devices:
    """Lists a GPU."""

    @hookimpl
    def monitor_list_gpus(self) -> Sequence[Gpu]:
        figures = {"utilization_percent": 5.0, "temperature_celsius": 61.0, "power_watts": 90.0}
        return [make_gpu({}, name=COMPONENT, gtt_total=2, gtt_used=1, **figures)]


def test_examples_use_existing_metrics(make_monitor: Callable[..., Monitor]) -> None:
    """Each name in the dashboard and the rules is a metric of `/metrics`; all figures are used."""
    monitor = make_monitor([Devices()])
    used = set().union(*map(names_in, [*expressions(), *variables()]))
    assert used - FOREIGN - exposed(monitor) == set()
    histogram = "monitor_backend_status_duration_seconds"
    others = {f"{histogram}_count", f"{histogram}_sum", "monitor_build_info"}
    assert exposed(monitor) - used == others


def test_metric_names_are_found_in_expressions() -> None:
    """The test above depends on this: it must see a name that does not exist."""
    expression = 'sum by (le) (rate(a_b{c=~"d)",e="f"}[5m])) / on (g) h_total > 0.9 * i unless j'
    assert names_in(expression) == {"a_b", "h_total", "i", "j"}


@pytest.mark.once
def test_promtool_accepts_the_examples(tmp_path: Path) -> None:
    """The rules, their tests and the configuration, with a token file as the README there says."""
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    (folder / "token").write_text("secret")
    for command in ("check rules alerts.yml", "test rules alerts_test.yml"):
        *words, name = command.split()
        code, said = promtool(*words, str(folder / name))
        assert code == 0, said
        assert "SUCCESS" in said
    code, said = promtool("check", "config", "--lint-fatal", str(folder / "prometheus.yml"))
    assert code == 0, said


@pytest.mark.once
def test_each_alert_is_tested(tmp_path: Path) -> None:
    """A rule that never fires, and one that always fires, fail the rules' tests."""
    rules = (EXAMPLES / "alerts.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    shutil.copy(EXAMPLES / "alerts_test.yml", tmp_path)
    test = str(tmp_path / "alerts_test.yml")
    for alert in alerts:
        never = re.sub(
            rf"(alert: {alert}\n +expr: )(?:\|\n(?: {{10,}}.*\n)+|.*\n)", r"\1up > 2\n", rules
        )
        assert never != rules
        (tmp_path / "alerts.yml").write_text(never)
        code, said = promtool("test", "rules", test)
        assert code != 0, f"{alert} is not tested"
        assert f"alertname: {alert}," in said


class Components:
    @hookimpl
    def monitor_memory_components(self, backend: Backend, pids: Any) -> Mapping[str, int]:
        return {COMPONENT: 7}


@pytest.fixture
def watching(make_monitor: Callable[..., Monitor], spawner: Spawner, tmp_path: Path) -> Monitor:
    """A monitor that wants a token, with backends that do and that do not what they should."""
    tokens = tmp_path / "tokens"
    tokens.write_text("read:prometheus:secret\nadmin:ops:root\n")
    tokens.chmod(0o600)
    monitor = make_monitor(
        plugins=[Components(), Devices()],
        token_file=str(tokens),
        status_timeout_seconds=0.5,
        start_grace_seconds=0,
    )
    for model, switches in (
        (MODEL, ()),
        ("hung", ("--hang-status",)),
        ("old", ("--no-status",)),
        ("killed", ()),
    ):
        backend = spawner.backend(*switches)
        monitor.hook.monitor_backend_spawned(model=model, pid=backend.pid, address=backend.address)
    backend.process.kill()
    eventually(lambda: len(monitor.backends()) == 3)
    return monitor


@pytest.mark.once
def test_promtool_accepts_the_metrics(watching: Monitor) -> None:
    """It reports nothing on their format, names and units."""

    def scrape() -> bytes:
        token = {"Authorization": "Bearer secret"}
        return Client(watching.url).request("GET", "/metrics", None, token).body

    eventually(lambda: b'code="UNIMPLEMENTED"' in scrape())
    assert promtool("check", "metrics", input=scrape()) == (0, "")


class Relay(http.server.BaseHTTPRequestHandler):
    """Asks the monitor for the text format, as a Prometheus would that knows no other."""

    monitor: Client

    def do_GET(self) -> None:
        headers = {"Authorization": self.headers["Authorization"], "Accept": "text/plain"}
        answer = self.monitor.request("GET", self.path, None, headers)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Prometheus(Client):
    """Asks a Prometheus."""

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.request("GET", f"/api/v1/{path}?{urlencode(parameters)}")
        assert answer.json["status"] == "success", answer
        return answer.json["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        result = self.get("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("GET", "/-/ready").status == 200
        return False


@pytest.fixture
def relay(watching: Monitor) -> Iterator[str]:
    """The address where the monitor's text format is."""
    handler = type("TextRelay", (Relay,), {"monitor": Client(watching.url)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def prometheus(watching: Monitor, relay: str, spawner: Spawner, tmp_path: Path) -> Prometheus:
    """A Prometheus with the examples' configuration, which scrapes the monitor in both formats."""
    folder = shutil.copytree(EXAMPLES, tmp_path / "prometheus")
    (folder / "token").write_text("secret\n")
    configuration = (folder / "prometheus.yml").read_text()
    target = watching.url.removeprefix("http://")
    configuration = configuration.replace('"127.0.0.1:8080"', f'"{target}", "{relay}"')
    configuration = configuration.replace("scrape_interval: 15s", "scrape_interval: 2s")
    (folder / "prometheus.yml").write_text(configuration)
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("w") as log:
        spawner.process(
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
            stderr=log,
        )
    prometheus = Prometheus(f"http://{address}")
    eventually(prometheus.is_ready)
    return prometheus


def ups(prometheus: Prometheus, instance: str) -> dict[str, float]:
    found = prometheus.query(f'monitor_backend_up{{instance="{instance}"}}')
    return {labels["model"]: value for labels, value in found}


@pytest.mark.slow
@pytest.mark.once
def test_real_prometheus_scrapes_the_monitor(
    watching: Monitor, relay: str, prometheus: Prometheus
) -> None:
    """With its token, in both formats; a series that is gone is stale at the next scrape."""
    query = prometheus.query
    eventually(lambda: [each for _, each in query('up{job="monitor-plugin"}')] == [1, 1])
    scraped = {each["scrapeUrl"]: each for each in prometheus.get("targets")["activeTargets"]}
    assert [each["lastError"] for each in scraped.values()] == ["", ""]
    # Only OpenMetrics has this type.
    types = prometheus.get("targets/metadata", metric="monitor_backend_state")
    assert {each["target"]["instance"]: each["type"] for each in types} == {
        watching.url.removeprefix("http://"): "stateset",
        relay: "gauge",
    }
    for each in (watching.url.removeprefix("http://"), relay):
        eventually(lambda: ups(prometheus, each) == {MODEL: 1, "hung": 0, "old": 1})  # noqa: B023
        exits = f'monitor_backend_exits_total{{model="killed",cause="killed",instance="{each}"}}'
        eventually(lambda: [value for _, value in query(exits)] == [1])  # noqa: B023
        held = f'monitor_backend_memory_bytes{{instance="{each}",model="old"}}'
        components = eventually(lambda: query(held))  # noqa: B023
        assert [(labels["component"], value) for labels, value in components] == [(COMPONENT, 7)]
    for expression in [*expressions(), *variables()]:
        for name, value in GRAFANA.items():
            expression = expression.replace(name, value)
        query(expression)
    alive = 'monitor_backend_up{model=~"org/.*"}'
    eventually(lambda: len(query(alive)) == 2)
    root = {"Authorization": "Bearer root"}
    body = {"model": MODEL}
    stopped = Client(watching.url).request("POST", "/backend/shutdown", body, root)
    assert stopped.status == 200
    eventually(lambda: not query(alive))
    eventually(lambda: not query('monitor_backend_process_cpu_seconds_total{model=~"org/.*"}'))
    stops = 'monitor_backend_shutdowns_total{model=~"org/.*",outcome="stopped"}'
    eventually(lambda: [value for _, value in query(stops)] == [1, 1])
    eventually(lambda: len(query('monitor_backend_up{model="old"}')) == 2)
