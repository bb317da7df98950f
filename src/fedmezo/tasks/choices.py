"""Questions with candidate answers, judged by the one that the model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from fedmezo.models.generate import OnItems
from fedmezo.records import Example
from fedmezo.runs.choosing import make_candidates
from fedmezo.tasks.losses import item_losses
from fedmezo.tasks.outcome import Outcome, judged
from fedmezo.tasks.subject import Subject


def accuracy(subject: Subject, task: str, examples: Sequence[Example], on_items: OnItems) -> Outcome:
    """The share of those examples that have candidate answers whose likeliest one, per token, is right.

    Raises:
        DataError: no example has any.
    """
    candidates = make_candidates(examples, range(len(examples)), subject.prompts, subject.tokenizer)
    losses = item_losses(subject.losses, candidates.dataset, subject.device, on_items)
    items = []
    for number, start, choice in zip(
        candidates.examples.tolist(), candidates.starts.tolist(), candidates.chosen(losses).tolist(), strict=False
    ):
        example = examples[number]
        scores = losses[start : start + len(example.choices)].tolist()
        items.append(
            {
                "index": number,
                "instruction": example.instruction,
                "input": example.input,
                "expected": example.output,
                "answer": example.choices[choice],
                "losses": dict(zip(example.choices, scores, strict=True)),
                "correct": example.choices[choice] == example.output,
            }
        )
    return judged(task, "accuracy", items)
