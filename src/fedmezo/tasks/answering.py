"""Answers to instructions, judged by whether they are what was expected, word for word."""

from __future__ import annotations

from collections.abc import Sequence

from fedmezo.models.generate import Decoding, OnItems, complete
from fedmezo.records import Example
from fedmezo.tasks.outcome import Outcome, judged
from fedmezo.tasks.subject import Subject


def exact_match(
    subject: Subject, task: str, examples: Sequence[Example], decoding: Decoding, on_items: OnItems
) -> Outcome:
    """The share of greedy answers that equal the expected one, white space at the ends aside."""
    prompts = [subject.prompts.prompt(example) for example in examples]
    texts = complete(subject.model, subject.tokenizer, prompts, decoding, on_items)
    items = [
        {
            "index": index,
            "instruction": example.instruction,
            "input": example.input,
            "expected": example.output,
            "answer": text.strip(),
            "correct": text.strip() == example.output.strip(),
        }
        for index, (example, text) in enumerate(zip(examples, texts, strict=True))
    ]
    return judged(task, "exact match", items)
