"""Lists the protocols."""

from __future__ import annotations

from collections.abc import Mapping

from . import grpc_health, kserve_grpc
from .kserve_http import KserveHttp
from .llama_cpp import LlamaCpp
from .ollama import Ollama
from .openai import OpenAi
from .protocol import AskByGrpc, HttpProtocol
from .sglang import Sglang
from .tgi import Tgi
from .vllm import Vllm

# In the order in which a server is tried: those that more than one kind of server answers stand
# last. Each path is requested once for all of them.
HTTP_PROTOCOLS: tuple[type[HttpProtocol], ...] = (
    LlamaCpp,
    Vllm,
    Sglang,
    Tgi,
    Ollama,
    KserveHttp,
    OpenAi,
)

# By name, except `localai`, which is that of `rpc/`.
GRPC_PROTOCOLS: Mapping[str, AskByGrpc] = {
    "grpc-health": grpc_health.ask,
    "kserve-grpc": kserve_grpc.ask,
}
