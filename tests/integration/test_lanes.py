"""Several thetas in one forward pass have the losses that they have one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedmezo.models import lanes
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.lanes import join
from fedmezo.models.loading import load_base
from fedmezo.records import IGNORE_LABEL
from tests.integration.test_architectures import (
    ARCHITECTURES,
    CPU,
    METHODS,
    batch_of,
    build,
    directories,
    moved,
)

__all__ = ["directories"]  # a fixture

BATCHES = [batch_of((5, 6), (3, 4)), batch_of((5, 6)), batch_of((2, 3), (3, 3)), batch_of((9, 2), (3, 3))]


def some_thetas(lm: CausalLM) -> torch.Tensor:
    theta = moved(lm)
    return torch.stack([theta, 0.5 * theta, theta + 0.1, theta])


def count_forwards(model: nn.Module) -> list[int]:
    """A list that gets the number of rows of each forward pass through the token embedding."""
    rows: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lanes_give_the_sequential_losses(directories: dict[str, Path], architecture: str, method: str) -> None:
    lm = build(directories[architecture], method)
    thetas = some_thetas(lm)
    given = thetas.clone()
    state = torch.get_rng_state()
    alone = lm.losses(list(thetas), BATCHES).tolist()
    assert lm.use_lanes(4) == []
    # float32 sums in another order, of losses near 5
    assert lm.losses(thetas, BATCHES).tolist() == pytest.approx(alone, abs=1e-5)
    assert lm.losses(list(thetas), BATCHES).tolist() == pytest.approx(alone, abs=1e-5)
    assert lm.losses(thetas[:1], BATCHES[:1]).tolist() == alone[:1]  # a single lane is the sequential form
    lm.use_lanes(3)
    assert lm.losses(thetas, BATCHES).tolist() == pytest.approx(alone, abs=1e-5)  # three lanes, then one
    lm.use_lanes(1)
    assert lm.losses(thetas, BATCHES).tolist() == alone
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(thetas, given)  # whose they are, not the model's to write to


@pytest.mark.parametrize(("method", "dtype"), [("lora", torch.float16), ("prefix", torch.bfloat16)])
def test_lanes_in_half_precision(directories: dict[str, Path], method: str, dtype: torch.dtype) -> None:
    lm = build(directories["llama"], method, dtype)
    thetas = some_thetas(lm)
    alone = lm.losses(list(thetas), BATCHES).tolist()
    assert lm.use_lanes(4) == []
    assert lm.losses(thetas, BATCHES).tolist() == pytest.approx(
        alone, rel=4 * torch.finfo(dtype).eps
    )  # as two forward passes


def test_lanes_of_as_many_rows_share_a_forward_and_the_base(directories: dict[str, Path]) -> None:
    lm = build(directories["llama"], "lora")
    thetas = some_thetas(lm)
    lm.use_lanes(4)
    assert lm._laned is not None
    copied = lm._laned.path.model  # type: ignore[attr-defined]  # what is inside is the point of the test
    rows = count_forwards(copied.get_input_embeddings())
    lm.losses(thetas, BATCHES).tolist()
    assert rows == [1, 6]
    own = {tensor.data_ptr() for tensor in lm.network.parameters()}
    assert all(tensor.data_ptr() in own for tensor in copied.parameters())


@pytest.mark.parametrize(
    "args",
    [{"use_dora": True}, {"target_modules": ["q_proj", "embed_tokens"]}],
    ids=["dora", "embedding"],
)
def test_adapters_without_a_laned_form_stay_sequential(directories: dict[str, Path], args: dict[str, object]) -> None:
    base, _ = load_base(str(directories["llama"]), None, torch.float32, CPU)
    lm = CausalLM(base, {"adapter_method": "lora", "r": 4, "target_modules": ["q_proj"], **args}, 3)
    thetas = some_thetas(lm)
    alone = lm.losses(thetas, BATCHES).tolist()
    [notice] = lm.use_lanes(4)
    assert "LlamaForCausalLM with this adapter has no laned form" in notice
    assert lm.losses(thetas, BATCHES).tolist() == alone


def test_an_adapted_head_is_laned_over_all_positions(directories: dict[str, Path]) -> None:
    base, _ = load_base(str(directories["llama"]), None, torch.float32, CPU)
    lm = CausalLM(base, {"adapter_method": "lora", "r": 4, "target_modules": ["q_proj", "lm_head"]}, 3)
    thetas = some_thetas(lm)
    alone = lm.losses(thetas, BATCHES).tolist()
    assert lm.use_lanes(4) == []
    assert lm.losses(thetas, BATCHES).tolist() == pytest.approx(alone, abs=1e-5)


def test_lanes_that_disagree_are_not_used(directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build(directories["llama"], "lora")
    monkeypatch.setattr(lanes.LaneLora, "forward", lambda self, x: self.base_layer(x))
    live = lm.flat()
    [notice] = lm.use_lanes(4)
    assert "no laned form" in notice
    assert torch.equal(lm.flat(), live)


def test_join_pads_on_the_right() -> None:
    joined = join([batch_of((1, 2)), batch_of((2, 3))])
    assert joined.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert joined.labels[0, 3:].tolist() == [IGNORE_LABEL] * 2
    assert joined.input_ids.shape == (2, 5)
