"""Conversations as the text that a model's own chat template makes of them, and where the assistant speaks in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from fedmezo.data.text import Text
from fedmezo.errors import DataError, ModelError
from fedmezo.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ASSISTANT = "assistant"

_FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Put before a template that asks for the day: a run goes on tomorrow with today's tokens. It is Llama 3's own day."""
_SOME_ANSWER = "(answer)"


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: one that has a chat template.

    Raises:
        ModelError: it has several, and none by default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(f"of the model's chat templates none is its default: {error}") from error
        self._tokenizer = tokenizer
        self._template = _FIXED_DAY + template if "strftime_now" in template else template

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text up to where the assistant is to speak, as it is in `whole`.

        Some templates open an answer in other words than they show one, such as with a thought to come; then it is
        what stands before an answer that counts.

        Raises:
            DataError: the template refuses such a conversation.
        """
        opened = self._render(turns, open_answer=True)
        shown = self._render([*turns, Turn(ASSISTANT, _SOME_ANSWER)], open_answer=False)
        return opened if shown.startswith(opened) else shown[: _find(shown, _SOME_ANSWER, shown.rfind(_SOME_ANSWER))]

    def candidate(self, turns: Sequence[Turn]) -> Text:
        """The text up to the end of the last answer, as in `whole`; of it that answer alone is counted.

        Raises:
            DataError: the template refuses the conversation, or does not show an answer as it is.
        """
        text = self._render(turns, open_answer=False)
        answer = turns[-1].content.strip()
        start = _find(text, answer, text.rfind(answer))
        before = text[:start].rstrip(" ")  # many tokenizers join a space to the word behind it
        return Text(text[: start + len(answer)], ((len(before), start + len(answer)),), opened=True, ended=False)

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
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=open_answer,
                    enable_thinking=False,  # Qwen3, SmolLM3, GLM: answers are tuned as the data have them
                    thinking=False,  # the same of Granite and DeepSeek
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from error


def _find(text: str, answer: str, start: int) -> int:
    """Where an answer stands in the text, at `start` or behind it."""
    at = text.find(answer, start) if start >= 0 else -1
    if at < 0:
        raise DataError(f"the model's chat template does not show an answer as it is: {answer[:80]!r}")
    return at
