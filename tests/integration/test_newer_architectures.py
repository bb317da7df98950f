"""Architectures that nobody prepared for: each starts without a list of layers, and PEFT loads what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from fedmezo.errors import ModelError
from fedmezo.models import lanes
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.label_loss import LabelOnlyPath, PlainPath, probe_of
from tests.tiny_models import TINY, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`",  # of PeftModel.from_pretrained
    "ignore:The following (rank|alpha)_pattern keys",
    "ignore:Model has `tie_word_embeddings=True`",  # what PEFT says where a tied head is adapted
)

LORA: dict[str, object] = {"adapter_method": "lora", "r": 4}
METHODS: dict[str, dict[str, object]] = {
    "lora": {"r": 4},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "ia3": {},
}
NAMED = ("qwen3", "falcon", "gemma3", "stablelm", "phi", "mixtral", "rwkv", "bloom", "mpt", "gptj", "gpt_neo",
         "gpt_bigcode", "codegen")  # fmt: skip
"""Those whose layers PEFT chooses."""


def moved(lm: CausalLM) -> Tensor:
    theta = lm.flat()
    return theta + 0.05 * torch.sin(torch.arange(len(theta), dtype=torch.float32))


def check(lm: CausalLM, name: str, directory: Path) -> None:
    """The run's loss, that of the check at a run's end, and that of README's lines are one."""
    theta, batch = moved(lm), probe_of(lm.base)
    lm.save(theta, directory)
    loss = float(lm.losses([theta], [batch]))
    assert loss == pytest.approx(lm.saved_loss(directory, batch), abs=1e-4)
    fresh = PeftModel.from_pretrained(tiny_model(name), str(directory)).eval()
    with torch.inference_mode():
        assert loss == pytest.approx(float(PlainPath(fresh)(batch).mean()), abs=1e-4)
    torch.testing.assert_close(lm.flat(), theta, rtol=0, atol=0)  # the check leaves the live adapter alone


@pytest.mark.parametrize("name", TINY)
def test_an_architecture_starts_without_a_list_of_layers(name: str, tmp_path: Path) -> None:
    lm = CausalLM(tiny_model(name), LORA, seed=3)
    chosen = [notice for notice in lm.notices if "all linear layers are adapted: " in notice]
    assert len(chosen) == (name not in NAMED)
    lm.use_lanes(4)
    theta, batch = moved(lm), probe_of(lm.base)
    together = lm.losses([theta, -theta, theta], [batch] * 3)
    alone = torch.cat([lm.losses([one], [batch]) for one in (theta, -theta, theta)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    check(lm, name, tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["qwen2_moe", "olmo2", "gemma3"])
def test_every_method_is_loaded_as_it_was_trained(name: str, method: str, tmp_path: Path) -> None:
    lm = CausalLM(tiny_model(name), {"adapter_method": method, **METHODS[method]}, seed=3)
    lm.use_lanes(4)
    check(lm, name, tmp_path)


HEADS: dict[str, dict[str, object]] = {
    "adapted": {"target_modules": ["q_proj", "lm_head"]},
    "trained": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])  # the second's head is tied to its embedding
def test_what_touches_the_vocabulary_is_loaded_too(name: str, head: str, tmp_path: Path) -> None:
    check(CausalLM(tiny_model(name), LORA | HEADS[head], seed=3), name, tmp_path)


class OddError(Exception):
    """Nothing that anybody would expect of a model."""


@pytest.mark.parametrize("error", [AttributeError, OddError, KeyError, AssertionError, StopIteration])
def test_a_laned_form_that_fails_in_any_way_is_done_without(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise error("weight")

    lm = CausalLM(tiny_model("phi3"), LORA, seed=3)
    monkeypatch.setattr(lanes.LaneLora, "forward", fail)
    (notice,) = lm.use_lanes(4)
    assert lm.lanes == 1
    assert notice.startswith("train.lanes: Phi3ForCausalLM with this adapter has no laned form")


def test_a_label_only_form_that_fails_in_any_way_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise OddError("no head")

    monkeypatch.setattr(LabelOnlyPath, "hidden_states", fail)
    lm = CausalLM(tiny_model("phi3"), LORA, seed=3)
    assert any("the logits of all positions are computed" in notice for notice in lm.notices)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a prefix where there are states": (
        "jamba",
        {"adapter_method": "prefix", "num_virtual_tokens": 3},
        "JambaForCausalLM cannot be computed with this adapter: ",
    ),
    "layers that PEFT does not adapt": (
        "mamba",
        LORA | {"target_modules": "all-linear"},
        "PEFT refuses: .*'out_proj' is incompatible with Mamba-based models",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_message(case: str) -> None:
    name, args, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        CausalLM(tiny_model(name), args, seed=3)
