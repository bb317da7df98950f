"""The model as a function of theta: lanes, dropout, what stays where it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fedmezo.errors import ModelError
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import IGNORE_LABEL, Batch, Differentiable

ADAPTER: dict[str, object] = {"adapter_method": "lora", "r": 2, "lora_dropout": 0.5}


def build(adapter: dict[str, object] = ADAPTER) -> CausalLM:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base: Any = LlamaForCausalLM(config)
    return CausalLM(base.requires_grad_(False).eval(), adapter, seed=1)


def batch_of(length: int) -> Batch:
    ids = (torch.arange(length) * 7 % 19 + 1).view(1, -1)
    labels = ids.clone()
    labels[:, : length // 2] = IGNORE_LABEL
    return Batch(ids, torch.ones_like(ids), labels)


def test_each_lane_is_its_own() -> None:
    lm: Differentiable = build()
    theta = lm.flat()
    thetas = [theta, theta + 0.5, theta - 0.5]
    batches = [batch_of(6), batch_of(9), batch_of(6)]
    together = lm.losses(thetas, batches).tolist()
    assert together == [lm.losses([t], [b]).tolist()[0] for t, b in zip(thetas, batches, strict=True)]
    assert len(set(together)) == 3
    assert lm.losses([], []).tolist() == []


def test_dropout_is_on_in_training_alone() -> None:
    lm = build()
    theta = lm.flat() + 0.5
    lm.load(theta)
    [before] = lm.losses([theta], [batch_of(8)]).tolist()

    def training_loss(seed: int) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return float(lm.training_loss(batch_of(8)).detach())

    assert training_loss(1) == training_loss(1)
    assert training_loss(1) != training_loss(2)
    assert lm.losses([theta], [batch_of(8)]).tolist() == [before]


def test_training_loss_reaches_every_parameter_and_leaves_the_base() -> None:
    lm = build()
    lm.load(lm.flat() + 0.5)
    lm.training_loss(batch_of(8)).backward()  # type: ignore[no-untyped-call]  # PyTorch has no annotation here
    assert all(p.grad is not None and bool(p.grad.any()) for p in lm.parameters())
    assert all(p.grad is None for p in lm.network.parameters() if not p.requires_grad)


def test_an_optimiser_moves_theta() -> None:
    lm = build()
    optimiser = torch.optim.SGD(lm.parameters(), lr=1.0)
    theta = lm.flat()
    lm.training_loss(batch_of(8)).backward()  # type: ignore[no-untyped-call]  # PyTorch has no annotation here
    gradient = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
    optimiser.step()
    assert torch.equal(lm.flat(), theta - gradient)


def test_saving_leaves_the_live_tensors(tmp_path: Path) -> None:
    lm = build()
    live = lm.flat()
    lm.save(live + 1, tmp_path)
    assert torch.equal(lm.flat(), live)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    first = lm.segments[0]
    assert torch.equal(saved[first.name].flatten(), (live + 1)[: first.stop])


def test_no_label_has_no_loss() -> None:
    lm = build()
    batch = batch_of(6)
    [loss] = lm.losses(
        [lm.flat()], [Batch(batch.input_ids, batch.attention_mask, torch.full((1, 6), IGNORE_LABEL))]
    ).tolist()
    assert math.isnan(loss)


def test_lanes_and_batches_must_pair() -> None:
    lm = build()
    with pytest.raises(ValueError, match="do not pair"):
        lm.losses([lm.flat()], [batch_of(6), batch_of(6)]).tolist()


@pytest.mark.parametrize(
    "adapter",
    [ADAPTER, {"adapter_method": "prefix", "num_virtual_tokens": 2}, {"adapter_method": "ia3"}],
    ids=["lora", "prefix", "ia3"],
)
def test_reading_what_was_saved(tmp_path: Path, adapter: dict[str, object]) -> None:
    lm = build(adapter)
    theta = lm.flat() + 0.5
    lm.save(theta, tmp_path)
    assert torch.equal(lm.read(tmp_path), theta)
    assert torch.equal(lm.flat(), theta)


@pytest.mark.parametrize(
    "adapter",
    [
        {"adapter_method": "prefix", "num_virtual_tokens": 2, "prefix_projection": True},
        {"adapter_method": "p-tuning", "num_virtual_tokens": 2, "encoder_hidden_size": 4},
    ],
    ids=["prefix", "p-tuning"],
)
def test_an_encoder_cannot_be_read_back(tmp_path: Path, adapter: dict[str, object]) -> None:
    lm = build(adapter)
    lm.save(lm.flat(), tmp_path)
    with pytest.raises(ModelError, match="holds its encoder's output"):
        lm.read(tmp_path)
