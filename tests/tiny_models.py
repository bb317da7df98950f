"""Tiny random models of many architectures, built in this process from their config classes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

NUM_TOKENS = 64

PLAIN: dict[str, Any] = {
    "vocab_size": NUM_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
GATED: dict[str, Any] = PLAIN | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS: dict[str, Any] = GATED | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES: dict[str, Any] = PLAIN | {"state_size": 8, "conv_kernel": 4, "expand": 2}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3Config", GATED),
    "qwen3": ("Qwen3Config", GATED | {"head_dim": 8}),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"num_experts": 4, "head_dim": 8}),
    "mixtral": ("MixtralConfig", GATED | {"num_local_experts": 4}),
    "olmo2": ("Olmo2Config", GATED),
    "olmoe": ("OlmoeConfig", GATED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("GraniteConfig", GATED | {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "cohere": ("CohereConfig", GATED),
    "cohere2": ("Cohere2Config", GATED | {"sliding_window": 4}),
    "glm4": ("Glm4Config", GATED | {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", GATED),
    "starcoder2": ("Starcoder2Config", GATED),
    "deepseek_v3": (
        "DeepseekV3Config",
        EXPERTS | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
                   "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                   "v_head_dim": 8, "num_key_value_heads": 4},
    ),
    "gpt_oss": ("GptOssConfig", EXPERTS | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 4}),
    "mamba": ("MambaConfig", STATES),
    "mamba2": ("Mamba2Config", STATES | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("FalconMambaConfig", STATES),
    "jamba": (
        "JambaConfig",
        GATED | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
                 "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 2,
                 "mamba_dt_rank": 4},
    ),
    "falcon": ("FalconConfig", PLAIN),
    "falcon_h1": (
        "FalconH1Config",
        GATED | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
                 "mamba_chunk_size": 8},
    ),
    "gemma3": ("Gemma3TextConfig", GATED | {"head_dim": 8, "sliding_window": 4}),
    "stablelm": ("StableLmConfig", GATED),
    "phi": ("PhiConfig", GATED),
    "phimoe": ("PhimoeConfig", GATED | {"num_local_experts": 4}),
    "nemotron": ("NemotronConfig", GATED),
    "exaone4": ("Exaone4Config", GATED | {"sliding_window": 4, "sliding_window_pattern": 2}),
    "ernie4_5": ("Ernie4_5Config", GATED),
    "hunyuan": ("HunYuanDenseV1Config", GATED | {"head_dim": 8}),
    "bitnet": ("BitNetConfig", GATED),
    "helium": ("HeliumConfig", GATED | {"head_dim": 8}),
    "lfm2": ("Lfm2Config", GATED | {"layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": ("RecurrentGemmaConfig", GATED | {"attention_window_size": 8, "lru_width": 32}),
    "rwkv": ("RwkvConfig", PLAIN | {"attention_hidden_size": 32, "context_length": 64}),
    "bloom": ("BloomConfig", PLAIN | {"n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"vocab_size": NUM_TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "gptj": ("GPTJConfig", {"vocab_size": NUM_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                            "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        PLAIN | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                 "max_position_embeddings": 64},
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", {"vocab_size": NUM_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                         "n_positions": 64}),
    "codegen": ("CodeGenConfig", {"vocab_size": NUM_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                  "n_positions": 64, "rotary_dim": 4}),
}  # fmt: skip
"""Config class and its arguments, by a short name."""


def tiny_model(name: str, seed: int = 5) -> PreTrainedModel:
    """A model of this architecture in evaluation mode, frozen as `load_base` leaves it."""
    kind, arguments = TINY[name]
    auto_model: Any = AutoModelForCausalLM  # has no annotations
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = auto_model.from_config(getattr(transformers, kind)(**arguments))
    model.config.use_cache = False
    tiny: PreTrainedModel = model.requires_grad_(False).eval()
    return tiny
