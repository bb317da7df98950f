"""The text that a model is asked to complete: the Alpaca template (Taori et al. 2023), with and without an input."""

from __future__ import annotations

from fedmezo.records import Example

_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Response:"
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n"
    "### Response:"
)


def prompt_of(example: Example) -> str:
    """Return the prompt; the answer follows its last character, the colon, without a space, as in the reference."""
    template = _WITH_INPUT if example.input else _WITHOUT_INPUT
    return template.format(instruction=example.instruction, input=example.input)
