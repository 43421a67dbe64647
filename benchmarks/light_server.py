"""One process with many gRPC servers, so that a light process can stand for each backend.

    python benchmarks/light_server.py COUNT

Prints COUNT ports, each of which reports itself as its memory, `{"port": PORT}`, and one more,
whose answer is over 4 MiB. Ends when its standard input is closed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from monitor_plugin.rpc.protocol import SERVICE, load_messages


def serve(pool: ThreadPoolExecutor, port_of_its_own: bool) -> tuple[grpc.Server, int]:
    """Start one server."""
    answer = load_messages()["StatusResponse"](state=2)
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: answer.SerializeToString()
    )
    server = grpc.server(pool)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Status": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    if port_of_its_own:
        answer.memory.total = answer.memory.breakdown["port"] = port
    else:
        answer.memory.breakdown["x" * (5 * 1024 * 1024)] = 1
    server.start()
    return server, port


def main() -> None:
    """Serve until standard input is closed."""
    with ThreadPoolExecutor(8) as pool:
        count = int(sys.argv[1])
        servers = [serve(pool, number < count) for number in range(count + 1)]
        print(*(port for _, port in servers), flush=True)
        sys.stdin.read()
        for server, _ in servers:
            server.stop(None)


if __name__ == "__main__":
    main()
