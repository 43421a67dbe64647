"""The real supervisord, with the monitor as its event listener, and real backends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from monitor_plugin.demo.calls import calls

from ..support import LIGHT_BACKEND, Answer, Client, Spawner, eventually, free_port, is_running
from .supervisord_host import SLEEPER, Host, end_session, program, sleeper

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "supervisord" / "supervisord.conf"


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return [free_port() for _ in range(6)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[Host]:
    """A supervisord with backends of each kind. Each test leaves it unchanged."""
    a, b, c, d, e, f = (f"127.0.0.1:{port}" for port in ports)
    sections = [
        program("plain", f"{LIGHT_BACKEND} --addr {a}"),
        program("equals", f"{LIGHT_BACKEND} --addr={b}"),
        program(  # `--add` is understood by the backend, and nothing to the monitor
            "variables",
            f"{LIGHT_BACKEND} --add {c}",
            f'environment=MONITOR_MODEL="org/named",MONITOR_ADDRESS="{c}"',
        ),
        program("ruled", f"{LIGHT_BACKEND} --add {d}"),
        program("wrapped", f'sh -c "{LIGHT_BACKEND} --addr {e}; :"'),
        program(
            "many",
            SLEEPER,
            "process_name=%(program_name)s_%(process_num)d",
            "numprocs=3",
            'environment=MONITOR_MODEL="replicas",MONITOR_ADDRESS="127.0.0.9:20%(process_num)d"',
        ),
        program(
            "crowd",
            SLEEPER,
            "process_name=%(program_name)s_%(process_num)d",
            "numprocs=2",
            'environment=MONITOR_ADDRESS="127.0.0.8:20%(process_num)d"',
        ),
        sleeper("slow", "startsecs=3600"),
        sleeper("quick"),
        program("deaf", f"{LIGHT_BACKEND} --addr {f} --ignore-sigterm", "stopwaitsecs=6"),
        program("other", SLEEPER),
        "[group:pair]\nprograms=left,right\n",
        sleeper("left"),
        sleeper("right"),
    ]
    host = Host(
        tmp_path_factory.mktemp("supervisord"),
        "\n".join(sections),
        flags=f"--backend ruled=by/rule@{d} --backend crowd:*=crowd",
    ).start()
    yield host
    host.close()


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Starts supervisords, and ends them with all their processes."""
    hosts: list[Host] = []

    def make(*sections: str, **options: object) -> Host:
        folder = tmp_path / str(len(hosts))
        hosts.append(Host(folder, "\n".join(sections), **options))  # type: ignore[arg-type]
        return hosts[-1].start()

    yield make
    for host in hosts:
        host.close()


def source(answer: Answer) -> str | None:
    return answer.headers["X-Monitor-Source"]


@pytest.mark.parametrize("model", ["plain", "equals", "org/named", "by/rule", "wrapped"])
def test_programs_with_an_address_become_backends(model: str, shared: Host) -> None:
    """`--addr X`, `--addr=X`, the environment, a rule and a shell's child are found and read."""
    eventually(lambda: shared.known(model))
    eventually(lambda: shared.client.monitor(model).json.get("state") == 2)
    path = f"/v1/backend/monitor?model={model}"
    eventually(lambda: shared.client.request("GET", path).json.get("state") == 2)
    assert shared.client.request("POST", "/backend/monitor", {"model": model}).status == 200


@pytest.mark.once
def test_programs_without_an_address_are_no_backends(shared: Host) -> None:
    """Nor is the monitor itself one."""
    eventually(lambda: shared.known("replicas"))
    registered = {call["registered"] for call in shared.hook_calls("registered")}
    assert registered.isdisjoint({"other", "monitor"})
    assert shared.client.monitor("other").status == 500


@pytest.mark.once
def test_model_has_the_name_of_its_program(shared: Host) -> None:
    """It is `group:name` if the two differ."""
    eventually(lambda: shared.known("plain", "pair:left", "pair:right"))
    assert shared.client.monitor("left").status == 500


@pytest.mark.once
def test_process_behind_a_shell_is_the_backend(shared: Host) -> None:
    """The registered process is the one that serves, and it is stopped with its shell."""
    shell = shared.pid("wrapped")
    (backend,) = eventually(
        lambda: found if (found := shared.backends("wrapped")) != [shell] else []
    )
    assert shared.client.shutdown("wrapped").status == 200
    assert not is_running(backend)
    assert not is_running(shell)
    assert shared.state("wrapped") == "STOPPED"
    shared.begin("wrapped")
    eventually(lambda: shared.known("wrapped"))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("plain", ["plain"]),
        ("pair:left", ["pair:left"]),
        ("crowd", ["crowd:crowd_0", "crowd:crowd_1"]),
        ("slow", ["slow"]),
    ],
)
def test_stopped_model_is_not_restarted(model: str, names: list[str], shared: Host) -> None:
    """supervisord stops all replicas of a model, also STARTING ones, and does not restart them."""
    pids = [shared.pid(name) for name in names]
    eventually(lambda: shared.replicas(model) == len(names))
    if model == "slow":
        assert shared.state("slow") == "STARTING"
    answer = shared.client.shutdown(model)
    assert (answer.status, answer.json) == (200, {"message": "model stopped"})
    assert [shared.state(name) for name in names] == ["STOPPED"] * len(names)
    assert not any(is_running(pid) for pid in pids)
    assert shared.client.monitor(model).status == 500
    for name in names:
        shared.begin(name)
    eventually(lambda: shared.replicas(model) == len(names))  # and it is noticed


