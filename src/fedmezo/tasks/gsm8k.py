"""GSM8K (Cobbe et al. 2021): grade-school word problems, judged by the number at the end.

Two ways to ask. `gsm8k`: eight worked examples (Wei et al. 2022, table 20 of the paper) before the question, as in
FedMeZO's code, but greedy and in the paper's order, where that code samples and shuffles. `gsm8k-zero-shot`: the
question alone, in the prompt that tuning used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from fedmezo.data.download import OnProgress, download
from fedmezo.data.parse import read_examples
from fedmezo.data.rows import Layout
from fedmezo.errors import DataError
from fedmezo.models.generate import Decoding, OnItems, complete
from fedmezo.records import Example
from fedmezo.tasks.outcome import Outcome, judged
from fedmezo.tasks.subject import Subject

TEST_FILE = "gsm8k_test.jsonl"
TEST_URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
    "/grade_school_math/data/test.jsonl"
)
SHOTS_FILE = Path(__file__).parent / "gsm8k_shots.jsonl"
MAX_NEW_TOKENS = 256  # as in FedMeZO's code

_LAYOUT = Layout(instruction="question", output="answer")
_GOLD = "####"
_TRIGGER = "the answer is"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-\u2212])?"  # a minus behind a digit, a word or a bracket takes away
    r"[$\u20ac\u00a3]?(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
)
_STOPS = ("\nQ:", "\n\n\n")


def load_questions(root: Path, on_progress: OnProgress) -> list[Example]:
    """The test questions from `root`, fetched there if need be; the output ends in `#### NUMBER`.

    Raises:
        DataError: the file cannot be had or is damaged.
    """
    path = root / TEST_FILE
    if not path.exists():
        download(TEST_URL, path, on_progress)
    return read_questions(path)


def read_questions(path: Path) -> list[Example]:
    """Questions with worked answers from a file in GSM8K's format.

    Raises:
        DataError: the file is damaged, or an answer does not end in `#### NUMBER`.
    """
    examples = read_examples(path, _LAYOUT)
    for number, example in enumerate(examples, start=1):
        if gold_number(example.output) is None:
            raise DataError(f"{path}, example {number}: the answer does not end in '{_GOLD} NUMBER'")
    return examples


def gold_number(answer: str) -> Fraction | None:
    """The number behind `####`; None where there is none."""
    _, marked, rest = answer.rpartition(_GOLD)
    numbers = _numbers(rest) if marked else []
    return numbers[0] if numbers else None


def final_number(text: str) -> Fraction | None:
    """The number that an answer amounts to: the first behind "the answer is", else the last; None where there is none.

    Thousands separators, currency signs, per cent signs and final full stops are not part of it, so that 18, $18.00
    and 18. are equal.
    """
    _, triggered, rest = text.lower().partition(_TRIGGER)
    numbers = _numbers(rest if triggered else text)
    if not numbers:
        return None
    return numbers[0] if triggered else numbers[-1]


def _numbers(text: str) -> list[Fraction]:
    return [
        Fraction(match["digits"].replace(",", "")) * (-1 if match["sign"] else 1) for match in _NUMBER.finditer(text)
    ]


def few_shot_prompt(question: str, shots: Sequence[Example]) -> str:
    """Worked examples, then the question, in the form of Wei et al. (2022)."""
    worked = "".join(f"Q: {shot.instruction}\nA: {_spoken(shot.output)}\n\n" for shot in shots)
    return f"{worked}Q: {question}\nA:"


def _spoken(answer: str) -> str:
    """A worked answer on one line, its last number in words' form: `... The answer is 6.`"""
    reasoning, _, number = answer.rpartition(_GOLD)
    steps = " ".join(re.sub(r"<<[^>]*>>", "", reasoning).split())
    return f"{steps} The answer is {number.strip()}."


def few_shot(
    subject: Subject, questions: Sequence[Example], shots: Sequence[Example], decoding: Decoding, on_items: OnItems
) -> Outcome:
    """Exact match with worked examples before each question."""
    prompts = [few_shot_prompt(example.instruction, shots) for example in questions]
    stopped = Decoding(decoding.max_new_tokens, _STOPS, decoding.tokens_per_batch)
    return _judge("gsm8k", questions, complete(subject.model, subject.tokenizer, prompts, stopped, on_items))


def zero_shot(subject: Subject, questions: Sequence[Example], decoding: Decoding, on_items: OnItems) -> Outcome:
    """Exact match in the prompt that tuning used."""
    prompts = [subject.prompts.prompt(example) for example in questions]
    return _judge("gsm8k-zero-shot", questions, complete(subject.model, subject.tokenizer, prompts, decoding, on_items))


def _judge(task: str, questions: Sequence[Example], texts: Sequence[str]) -> Outcome:
    items = []
    for index, (example, text) in enumerate(zip(questions, texts, strict=True)):
        gold, predicted = gold_number(example.output), final_number(text)
        items.append(
            {
                "index": index,
                "question": example.instruction,
                "gold": str(gold),
                "predicted": None if predicted is None else str(predicted),
                "correct": predicted is not None and predicted == gold,
                "answer": text,
            }
        )
    return judged(task, "exact match", items)
