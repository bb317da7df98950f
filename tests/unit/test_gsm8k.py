"""GSM8K's numbers and prompts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from fedmezo.errors import DataError
from fedmezo.records import Example
from fedmezo.tasks.gsm8k import SHOTS_FILE, few_shot_prompt, final_number, gold_number, read_questions

# The test questions are not part of this project: they are read where somebody has put them beside the checkout.
CANDIDATES = [Path(__file__).parents[3] / "shared" / "data", Path(__file__).parents[2] / "data"]
TEST_FILE = next((root / "gsm8k_test.jsonl" for root in CANDIDATES if (root / "gsm8k_test.jsonl").exists()), None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", 18),
        ("the answer is $1,234.50 in all", Fraction("1234.5")),
        ("THE ANSWER IS: **72**", 72),
        ("The answer is\n\n12", 12),
        ("The answer is -3.", -3),
        ("The answer is \u22123", -3),
        ("The answer is -$3", -3),
        ("The answer is 5 apples and 3 pears.", 5),
        ("She has 2 + 3 = 5. The answer is 5. The answer is 9.", 5),
        ("The answer is 10%.", 10),
        ("The answer is .5", Fraction(1, 2)),
        ("The answer is 18.00", 18),
        ("The answer is 12,345,678", 12345678),
        ("The answer is 007", 7),
        ("The answer is \u20ac1,000", 1000),
        ("So 3 + 4 = 7.", 7),
        ("5-3", 3),
        ("He pays 10 - 4 = 6 dollars, which is 6.", 6),
        ("1,2,3", 3),
        ("The answer is unknown.", None),
        ("It was 3. The answer is unknown.", None),
        ("The answer is", None),
        ("seven", None),
        ("", None),
        ("\u0663", 3),
    ],
)
def test_odd_outputs(text: str, number: int | Fraction | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("answer", "number"),
    [("so.\n#### 18", 18), ("#### 1,080", 1080), ("#### -4", -4), ("no mark 3", None), ("####", None)],
)
def test_gold(answer: str, number: int | None) -> None:
    assert gold_number(answer) == number


@pytest.mark.skipif(TEST_FILE is None, reason="gsm8k_test.jsonl is neither in data/ nor beside the checkout")
def test_every_gold_answer_is_found_in_each_form_that_a_model_may_give_it() -> None:
    assert TEST_FILE is not None
    questions = read_questions(TEST_FILE)
    assert len(questions) == 1319
    for question in questions:
        steps, _, written = question.output.rpartition("####")
        gold = gold_number(question.output)
        assert gold == Fraction(written.replace(",", "").strip())
        number = written.strip()
        spoken = question.output.replace("####", "The answer is")
        for text in (spoken, f"{steps} The answer is ${number}.\n\nQ: 17?", f"{steps}\n**{written.strip()}.00**"):
            assert final_number(text) == gold, text


def test_the_worked_examples_are_right_and_end_as_the_answers_that_are_read() -> None:
    shots = read_questions(SHOTS_FILE)
    assert len(shots) == 8
    prompt = few_shot_prompt("How many?", shots)
    assert prompt.endswith("\n\nQ: How many?\nA:")
    worked = prompt.split("\n\n")[:-1]
    for shot, text in zip(shots, worked, strict=True):
        assert text.startswith(f"Q: {shot.instruction}\nA: ")
        assert final_number(text) == gold_number(shot.output)
        reasoning = shot.output.partition("####")[0]
        assert final_number(reasoning) == gold_number(shot.output), "the last number of the reasoning is the answer"


def test_a_worked_answer_of_the_training_file_loses_its_calculator_marks() -> None:
    shot = Example("Q", "", "2+2 = <<2+2=4>>4 eggs\nthen 4*2 = <<4*2=8>>8.\n#### 8", "")
    assert few_shot_prompt("R", [shot]) == "Q: Q\nA: 2+2 = 4 eggs then 4*2 = 8. The answer is 8.\n\nQ: R\nA:"


def test_an_answer_without_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b", "answer": "none"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, example 2: the answer does not end in '#### NUMBER'"):
        read_questions(tmp_path / "x.jsonl")
