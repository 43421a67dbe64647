"""A real server of the Open Inference Protocol v2, with responses from a JSON file.

python -m tests.hooks.oip_server FILE

The file has `ready` (whether the server is), `models` (whether each is ready, by name), `seconds`
(the duration of an answer) and, optionally, `service` (the gRPC service's name) and `unknown_model`
(the gRPC code for a model that is not in `models`). By default this code is UNKNOWN, as MLServer's.
The path of each call, and the model that it names, are appended to FILE.calls.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    Handler = grpc.GenericRpcHandler[Any, Any]
else:
    Handler = grpc.GenericRpcHandler

FIELD = descriptor_pb2.FieldDescriptorProto
# Messages of the public file open_inference_grpc.proto.
MESSAGES = {
    "ServerReadyRequest": [],
    "ServerReadyResponse": [("ready", FIELD.TYPE_BOOL)],
    "ModelReadyRequest": [("name", FIELD.TYPE_STRING), ("version", FIELD.TYPE_STRING)],
    "ModelReadyResponse": [("ready", FIELD.TYPE_BOOL)],
}


def message_classes() -> dict[str, Any]:
    """Make the classes of the protocol's messages."""
    file = descriptor_pb2.FileDescriptorProto(name="oip.proto", package="inference")
    file.syntax = "proto3"
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            message.field.add(name=field, number=number, type=kind, label=FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"inference.{name}")) for name in MESSAGES}


class Server(Handler):
    """Answers `ServerReady` and `ModelReady`, and records every call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._messages = message_classes()

    def _configuration(self) -> Any:
        return json.loads(self._path.read_text())

    def _record(self, text: str) -> None:
        with open(f"{self._path}.calls", "a") as file:
            file.write(f"{text}\n")

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call."""
        self._record(details.method)
        service = self._configuration().get("service", "inference.GRPCInferenceService")
        for name, handle in (("ServerReady", self._server), ("ModelReady", self._model)):
            if details.method == f"/{service}/{name}":
                return grpc.unary_unary_rpc_method_handler(
                    handle,
                    request_deserializer=self._messages[f"{name}Request"].FromString,
                    response_serializer=lambda response: response.SerializeToString(),
                )
        return None

    def _server(self, request: Any, context: grpc.ServicerContext) -> Any:
        time.sleep(self._configuration()["seconds"])
        return self._messages["ServerReadyResponse"](ready=self._configuration()["ready"])

    def _model(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._record(f"{request.name} {request.version}".strip())
        ready = self._configuration()["models"].get(request.name)
        if ready is None:
            code = self._configuration().get("unknown_model", "UNKNOWN")
            details = "Unexpected <class 'mlserver.errors.ModelNotFound'>: Model not found"
            context.abort(grpc.StatusCode[code], details)
        return self._messages["ModelReadyResponse"](ready=ready)


def main() -> None:
    """Serve on a free port, until killed."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Server(Path(sys.argv[1])),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
