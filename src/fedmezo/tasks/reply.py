"""The command `fedmezo generate`: the answer to one instruction before and after tuning."""

from __future__ import annotations

from rich.console import Console

from fedmezo.data.prompt import Format
from fedmezo.models.generate import Decoding, complete
from fedmezo.plain import plain
from fedmezo.records import Example
from fedmezo.tasks.subject import AS_THE_RUN, Hardware, Subject, load_subject


def reply(
    target: str,
    example: Example,
    console: Console,
    max_new_tokens: int,
    hardware: Hardware = AS_THE_RUN,
    round_index: int | None = None,
    prompt_format: Format | None = None,
) -> int:
    """Show the base model's answer to an instruction, and the tuned one's where there is an adapter.

    Raises:
        ModelError, RunError: see `load_subject`.
    """
    subject = load_subject(target, hardware, round_index, prompt_format)
    for notice in subject.notices:
        console.print(f"notice: {notice}", markup=False, highlight=False)
    with subject.untuned():
        before = _answer(subject, example, max_new_tokens)
    if not subject.is_tuned:
        console.print(before, markup=False, highlight=False)
        return 0
    after = _answer(subject, example, max_new_tokens)
    console.print(f"before: {before}", markup=False, highlight=False)
    console.print(f"after:  {after}", markup=False, highlight=False)
    return 0


def _answer(subject: Subject, example: Example, max_new_tokens: int) -> str:
    prompt = subject.prompts.prompt(example)
    return plain(complete(subject.model, subject.tokenizer, [prompt], Decoding(max_new_tokens))[0].strip())
