"""Writes a Llama with random weights for llama.cpp: `make_gguf.py FILE`.

It runs in an environment of its own, which has the packages.
"""

from __future__ import annotations

import sys

import gguf
import numpy

EMBEDDING, FEED_FORWARD, LAYERS = 1024, 2816, 6  # 300 MB
CONTEXT = 2048
HEAD = 64
WORDS = 61


def main(path: str) -> None:
    """Write the model."""
    random = numpy.random.default_rng(0)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * WORDS
    tokens += [f"\u2581word{number}".encode() for number in range(WORDS)]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(EMBEDDING // HEAD)
    writer.add_head_count_kv(EMBEDDING // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add_weights(name: str, *shape: int) -> None:
        weights = random.standard_normal(shape, dtype=numpy.float32) * 0.02
        writer.add_tensor(f"{name}.weight", weights.astype(numpy.float32))

    def add_ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(EMBEDDING, numpy.float32))

    add_weights("token_embd", len(tokens), EMBEDDING)
    add_ones("output_norm")
    add_weights("output", len(tokens), EMBEDDING)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_ones(f"{block}.attn_norm")
        add_ones(f"{block}.ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add_weights(f"{block}.{name}", EMBEDDING, EMBEDDING)
        add_weights(f"{block}.ffn_gate", FEED_FORWARD, EMBEDDING)
        add_weights(f"{block}.ffn_up", FEED_FORWARD, EMBEDDING)
        add_weights(f"{block}.ffn_down", EMBEDDING, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
