"""Adapters: what the config may say, initial values that follow from the seed, the flat vector, the saved files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedmezo.errors import ModelError
from fedmezo.models.adapters import METHODS, attach_adapter, write_adapter
from fedmezo.models.flat import FlatParameters
from fedmezo.zo.noise import Purpose, Stream, words

LORA = {"adapter_package": "peft", "adapter_method": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}
EXTRA = {"lora": {"r": 2}, "ia3": {}}


def llama() -> PreTrainedModel:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).requires_grad_(False)


def args_of(method: str) -> dict[str, Any]:
    return {"adapter_method": method, **EXTRA.get(method, {"num_virtual_tokens": 3})}


@pytest.mark.parametrize("method", METHODS)
def test_initial_theta_follows_from_the_seed(method: str) -> None:
    def theta(seed: int) -> torch.Tensor:
        return FlatParameters(attach_adapter(llama(), args_of(method), seed)).flat()

    state = torch.get_rng_state()
    torch.testing.assert_close(theta(7), theta(7), rtol=0, atol=0)
    assert torch.equal(theta(7), theta(8)) is (method == "ia3")  # the vectors of (IA)3 start as ones
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_starts_from_the_counter_generator() -> None:
    flat = FlatParameters(attach_adapter(llama(), LORA, seed=11))
    theta = flat.flat()
    for index, segment in enumerate(flat.segments):
        values = theta[segment.start : segment.stop].tolist()
        if segment.name.endswith("lora_B.weight"):
            assert values == [0.0] * len(values)
            continue
        drawn = words(Stream(11, Purpose.ADAPTER, step=index), 0, len(values)).tolist()
        bound = torch.tensor(1 / math.sqrt(8)).item()
        exact = [(word // 256 * 2 / 2**24 - 1) * bound for word in drawn]  # in float64, then rounded once
        assert values == torch.tensor(exact, dtype=torch.float64).float().tolist()


def test_lora_initial_bits() -> None:
    """Golden: these bits are part of what a journal's seed means, so they never change."""
    flat = FlatParameters(attach_adapter(llama(), LORA, seed=2024))
    assert [value.hex() for value in flat.flat()[:4].tolist()] == [
        "-0x1.24e4600000000p-2",
        "-0x1.0baf440000000p-2",
        "0x1.2798140000000p-2",
        "-0x1.4378ae0000000p-3",
    ]


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_segments_are_the_sorted_saved_keys(method: str) -> None:
    model = attach_adapter(llama(), args_of(method), seed=1)
    flat = FlatParameters(model)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert [segment.name for segment in flat.segments] == sorted(state)
    theta = flat.flat()
    for segment in flat.segments:
        assert torch.equal(theta[segment.start : segment.stop].view(segment.shape), state[segment.name])


@pytest.mark.parametrize("method", METHODS)
def test_flat_round_trip(method: str) -> None:
    flat = FlatParameters(attach_adapter(llama(), args_of(method), seed=1))
    theta = torch.randn(flat.segments[-1].stop, generator=torch.Generator().manual_seed(1))
    flat.load(theta)
    assert torch.equal(flat.flat(), theta)
    assert torch.equal(torch.cat([p.detach().flatten() for p in flat.parameters]), theta)
    with torch.no_grad():
        flat.parameters[0].mul_(2)  # what an optimiser does
    first = flat.segments[0]
    assert torch.equal(flat.flat()[: first.stop], 2 * theta[: first.stop])


def test_saved_files(tmp_path: Path) -> None:
    model = attach_adapter(llama(), LORA, seed=1)
    flat = FlatParameters(model)
    for value in (1.0, 2.0):  # the second time over the first
        flat.load(torch.full_like(flat.flat(), value))
        write_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(tensors) == [segment.name for segment in flat.segments]
    assert all(t.dtype == torch.float32 and bool((t == 2).all()) for t in tensors.values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["inference_mode"] is True
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_transposed_layers_need_no_key() -> None:
    with torch.random.fork_rng(devices=[]):
        base = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    attach_adapter(base, {"adapter_method": "lora"}, seed=1)  # PEFT's warning would be an error here


def test_bias_of_a_half_precision_base_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        base: Any = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    model = attach_adapter(base.to(torch.bfloat16), {"adapter_method": "lora", "bias": "all"}, seed=1)
    with pytest.raises(ModelError, match=r"trainable in torch\.bfloat16.*set model\.dtype to float32"):
        FlatParameters(model)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"adapter_package": "adapterhub"}, "adapter_package is 'adapterhub'; only 'peft' is supported"),
        ({"r": 8}, "adapter_method is None; it must be one of lora, prefix, prompt, p-tuning, ia3"),
        ({"adapter_method": "lroa"}, "adapter_method is 'lroa'; it must be one of lora"),
        (LORA | {"rank": 8}, "'rank' is no key of adapter_method 'lora'; its keys are .*lora_alpha"),
        (LORA | {"inference_mode": True}, "'inference_mode' is no key of adapter_method 'lora'"),
        (LORA | {"r": "eight"}, "r is 'eight': input should be a valid integer"),
        (LORA | {"r": 0}, "PEFT refuses: .*r.* should be a positive integer"),
        (LORA | {"bias": "some"}, "bias is 'some': input should be 'none', 'all' or 'lora_only'"),
        (
            LORA | {"target_modules": ["q_proj", "query"]},
            "target_modules names 'query', which LlamaForCausalLM does not have; it has down_proj, gate_proj, .*v_proj",
        ),
        (LORA | {"modules_to_save": ["score"]}, "modules_to_save names 'score', which LlamaForCausalLM does not have"),
        (
            LORA | {"init_lora_weights": "pissa"},
            "init_lora_weights is 'pissa', which changes the base weights or needs data; it must be one of True,",
        ),
        (LORA | {"target_modules": ".*query"}, "PEFT refuses: .*[Tt]arget modules"),
        ({"adapter_method": "prefix"}, "adapter_method 'prefix' needs num_virtual_tokens, a whole number above 0"),
        ({"adapter_method": "prompt", "num_virtual_tokens": 0}, "num_virtual_tokens, .* above 0; it is 0"),
        ({"adapter_method": "p-tuning", "num_virtual_tokens": 2, "r": 8}, "'r' is no key of adapter_method 'p-tuning'"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attach_adapter(llama(), args, seed=1)
