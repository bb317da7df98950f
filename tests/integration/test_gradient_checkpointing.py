"""Activations that are computed again give the gradient that kept ones give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmezo.models.causal_lm import CausalLM
from tests.integration.test_architectures import ARCHITECTURES, BATCH, build, directories, moved

__all__ = ["directories"]  # a fixture


def gradient(lm: CausalLM) -> Tensor:
    with torch.random.fork_rng(devices=[]):  # the same dropout each time
        torch.manual_seed(1)
        return torch.cat([part.flatten() for part in torch.autograd.grad(lm.training_loss(BATCH), lm.parameters())])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora(directories: dict[str, Path], architecture: str) -> None:
    compare(build(directories[architecture], "lora"))


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "ia3"])
def test_other_adapters(directories: dict[str, Path], method: str) -> None:
    compare(build(directories["llama"], method))


def compare(lm: CausalLM) -> None:
    lm.load(moved(lm))
    kept = gradient(lm)
    lm.checkpoint_gradients()
    calls: list[int] = []
    block = next(module for name, module in lm.network.named_modules() if name.endswith(".0"))
    inside = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
    inside.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(gradient(lm), kept, rtol=1e-5, atol=1e-7)  # the same operations, perhaps another order
    assert len(calls) == 2  # once each way
