"""GGUF files for tests: a tiny LLaMA with a byte-level tokenizer, written as llama.cpp writes one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

HEADS, LAYERS = 2, 2
MERGED, SPECIALS = ["th"], ["<|end|>", "<|start|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_ARCHITECTURE = "llama"
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(seed: int = 5) -> LlamaForCausalLM:
    """A random model over the 256 bytes, a pair of them and two special tokens."""
    config = LlamaConfig(
        vocab_size=256 + len(MERGED + SPECIALS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = _ARCHITECTURE,
    chat_template: str | None = CHAT_TEMPLATE,
    with_tokenizer: bool = True,
) -> Path:
    """Write a model of `tiny_llama` with its matrices in a number format of llama.cpp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_key_length(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if with_tokenizer:
        _add_tokenizer(writer, chat_template)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            _add(writer, name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_number(path: Path, key: str, value: int) -> Path:
    """Change a number of the metadata in place."""
    content = bytearray(path.read_bytes())
    start = content.index(key.encode()) + len(key) + 4  # behind the key comes what kind of value it is
    content[start : start + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def _add_tokenizer(writer: GGUFWriter, chat_template: str | None) -> None:
    letters = list(bytes_to_unicode().values())  # type: ignore[no-untyped-call]  # has no annotations
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*letters, *MERGED, *SPECIALS])
    writer.add_token_types([1] * (len(letters) + len(MERGED)) + [3] * len(SPECIALS))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(258)
    for add in (writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(257)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _add(writer: GGUFWriter, name: str, tensor: Tensor, kind: GGMLQuantizationType) -> None:
    values = tensor.detach().float().numpy()
    if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp pairs the halves of rotary positions side by side
        rows, columns = values.shape
        values = values.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    own = kind if values.ndim == 2 else GGMLQuantizationType.F32
    writer.add_tensor(_gguf_name(name), quantize(np.ascontiguousarray(values), own), raw_dtype=own)


def _gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"
