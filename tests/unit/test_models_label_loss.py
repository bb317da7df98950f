"""The label-only loss: equal to the model's own path, in chunks, and the fall-back where a head is not understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedmezo.models import label_loss
from fedmezo.models.label_loss import LabelLosses, LabelOnlyPath, LabelPositions, PlainPath, choose_path
from fedmezo.records import IGNORE_LABEL, Batch

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
IDS = torch.tensor([[5, 9, 33, 4, 7, 8], [11, 3, 2, 41, 0, 0]])
MASK = (IDS != 0).long()
LABELS = torch.where(MASK == 1, IDS, IGNORE_LABEL)
LABELS[:, :2] = IGNORE_LABEL
BATCH = Batch(IDS, MASK, LABELS)


class OddHead(nn.Linear):
    """A head that also looks at which position it is."""

    def forward(self, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[-2], device=hidden.device).view(-1, 1)
        return super().forward(hidden) + positions.sin() * torch.arange(self.out_features)


def llama() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    return model.eval()


@pytest.mark.parametrize(
    "build",
    [
        lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    ],
    ids=["cohere", "granite"],
)
def test_heads_that_scale(build: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build().eval()
    path, notices = choose_path(model, model)
    assert isinstance(path, LabelOnlyPath)
    assert notices == []
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss
        torch.testing.assert_close(path(BATCH).mean(), expected, rtol=1e-5, atol=1e-5)


def test_unknown_head_falls_back_with_a_notice() -> None:
    model = llama()
    model.lm_head = OddHead(16, 50, bias=False)
    path, notices = choose_path(model, model)
    assert isinstance(path, PlainPath)
    assert len(notices) == 1
    assert "LlamaForCausalLM has other losses than" in notices[0]


@pytest.mark.parametrize("positions", [1, 2, 100])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    model = llama()
    whole = PlainPath(model)(BATCH).mean()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    monkeypatch.setattr(label_loss, "LOGIT_BYTES", positions * 4 * SIZES["vocab_size"])
    path, _ = choose_path(model, model)
    assert isinstance(path, LabelOnlyPath)
    loss = path(BATCH).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    # float32 sums of some hundred terms in another order
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_only_label_positions_reach_the_head() -> None:
    model = llama()
    path, _ = choose_path(model, model)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0][..., 0].numel()))
    path(BATCH)
    assert rows == [0, int((LABELS[:, 1:] != IGNORE_LABEL).sum())]


def test_label_positions() -> None:
    labels = torch.tensor([[-100, 7, -100, 8], [-100, -100, 9, -100]])
    positions = LabelPositions.of(labels, 4, CPU)
    assert positions.index.tolist() == [0, 2, 5]
    assert positions.targets.tolist() == [7, 8, 9]
    assert positions.counts.tolist() == [2, 1]
    virtual = LabelPositions.of(labels, 6, CPU)  # two virtual tokens in front
    assert virtual.index.tolist() == [2, 4, 9]
    first = LabelPositions.of(torch.tensor([[7, 8]]), 3, CPU)  # predicted by the virtual token
    assert first.index.tolist() == [0, 1]
    assert LabelPositions.of(torch.tensor([[7, 8]]), 2, CPU).targets.tolist() == [8]  # nothing stands before the first


def test_means() -> None:
    labels = torch.tensor([[-100, 4, -100, 5], [-100, -100, 6, -100], [-100, -100, -100, -100]])
    means = LabelLosses(torch.tensor([1.0, 3.0, 8.0]), LabelPositions.of(labels, 4, CPU))
    assert float(means.mean()) == 4.0
    rows = means.row_means().tolist()
    assert rows[:2] == [2.0, 8.0]
    assert rows[2] != rows[2]  # a row without a label has no mean