@pytest.mark.parametrize(("model", "number"), [("replicas", 3), ("crowd", 2)])
def test_programs_of_one_model_are_replicas(model: str, number: int, shared: Host) -> None:
    """Programs that their environment or a rule assigns to one model are its replicas."""
    eventually(lambda: shared.replicas(model) == number)


@pytest.mark.once
def test_killed_backend_is_replaced_by_its_successor(shared: Host) -> None:
    """The restarted process is registered, and the exit of the old one is reported."""
    eventually(lambda: shared.known("quick"))
    old = shared.pid("quick")
    os.kill(old, signal.SIGKILL)
    eventually(
        lambda: [
            call
            for call in shared.hook_calls("registered")
            if call["registered"] == "quick" and call["pid"] == shared.pid("quick") != old
        ]
    )
    (end,) = eventually(lambda: [call for call in shared.hook_calls("gone") if call["pid"] == old])
    assert (end["gone"], end["cause"], end["signal"]) == ("quick", "killed", signal.SIGKILL)
    assert shared.known("quick")


@pytest.mark.once
def test_output_of_hooks_does_not_break_the_event_protocol(shared: Host) -> None:
    """Hook files may print to standard output."""
    eventually(lambda: shared.known("quick"))
    shared.control("restart", "quick")
    eventually(lambda: "this is no event protocol" in shared.monitor_log)
    eventually(lambda: "nor is this" in shared.monitor_log)
    eventually(lambda: "BUSY -> ACKNOWLEDGED" in shared.log)
    assert "UNKNOWN" not in shared.log


@pytest.mark.once
def test_killed_listener_finds_all_backends_again(shared: Host) -> None:
    """supervisord restarts it, also during a shutdown, and it registers the running backends."""
    models = ["plain", "equals", "org/named", "by/rule", "replicas", "crowd", "quick", "pair:right"]
    eventually(lambda: shared.known(*models))
    eventually(lambda: source(shared.client.monitor("deaf")) == "grpc")
    old = shared.pid("monitor")
    with futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(shared.client.shutdown, "deaf")
        eventually(lambda: shared.state("deaf") == "STOPPING")
        os.kill(old, signal.SIGKILL)
        assert isinstance(asking.exception(30), (OSError, HTTPException))
    eventually(lambda: shared.pid("monitor") != old)
    eventually(lambda: shared.hook_calls("started")[-1:] == [{"started": shared.pid("monitor")}])
    eventually(lambda: shared.known(*models))
    eventually(lambda: shared.state("deaf") == "STOPPED")  # supervisord went on with it
    shared.begin("deaf")


def test_added_and_removed_programs_are_followed(make_host: Callable[..., Host]) -> None:
    """`update` adds and removes groups, and `reload` restarts all; the monitor follows."""
    first, second, kept = sleeper("first"), sleeper("second"), sleeper("kept")
    host = make_host(first, kept)
    eventually(lambda: host.known("first", "kept"))
    host.write(second + kept)
    assert "second: added process group" in host.control("update")
    eventually(lambda: host.known("second", "kept"))
    eventually(lambda: host.client.monitor("first").status == 500)
    eventually(lambda: len(host.hook_calls("started")) == 1)
    host.control("reload")
    eventually(lambda: len(host.hook_calls("started")) == 2)
    eventually(lambda: host.known("second", "kept"))


