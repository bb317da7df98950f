"""From a row of a table, whatever file it came from, to an example: which fields hold what, and what they may hold.

A row is an instruction with its answer, or one of TRL's forms: a prompt with its completion (texts, or lists of
messages), a list of messages, a text. Which of them it is, its fields tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedmezo.errors import DataError
from fedmezo.records import Example, Turn

Row = tuple[str, object]
"""Where it stands, for messages, and what was read there."""

ASSISTANT = "assistant"


def _as_it_is(example: Example) -> Example:
    return example


@dataclass(frozen=True, slots=True)
class Layout:
    """The field names under which a table keeps an example.

    `input`, `category` and `choices` may be absent or null: then '' or none.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    category: str = "category"
    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"
    choices: str = "choices"
    required: frozenset[str] = frozenset()  # fields that no row may lack, although they are optional otherwise
    answers: tuple[str, ...] = ()  # what an answer can be, in the order of the numbers that may stand for it
    empty_output: bool = False  # accepted? Then the target is the end-of-sequence token alone
    finish: Callable[[Example], Example] = _as_it_is  # what remains to be done to the texts


def example_of(where: str, row: object, layout: Layout) -> Example:
    """The example in a row.

    Raises:
        DataError: naming the place and the field: it is missing, empty, or holds something else.
    """
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: holds {kind_of(row)} where an object with the field {layout.instruction!r} is expected"
        )
    for field in sorted(layout.required):
        _required(where, row, field)
    return layout.finish(_reader(row, layout)(where, row, layout))


def row_of(example: Example) -> dict[str, Any]:
    """The row that `example_of` reads as this example."""
    if example.form == "conversation":
        row: dict[str, Any] = {"messages": [asdict(turn) for turn in example.turns]}
    elif example.form == "completion":
        row = {"prompt": example.instruction, "completion": example.output}
    elif example.form == "text":
        row = {"text": example.output}
    else:
        row = {"instruction": example.instruction, "input": example.input, "output": example.output}
    row["category"] = example.category
    return row | ({"choices": list(example.choices)} if example.choices else {})


_Reader = Callable[[str, dict[str, object], Layout], Example]


def _reader(row: Mapping[str, object], layout: Layout) -> _Reader:
    """What reads a row of these fields: the form whose field was named, else the first whose field is there."""
    readers: tuple[tuple[str, _Reader], ...] = (
        (layout.instruction, _instruction),
        (layout.messages, _conversation),
        (layout.prompt, _completion),
        (layout.text, _text_alone),
    )
    found = (reader for fields in (layout.required, row) for field, reader in readers if field in fields)
    return next(found, _instruction)


def _instruction(where: str, row: dict[str, object], layout: Layout) -> Example:
    instruction = _text(where, row, layout.instruction)
    choices = _choices(where, row, layout)
    output = _output(where, row, layout.output, choices, layout)
    return Example(
        instruction=instruction,
        input=_optional_text(where, row, layout.input),
        output=output,
        category=_category(where, row, layout) or (output if choices else ""),
        choices=choices,
    )


def _conversation(where: str, row: dict[str, object], layout: Layout) -> Example:
    return _of_turns(where, row, layout, _turns(where, row, layout.messages), layout.messages)


def _completion(where: str, row: dict[str, object], layout: Layout) -> Example:
    prompt, completion = (_required(where, row, field) for field in (layout.prompt, layout.completion))
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = [*_turns(where, row, layout.prompt), *_turns(where, row, layout.completion)]
        return _of_turns(where, row, layout, turns, layout.completion)
    choices = _choices(where, row, layout)
    output = _output(where, row, layout.completion, choices, layout)
    category = _category(where, row, layout) or (output if choices else "")
    return Example(_text(where, row, layout.prompt), "", output, category, "completion", choices=choices)


def _text_alone(where: str, row: dict[str, object], layout: Layout) -> Example:
    return Example("", "", _output(where, row, layout.text, (), layout), _category(where, row, layout), "text")


