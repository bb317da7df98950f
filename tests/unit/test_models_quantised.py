"""Quantised layers against integer arithmetic and the NF4 table, and models made of them against their plain form."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedmezo.errors import ModelError
from fedmezo.models import quantised
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.lanes import spread
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import (
    ALL,
    INT8,
    INT8_DYNAMIC,
    NF4,
    NONE,
    SCHEMES,
    Int8Linear,
    Nf4Linear,
    Rounding,
    quantise_,
    rounds_activations,
    scheme_of,
)
from fedmezo.records import Batch
from tests.runs import make_base
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
ADAPTERS: dict[str, dict[str, object]] = {
    "lora": {"adapter_method": "lora", "r": 2, "target_modules": ["q_proj", "down_proj"]},
    "ia3": {"adapter_method": "ia3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "prompt": {"adapter_method": "prompt", "num_virtual_tokens": 3},
}
# Of the normal distribution's quantiles, Dettmers et al. 2023, appendix E.
NF4_TABLE = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    model.requires_grad_(False).train(False)
    return model


def batch(length: int = 9, seed: int = 3) -> Batch:
    ids = torch.randint(3, 64, (1, length), generator=torch.Generator().manual_seed(seed))
    return Batch(ids, torch.ones_like(ids), ids.masked_fill(torch.arange(length) < 4, -100))


def test_int8_weights_are_the_nearest_whole_numbers() -> None:
    weight, bias, x = random(5, 12), random(5, seed=1), random(2, 3, 12, seed=2)
    layer = Int8Linear(weight, bias, None)
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.scales, weight.abs().amax(1) / 127)
    near = layer.weight * layer.scales[:, None]
    assert (near - weight).abs().max() <= 0.5001 * layer.scales.max()
    torch.testing.assert_close(layer(x), x @ near.T + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_are_those_of_whole_numbers(dtype: torch.dtype) -> None:
    weight, bias, x = random(7, 40), random(7, seed=1), random(2, 3, 40, seed=2).to(dtype)
    x[0, 0] = 0.0  # a row without a largest element
    layer = Int8Linear(weight, bias, Rounding())
    rows = x.flatten(0, 1).double()
    scales = rows.abs().amax(1, keepdim=True) / 127
    whole = torch.where(scales > 0, rows / scales, 0).round()
    expected = (whole @ layer.weight.double().T) * scales * layer.scales.double() + bias.double()
    found = layer(x)
    assert found.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps  # of the result and of the bias; sums of float32 in another order
    torch.testing.assert_close(found.flatten(0, 1).double(), expected, rtol=rounding, atol=8 * rounding)


def test_int8_sums_are_exact_at_their_largest() -> None:
    a = torch.full((3, 4096), 127, dtype=torch.int8)
    a[1] = -127
    assert torch.equal(quantised.int8_product(a, a[:2]), a.int() @ a[:2].int().T)


def test_layers_share_the_rounding_of_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = quantised.rounded

    def counted(rows: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(rows))
        return plain(rows)

    base = llama()
    quantise_(base, INT8_DYNAMIC)
    monkeypatch.setattr(quantised, "rounded", counted)
    with torch.inference_mode():
        base(input_ids=batch().input_ids)
    assert len(calls) == 2 * 4  # in each of two layers for q, k and v; for o; for gate and up; for down


def test_nf4_takes_the_nearest_of_its_sixteen_numbers() -> None:
    weight, bias, x = random(6, 20), random(6, seed=1), random(4, 20, seed=2)  # no multiple of a block
    quantise_(llama(), NF4)  # which makes bitsandbytes' operations known
    layer = Nf4Linear(weight, bias)
    assert layer.weight.numel() == weight.numel() / 2
    blocks = torch.split(weight.flatten(), 64)
    near = [NF4_TABLE[(b[:, None] / b.abs().max() - NF4_TABLE).abs().argmin(1)] * b.abs().max() for b in blocks]
    torch.testing.assert_close(layer(x), x @ torch.cat(near).view(6, 20).T + bias)


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_lanes_over_a_quantised_base(scheme: str, method: str) -> None:
    base = llama()
    plain = copy.deepcopy(base)
    quantise_(base, scheme)
    model = CausalLM(base, ADAPTERS[method], 1)
    assert model.notices == ()
    batches = [batch(9), batch(7, 4), batch(9, 5)]
    thetas = spread(model.flat(), 3)
    alone = model.losses(list(thetas), batches)
    assert model.use_lanes(3) == []
    # rounded activations fall to the other side where sums differ in their last bits
    tolerance = 2e-2 if rounds_activations(scheme) else 1e-5
    torch.testing.assert_close(model.losses(thetas, batches), alone, rtol=0, atol=tolerance)
    exact = CausalLM(plain, ADAPTERS[method], 1).losses(list(thetas), batches)
    torch.testing.assert_close(alone, exact, rtol=0.2 if NF4 in scheme else 0.02, atol=0)  # 4 bits are few
    assert not torch.equal(alone, exact)


def test_layers_that_store_their_weight_transposed() -> None:
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0, bos_token_id=1)
    base = GPT2LMHeadModel(config).requires_grad_(False)
    base.train(False)
    ids = batch().input_ids
    with torch.inference_mode():
        expected = base(input_ids=ids).logits
        quantise_(base, INT8)
        torch.testing.assert_close(base(input_ids=ids).logits, expected, rtol=0, atol=0.02)
    assert isinstance(base.get_submodule("transformer.h.0.attn.c_attn"), Int8Linear)


def test_embedding_and_head_stay_and_the_rest_is_small() -> None:
    for scheme, share in ((INT8, 0.30), (NF4, 0.20)):
        base = llama()
        head, table = base.lm_head.weight, base.model.embed_tokens.weight
        before = sum(tensor.nbytes for tensor in base.model.layers.state_dict().values())
        quantise_(base, scheme)
        assert base.lm_head.weight is head
        assert base.model.embed_tokens.weight is table
        # at this size a scale for each output of 32 inputs weighs more than anywhere else
        assert sum(tensor.nbytes for tensor in base.model.layers.state_dict().values()) < (share + 0.06) * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_in_eight_bits_where_that_is_asked(dtype: torch.dtype, tied: bool) -> None:
    base: Any = llama()
    if tied:
        base.lm_head.weight = base.model.embed_tokens.weight
    base.to(dtype=dtype)
    ids, x = batch().input_ids, random(3, 32).to(dtype)
    vectors, logits = base.model.embed_tokens(ids), base.lm_head(x).float()
    quantise_(base, INT8 + ALL)
    table, head = base.get_input_embeddings(), base.get_output_embeddings()
    assert (table.weight.dtype, head.weight.dtype, head.weight is table.weight) == (torch.int8, torch.int8, tied)
    assert table(ids).dtype == dtype
    step = table.scales[ids][..., None] * (0.5 + 300 * torch.finfo(dtype).eps)  # half a unit, and dtype's own rounding
    assert ((table(ids) - vectors).abs() <= step).all()
    near = (head.weight.double() * head.scales.double()[:, None]) @ x.double().T
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(head(x).double(), near.T, rtol=rounding, atol=8 * rounding)
    torch.testing.assert_close(head(x), logits, rtol=0, atol=0.05)


def test_the_fingerprint_names_weights_and_scheme() -> None:
    hashes = set()
    for scheme in SCHEMES:
        base = llama()
        quantise_(base, scheme)
        hashes.add(base_hash(base))
        base.model.layers[1].mlp.up_proj.bias = None
        assert base_hash(base) in hashes
        if scheme != NONE:
            base.model.layers[1].mlp.up_proj.scales[0] *= 2
            assert base_hash(base) not in hashes
    assert len(hashes) == len(SCHEMES) == 7


def saved(folder: Path, **settings: Any) -> Path:
    """A checkpoint whose config has these, with a tokenizer; of a size that bitsandbytes' own layers can do."""
    make_base(folder)
    config = LlamaConfig(vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                         num_attention_heads=4)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def test_a_checkpoint_that_is_quantised_already(tmp_path: Path) -> None:
    settings: Any = BitsAndBytesConfig  # these two have no annotations
    untyped: Any = LlamaForCausalLM
    small = settings(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = saved(tmp_path / "plain")
    quantised_one = untyped.from_pretrained(plain, quantization_config=small, device_map="cpu")
    quantised_one.save_pretrained(tmp_path / "small")
    for path in plain.glob("token*"):
        path.rename(tmp_path / "small" / path.name)
    base, again = (load_base(str(tmp_path / "small"), None, torch.float32, CPU)[0] for _ in range(2))
    assert (scheme_of(base), base_hash(base)) == ("bitsandbytes", base_hash(again))
    model = CausalLM(base, {"adapter_method": "lora", "r": 2}, 1)
    assert model.use_lanes(2) == []
    assert torch.isfinite(model.losses(model.flat().expand(2, -1), [batch(), batch()])).all()
    with pytest.raises(ModelError, match="quantised already"):
        quantise_(again, INT8)


@pytest.mark.parametrize(("method", "library"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_a_checkpoint_whose_library_is_missing(tmp_path: Path, method: str, library: str) -> None:
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    settings = {"quant_method": method, "bits": 4, "group_size": 16}
    with pytest.raises(ModelError, match=f"pip install {library}"):
        load_base(str(saved(tmp_path, quantization_config=settings)), None, torch.float32, CPU)


def test_bitsandbytes_is_not_imported_before_it_is_needed() -> None:
    code = "import fedmezo.models.adapters, sys; sys.exit('bitsandbytes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = llama()
    quantise_(base, INT8)
    with pytest.raises(ModelError, match=r"is quantised already \(int8\)"):
        quantise_(base, NF4)
    experts = llama()
    experts.model.register_parameter("experts", nn.Parameter(torch.zeros(100_000), requires_grad=False))
    with pytest.raises(ModelError, match="only 15,360 are in linear layers"):
        quantise_(experts, INT8)
    scaled = tiny_model("gemma3")  # multiplies what it looks up
    with pytest.raises(ModelError, match=r"more than look up and multiply .*: set it to nf4"):
        quantise_(scaled, NF4 + ALL)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="needs bitsandbytes"):
        quantise_(llama(), NF4)
