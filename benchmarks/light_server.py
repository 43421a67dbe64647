"""One process with many gRPC servers, which answer for backends that are light processes.

    python benchmarks/light_server.py COUNT

Prints COUNT ports and one more. Each of the COUNT servers reports its own port as its memory,
`{"port": PORT}`. The last server's answer is over 4 MiB, which is gRPC's limit. Ends when its
standard input is closed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from monitor_plugin.rpc.protocol import SERVICE, load_messages


def serve(pool: ThreadPoolExecutor, reports_port: bool) -> tuple[grpc.Server, int]:
    """Start one server, and return it and its port."""
    answer = load_messages()["StatusResponse"](state=2)
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: answer.SerializeToString()
    )
    server = grpc.server(pool)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Status": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    if reports_port:
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
