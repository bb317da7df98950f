"""Evaluation is the example-weighted mean, whatever the batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmezo.records import Batch, Segment
from fedmezo.runs import evaluate as module
from fedmezo.runs.evaluate import evaluate
from tests.unit.test_shard import LENGTHS, dataset


@dataclass
class Counting:
    """The loss of example i at theta is theta times i; keeps the padded size of each batch."""

    sizes: list[int] = field(default_factory=list)
    segments: Sequence[Segment] = ()
    device = torch.device("cpu")

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        raise AssertionError("evaluation asks example by example")

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        self.sizes.append(batch.input_ids.numel())
        return [float(theta) * int(row[0]) for row in batch.input_ids]


SHARDS = [np.array([3, 1, 2]), np.array([], dtype=np.int64), np.arange(10, 40)]


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_losses_per_client_and_over_all(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", tokens)
    model = Counting()
    result = evaluate(model, torch.tensor(0.5), dataset(), SHARDS)
    assert result.client_values == {0: 1.0, 2: 0.5 * np.arange(10, 40).mean()}
    assert result.value == pytest.approx(0.5 * (6 + np.arange(10, 40).sum()) / 33)
    assert max(model.sizes) <= max(tokens, LENGTHS.max())
