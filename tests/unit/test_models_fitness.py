"""What is asked of a base model before a run begins: causality, rows for every token, positions for the longest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from fedmezo.data.encode import EncodedDataset
from fedmezo.errors import DataError, ModelError
from fedmezo.models.fitness import learned_positions, require_causal, require_fit
from tests.tiny_models import NUM_TOKENS, PLAIN, tiny_model


def examples(length: int, largest: int = 9) -> EncodedDataset:
    """One example of so many tokens, the last of which is the largest."""
    tokens = np.full(length, 5, dtype=np.int32)
    tokens[-1] = largest
    prompt = np.array([1], dtype=np.int32)
    return EncodedDataset(tokens, np.array([0, length]), prompt, np.zeros(1, dtype=np.int64), dropped=0, pad_id=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_attends_both_ways_is_refused(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder: Any = BertLMHeadModel(BertConfig(**PLAIN, intermediate_size=48))
        decoder: Any = BertLMHeadModel(BertConfig(**PLAIN, intermediate_size=48, is_decoder=True))
    for model in (encoder, decoder):
        model.eval().to(dtype)
    with pytest.raises(ModelError, match=r"BertLMHeadModel is no causal .*; its config says is_decoder: False"):
        require_causal(encoder, encoder)
    require_causal(decoder, decoder)


def test_a_model_that_fails_is_one_message() -> None:
    model = tiny_model("phi3")

    def fail(*_: object, **__: object) -> None:
        raise LookupError("no such kernel")

    model.model.forward = fail
    with pytest.raises(ModelError, match="Phi3ForCausalLM cannot be computed with this adapter: LookupError: no such"):
        require_causal(model, model)


POSITIONS = {
    "gpt2": 16,
    "opt": 16,
    "codegen": 64,
    "gptj": 64,
    "gpt_neo": 64,
    "qwen3": None,
    "bloom": None,
    "mamba": None,
}


def model_named(name: str) -> Any:
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=NUM_TOKENS, n_embd=32, n_layer=1, n_head=4, n_positions=16))
    if name == "opt":  # its table has two rows more than positions
        return OPTForCausalLM(OPTConfig(**PLAIN, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=16))
    return tiny_model(name)


@pytest.mark.parametrize("name", POSITIONS)
def test_learned_positions_are_found(name: str) -> None:
    assert learned_positions(model_named(name)) == POSITIONS[name]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_limit_is_where_the_model_fails(name: str) -> None:
    model = model_named(name).eval()
    model(input_ids=torch.full((1, 16), 5))
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 17), 5))


def test_too_long_an_example_is_refused_with_the_numbers() -> None:
    model = model_named("gpt2")
    require_fit(model, 3, examples(13), 128)
    with pytest.raises(DataError) as caught:
        require_fit(model, 3, examples(14), 128)
    assert str(caught.value) == (
        "llm.tok_len is 128 and the longest example has 14 tokens, after 3 virtual tokens, but GPT2LMHeadModel has 16 "
        "positions: set llm.tok_len to 13 or less"
    )


def test_a_token_without_a_row_is_refused_with_the_numbers() -> None:
    model = tiny_model("qwen3")
    require_fit(model, 0, examples(4, largest=NUM_TOKENS - 1), 128)
    with pytest.raises(DataError, match=r"tokens up to id 64, but the embedding of Qwen3ForCausalLM has 64 rows"):
        require_fit(model, 0, examples(4, largest=NUM_TOKENS), 128)
