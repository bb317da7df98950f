"""The loss on each example of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedmezo.data.encode import EncodedDataset, encode_examples
from fedmezo.models.fitness import require_fit, virtual_tokens
from fedmezo.models.generate import OnItems
from fedmezo.models.label_loss import LossPath
from fedmezo.models.lanes import base_of
from fedmezo.records import Example
from fedmezo.runs.evaluate import Indices, batches_by_length
from fedmezo.tasks.outcome import Outcome, averaged
from fedmezo.tasks.subject import Subject


def data_loss(subject: Subject, task: str, examples: Sequence[Example], on_items: OnItems) -> Outcome:
    """The mean over examples of each example's mean loss over its answer tokens, as a run evaluates it.

    Raises:
        DataError: no example has an answer within the subject's length limit, or the model has no room for one.
    """
    dataset = encode_examples(examples, subject.tokenizer, subject.tok_len, prompts=subject.prompts)
    require_fit(base_of(subject.model), virtual_tokens(subject.model), dataset, subject.tok_len)
    losses = item_losses(subject.losses, dataset, subject.device, on_items)
    items = [
        {"index": int(index), "tokens": int(length), "loss": loss}
        for index, length, loss in zip(dataset.kept, dataset.lengths, losses.tolist(), strict=True)
    ]
    return averaged(task, items)


def item_losses(path: LossPath, dataset: EncodedDataset, device: torch.device, on_items: OnItems) -> np.ndarray:
    """The loss of every example of a data set in nats per token, (m,) float64."""
    indices: Indices = np.arange(len(dataset))
    losses = np.empty(len(dataset))
    done = 0
    for some in batches_by_length(indices, dataset.lengths):
        with torch.inference_mode():
            losses[some] = path(dataset.batch(some, device)).row_means().tolist()
        done += len(some)
        on_items(done, len(dataset))
    return losses
