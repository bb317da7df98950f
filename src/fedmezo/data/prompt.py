"""What a model reads of an example: the Alpaca template (Taori et al. 2023), a template of the user's, or a chat's.

| an example of          | `alpaca`            | `template`   | `chat`        |
|------------------------|---------------------|--------------|---------------|
| instruction and answer | the Alpaca template | the template | a user's turn |
| prompt and completion  | the prompt as it is | the template | a user's turn |

Turns go through the model's own chat template whatever `data.format` says; a text alone is taken as it is.

`original` is `alpaca`, except that an example without an input has `None` for it, as FederatedScope's GSM8K prompts do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedmezo.data.text import Text
from fedmezo.errors import ModelError
from fedmezo.records import Example, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fedmezo.data.chat import ChatTemplate

Format = Literal["alpaca", "template", "chat", "original"]

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


_ORIGINAL_WITHOUT_INPUT = "None"  # what Python makes of the input that GSM8K's rows have not


@dataclass(frozen=True, slots=True)
class Prompts:
    """How examples are put to a model.

    Args:
        format: of examples that are not turns already; see above.
        template: with `template`, the text before the answer, with places for {instruction} and {input}.
        chat: the model's own chat template; None where it has none.
    """

    format: Format = "alpaca"
    template: str = ""
    chat: ChatTemplate | None = None

    def whole(self, example: Example) -> Text:
        """An example as it is trained on.

        Raises:
            ModelError: it is a conversation, and the model has no chat template.
            DataError: the chat template refuses it.
        """
        if self._is_chat(example):
            return self._chat.whole(_turns(example))
        return _answered(self._opening(example), example.output, ended=True)

    def prompt(self, example: Example) -> Text:
        """An example up to its (last) answer, for a model to go on with; raises as `whole` does."""
        if self._is_chat(example):
            return Text(self._chat.prompt(_turns(example)[:-1]), opened=True, ended=False)
        return Text(self._opening(example), ended=False)

    def candidate(self, example: Example, answer: str) -> Text:
        """An example's prompt with an answer whose tokens alone count; raises as `whole` does."""
        if self._is_chat(example):
            return self._chat.candidate([*_turns(example)[:-1], Turn("assistant", answer)])
        return _answered(self._opening(example), answer, ended=False)

    @property
    def _chat(self) -> ChatTemplate:
        if self.chat is None:
            raise ModelError(
                "the model's tokenizer has no chat template, which conversations (and data.format: chat) need; choose "
                "an instruct model, or data.format: alpaca or template with examples that are no conversations"
            )
        return self.chat

    def _is_chat(self, example: Example) -> bool:
        return example.form == "conversation" or (self.format == "chat" and example.form != "text")

    def _opening(self, example: Example) -> str:
        if example.form == "text":
            return ""
        if self.format == "original" and example.form != "completion":
            return prompt_of(example if example.input else replace(example, input=_ORIGINAL_WITHOUT_INPUT))
        if self.format == "template":
            return self.template.format(instruction=example.instruction, input=example.input)
        return example.instruction if example.form == "completion" else prompt_of(example)


ALPACA = Prompts()


def prompts_for(name: Format, template: str, tokenizer: PreTrainedTokenizerFast) -> Prompts:
    """The prompts that `data.format` and `data.template` ask for, on a model's tokenizer.

    Raises:
        ModelError: the format is `chat`, and the tokenizer has no chat template.
    """
    from fedmezo.data.chat import ChatTemplate  # jinja2, which few need

    prompts = Prompts(name, template, ChatTemplate(tokenizer) if tokenizer.chat_template else None)
    if name == "chat":
        _ = prompts._chat  # there, or an error
    return prompts


def prompt_of(example: Example) -> str:
    """Return Alpaca's prompt; the answer follows its last character, the colon, with no space, as in the reference."""
    template = _WITH_INPUT if example.input else _WITHOUT_INPUT
    return template.format(instruction=example.instruction, input=example.input)


def _answered(prompt: str, answer: str, *, ended: bool, opened: bool = False) -> Text:
    return Text(prompt + answer, ((len(prompt), len(prompt) + len(answer)),), opened, ended)


def _turns(example: Example) -> tuple[Turn, ...]:
    if example.turns:
        return example.turns
    question = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
    return Turn("user", question), Turn("assistant", example.output)