@pytest.mark.parametrize("server", ["unix", "inet"])
@pytest.mark.parametrize("credentials", [None, ("ops", "s3cret")])
def test_unix_and_tcp_servers_are_used(
    server: str, credentials: tuple[str, str] | None, make_host: Callable[..., Host]
) -> None:
    """With and without credentials, which no log and no process list shows."""
    environment = 'SUPERVISOR_USERNAME="ops",SUPERVISOR_PASSWORD="s3cret"' if credentials else ""
    host = make_host(sleeper("m"), server=server, credentials=credentials, environment=environment)
    eventually(lambda: host.known("m"))
    assert host.client.shutdown("m").status == 200
    assert host.state("m") == "STOPPED"
    assert "s3cret" not in host.monitor_log


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"server": None}, "", "supervisord has no HTTP server"),
        ({"credentials": ("ops", "s3cret")}, "", "wants a name and a password"),
        (
            {"credentials": ("ops", "s3cret")},
            'SUPERVISOR_USERNAME="ops",SUPERVISOR_PASSWORD="wr0ng"',
            "environment=SUPERVISOR_USERNAME=",
        ),
    ],
)
def test_missing_server_or_credentials_are_explained(
    options: dict[str, object], environment: str, said: str, make_host: Callable[..., Host]
) -> None:
    """The listener logs what to configure, and supervisord gives it up."""
    host = make_host(sleeper("m"), **options, environment=environment, retries=0)
    eventually(lambda: "exited: monitor (exit status 1; not expected)" in host.log)
    eventually(lambda: said in host.monitor_log)
    assert "Traceback" not in host.monitor_log
    assert "wr0ng" not in host.monitor_log
    eventually(lambda: "gave up: monitor entered FATAL state" in host.log)


@pytest.mark.once
def test_killed_supervisord_ends_a_shutdown_with_an_error(make_host: Callable[..., Host]) -> None:
    """The client is answered, the monitor ends by itself, and backends are left alone."""
    host = make_host(
        sleeper("calm"),
        program("deaf", f"{LIGHT_BACKEND} --addr 127.0.0.1:{free_port()} --ignore-sigterm"),
    )
    eventually(lambda: host.known("calm", "deaf"))
    eventually(lambda: source(host.client.monitor("deaf")) == "grpc")
    monitor, calm, deaf = (host.pid(name) for name in ("monitor", "calm", "deaf"))
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(host.client.shutdown("deaf")))
    asking.start()
    eventually(lambda: host.state("deaf") == "STOPPING")
    assert host.process
    host.process.kill()
    asking.join(30)
    assert answers[0].status == 500
    assert str(deaf) in answers[0].json["error"]["message"]
    eventually(lambda: not is_running(monitor))
    assert is_running(calm)
    assert is_running(deaf)
    assert "Traceback" not in host.monitor_log


@pytest.mark.once
def test_example_runs(tmp_path: Path, spawner: Spawner) -> None:
    """In any folder its models answer, it prints commands, and Ctrl-C ends all processes."""
    # The ports of replicas end in their numbers.
    text = EXAMPLE.read_text().replace("127.0.0.1:50", f"127.0.0.{os.getpid() % 200 + 20}:50")
    (tmp_path / EXAMPLE.name).write_text(text)
    client = Client(f"http://127.0.0.1:{free_port()}")
    process = spawner.process(
        *(sys.executable, "-m", "monitor_plugin.demo.real_host", client.url),
        *("supervisord", "-c", str(tmp_path / EXAMPLE.name)),
        # TMPDIR is where supervisord writes what its programs print.
        env={
            **os.environ,
            "MONITOR_LISTEN": client.url.removeprefix("http://"),
            "TMPDIR": str(tmp_path),
        },
        cwd="/",
    )
    try:
        assert process.stdout
        shown = ""
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, shown
            shown += line
        for call in calls():
            assert call.curl(client.url) in shown
        eventually(lambda: source(client.monitor("my-model")) == "grpc")
        eventually(lambda: client.monitor("org/busy model").headers["X-Monitor-Replicas"] == "2")
        assert source(client.monitor("no-status")) == "psutil"
        assert client.shutdown("my-model").status == 200
        backends = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
        eventually(lambda: not any(backend.is_running() for backend in backends))
    finally:
        end_session(process.pid)


@pytest.mark.once
def test_hundred_programs_are_found(make_host: Callable[..., Host]) -> None:
    """All are registered soon after their start, and after a restart of the monitor."""
    crowd = program(
        "crowd",
        SLEEPER,
        "process_name=%(process_num)03d",
        "numprocs=100",
        'environment=MONITOR_MODEL="m%(process_num)03d",MONITOR_ADDRESS="127.0.0.7:20%(process_num)03d"',
    )
    host = make_host(crowd)
    models = [f"m{number:03}" for number in range(100)]

    def listed() -> list[str]:
        with contextlib.suppress(OSError):
            answer = host.client.request("GET", "/backends?fresh=false").json
            return sorted(each["model"] for each in answer["backends"])
        return []

    eventually(lambda: listed() == models)
    assert host.known(*models)
    for model in models[::20]:
        assert host.client.shutdown(model).status == 200
    old = host.pid("monitor")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: len(host.hook_calls("started")) == 2)
    left = [each for each in models if each not in models[::20]]
    eventually(lambda: listed() == left)
    assert host.known(*left)
    assert [host.state(f"crowd:{model[1:]}") for model in models[::20]] == ["STOPPED"] * 5
    assert "UNKNOWN" not in host.log