def _of_turns(where: str, row: dict[str, object], layout: Layout, turns: Sequence[Turn], field: str) -> Example:
    """A conversation up to the assistant's last turn; nothing would count in what follows it."""
    answered = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not answered:
        raise DataError(f"{where}: field {field!r} has no turn of the {ASSISTANT}, so there is nothing to learn")
    for index in answered:
        if not turns[index].content.strip():
            raise DataError(f"{where}: field {field!r}, message {index + 1}: what the {ASSISTANT} says is empty")
    kept = tuple(turns[: answered[-1] + 1])
    asked = next((turn.content for turn in reversed(kept) if turn.role == "user"), "")
    return Example(asked, "", kept[-1].content, _category(where, row, layout), "conversation", kept)


def _turns(where: str, row: dict[str, object], field: str) -> list[Turn]:
    messages = row[field]
    if not isinstance(messages, list) or not messages:
        what = "an empty list" if messages == [] else kind_of(messages)
        raise DataError(f"{where}: field {field!r} is {what} where a list of messages is expected")
    turns = []
    for number, message in enumerate(messages, start=1):
        place = f"{where}: field {field!r}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{place}: {kind_of(message)} where an object with role and content is expected")
        if message.get("tool_calls"):
            raise DataError(f"{place}: calls a tool, which is not supported")
        turns.append(Turn(_text(place, message, "role"), _text(place, message, "content")))
    return turns


def _choices(where: str, row: dict[str, object], layout: Layout) -> tuple[str, ...]:
    """The answers to choose from: the row's own, else those of the data set, else none."""
    value = row.get(layout.choices)
    if value is None:
        return layout.answers
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"{where}: field {layout.choices!r} is {kind_of(value)} where two answers or more are expected")
    texts = tuple(_checked(f"{where}: field {layout.choices!r}", item) for item in value)
    if "" in texts or len(set(texts)) < len(texts):
        raise DataError(f"{where}: field {layout.choices!r} has an empty answer, or one answer twice")
    return texts


def _output(where: str, row: dict[str, object], field: str, choices: Sequence[str], layout: Layout) -> str:
    if not choices:
        text = _text(where, row, field)
        if not text and not layout.empty_output:
            raise DataError(f"{where}: field {field!r} is empty; write the answer there or remove the example")
        return text
    value = _required(where, row, field)
    if value in choices:
        return str(value)
    number = _number_in(value, len(choices))
    if number is not None and 0 <= number < len(choices):
        return choices[number]
    raise DataError(
        f"{where}: field {field!r} is {value!r}; needs one of {', '.join(map(repr, choices))}, or its number from 0"
    )


def _number_in(value: object, num_choices: int) -> int | None:
    """The number that a value stands for: itself, its text, or, of two choices, true and false."""
    if isinstance(value, bool):
        return int(value) if num_choices == 2 else None
    if isinstance(value, int):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in ("true", "false"):
        return int(text == "true") if num_choices == 2 else None
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _category(where: str, row: dict[str, object], layout: Layout) -> str:
    value = row.get(layout.category)
    is_named = layout.category in layout.required  # a column of labels may well hold numbers
    return str(value) if is_named and isinstance(value, int) else _optional_text(where, row, layout.category)


def _optional_text(where: str, row: dict[str, object], field: str) -> str:
    return "" if row.get(field) is None else _text(where, row, field)


def _text(where: str, row: dict[str, object], field: str) -> str:
    return _checked(f"{where}: field {field!r}", _required(where, row, field))


def _required(where: str, row: dict[str, object], field: str) -> object:
    if field not in row:
        raise DataError(f"{where}: field {field!r} is missing (there are: {', '.join(map(repr, row)) or 'none'})")
    return row[field]


def _checked(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} is {kind_of(value)} where a text is expected")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place} holds half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    numbers = {int: "a number", float: "a number"}
    return (names | numbers).get(type(value), f"of type {type(value).__name__}")
