"""The monitor's answers are well-formed for every response of a backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor_plugin import Monitor
from monitor_plugin.rpc.protocol import SERVICE, load_messages

from ..support import Client, Spawner

UINT64 = st.integers(0, 2**64 - 1)
StatusResponse = load_messages()["StatusResponse"]


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, kind: int, content: bytes) -> bytes:
    return varint(number << 3 | kind) + (varint(len(content)) if kind == 2 else b"") + content


def fields(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Fields of the wire format, of known and unknown numbers and types."""
    number = st.integers(1, 4) | st.integers(1, 2**29 - 1)
    return st.lists(
        st.builds(field, number, st.just(0), UINT64.map(varint))
        | st.builds(field, number, st.just(2), content)
        | st.builds(field, number, st.sampled_from([1, 5]), st.binary(min_size=4, max_size=8)),
        max_size=6,
    ).map(b"".join)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Valid messages, with any numbers."""
    message = StatusResponse(state=draw(st.integers(-(2**31), 2**31 - 1)))
    if draw(st.booleans()):
        message.memory.total = draw(UINT64)
        for name, amount in draw(st.dictionaries(st.text(max_size=9), UINT64, max_size=5)).items():
            message.memory.breakdown[name.encode(errors="replace").decode()] = amount
    return bytes(message.SerializeToString())


WIRE = st.recursive(st.binary(max_size=40), fields, max_leaves=8)


def is_uint64(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**64


def test_every_response_gives_a_well_formed_answer(
    make_monitor: Callable[..., Monitor], spawner: Spawner
) -> None:
    """A status if the response is valid, else a sample and the gRPC code."""
    monitor = make_monitor(status_timeout_seconds=30.0)
    client = Client(monitor.url)
    content = b""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: content)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Status": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        address = f"127.0.0.1:{port}"
        process = spawner.sleeper(serves=address)
        monitor.hook.monitor_backend_spawned(model="m", pid=process.pid, address=address)

        @settings(max_examples=200, suppress_health_check=list(HealthCheck))
        @given(WIRE | messages())
        def check(response: bytes) -> None:
            nonlocal content
            content = response
            answer = client.monitor("m")
            assert answer.status == 200
            body = json.loads(answer.body.decode())
            if answer.headers["X-Monitor-Source"] == "grpc":
                assert list(body) == ["state", "memory"]
                assert type(body["state"]) is int
                memory = body["memory"]
                assert list(memory) == ["total", "breakdown"]
                assert is_uint64(memory["total"])
                assert all(is_uint64(amount) for amount in memory["breakdown"].values())
                assert answer.headers["X-Monitor-Memory-Source"] in ("backend", "pss", "rss")
            else:
                assert answer.headers["X-Monitor-Rpc-Error"] == "INTERNAL"
                assert list(body) == ["memory_info", "memory_percent", "cpu_percent"]

        check()
        server.stop(None).wait()
