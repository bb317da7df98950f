"""Conversations as the text that a model's own chat template makes of them, and where the assistant speaks in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from fedmezo.data.text import Text
from fedmezo.errors import DataError
from fedmezo.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ASSISTANT = "assistant"


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: one that has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text up to where the assistant is to speak.

        Raises:
            DataError: the template refuses such a conversation.
        """
        return self._render(turns, open_answer=True)

    def whole(self, turns: Sequence[Turn]) -> Text:
        """The text up to the end of the last turn, which is the assistant's; what the assistant says is counted.

        An answer begins where the prompt for it ends. It takes in what the template puts behind it to end the turn, so
        that a model learns to stop; with several answers, what stands behind the last one is looked for behind each.

        Raises:
            DataError: the template refuses the conversation, or does not show an answer as it is.
        """
        text = self._render(turns, open_answer=False)
        last = turns[-1].content.strip()
        closing = text[_find(text, last, text.rfind(last)) + len(last) :].rstrip()
        counted: list[tuple[int, int]] = []
        stop = 0
        for index, turn in enumerate(turns):
            if turn.role != ASSISTANT:
                continue
            answer = turn.content.strip()
            before = self._render(turns[:index], open_answer=True) if index else ""
            start = len(before) if before and text.startswith(before) else _find(text, answer, stop)
            stop = _find(text, answer, start) + len(answer)
            stop += len(closing) if text.startswith(closing, stop) else 0
            counted.append((start, stop))
        return Text(text[:stop], tuple(counted), opened=True)

    def _render(self, turns: Sequence[Turn], *, open_answer: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer))
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from error


def _find(text: str, answer: str, start: int) -> int:
    """Where an answer stands in the text, at `start` or behind it."""
    at = text.find(answer, start) if start >= 0 else -1
    if at < 0:
        raise DataError(f"the model's chat template does not show an answer as it is: {answer[:80]!r}")
    return at
