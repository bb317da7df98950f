"""Tables of one's own: every kind of file and every form of row gives the same examples, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, config, load_dataset

from fedmezo.data.rows import Layout, example_of, row_of
from fedmezo.data.sources import AS_NAMED, Reading, load_examples
from fedmezo.errors import DataError
from fedmezo.records import Example, Turn

ROWS = [
    {"question": "Is it, so?", "passage": 'He said "no".\nTwice.', "label": 1},
    {"question": "Ist das grün?", "passage": "Es ist grün.", "label": 0},
]
READING = Reading({"instruction": "question", "input": "passage", "output": "label"}, answers=("No", "Yes"))
EXPECTED = [
    Example("Is it, so?", 'He said "no".\nTwice.', "Yes", "Yes", choices=("No", "Yes")),
    Example("Ist das grün?", "Es ist grün.", "No", "No", choices=("No", "Yes")),
]
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "So?"},
]
HUB_FOLDER = "owner___answers/default/0.0.0/0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, kind: str) -> str:
    """Write ROWS; returns the `data.type`."""
    dataset = Dataset.from_list(ROWS)
    if kind == "saved":
        dataset.save_to_disk(folder / "mine")
    elif kind == "splits":
        DatasetDict({"train": dataset, "dev": Dataset.from_list(ROWS[:1])}).save_to_disk(folder / "mine")
    elif kind == ".csv":
        (folder / "mine.csv").write_text(
            'question,passage,label\r\n"Is it, so?","He said ""no"".\nTwice.",1\r\nIst das grün?,Es ist grün.,false\r\n'
        )
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "mine.parquet", row_group_size=1)
    elif kind == ".json":
        (folder / "mine.json").write_text(json.dumps(ROWS))
    else:
        (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return "mine" if kind in ("saved", "splits") else f"mine{kind}"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    from datasets.utils import disable_progress_bars

    disable_progress_bars()


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".parquet", "saved", "splits"])
def test_every_kind_of_table_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    name = write(tmp_path, kind)
    assert load_examples(name, tmp_path, reading=READING) == EXPECTED
    assert load_examples(f"{name}@llm", tmp_path, reading=READING) == EXPECTED


def test_a_split_of_a_saved_folder(tmp_path: Path) -> None:
    name = write(tmp_path, "splits")
    dev = Reading(READING.columns, "dev", answers=READING.answers)
    assert load_examples(name, tmp_path, reading=dev) == EXPECTED[:1]
    with pytest.raises(DataError, match=r"no split 'test' \(data\.table\.split\); there are 'train', 'dev'"):
        load_examples(name, tmp_path, reading=Reading(READING.columns, "test", answers=READING.answers))
    (tmp_path / "mine" / "train" / "data-00000-of-00001.arrow").write_bytes(b"ARROW")
    with pytest.raises(DataError, match=r"cannot be read as a folder of datasets\.save_to_disk"):
        load_examples(name, tmp_path, reading=READING)


def test_a_hub_data_set_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is what `load_dataset` itself makes of a file; under the name that the hub's data set would have."""
    write(tmp_path, ".parquet")
    load_dataset("parquet", data_files=str(tmp_path / "mine.parquet"), cache_dir=str(tmp_path / "made"))
    made = next((tmp_path / "made").rglob("dataset_info.json")).parent
    cached = tmp_path / "cache" / HUB_FOLDER
    cached.parent.mkdir(parents=True)
    made.rename(cached)
    for file in cached.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet", "answers")))
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "answers"}))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_examples("owner/answers", tmp_path, reading=READING) == EXPECTED
    with pytest.raises(
        DataError, match=rf"there is no {tmp_path}/owner/other, and from the Hugging Face hub .*'train'"
    ):
        load_examples("owner/other", tmp_path, reading=READING)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Once", "completion": " upon"}, Example("Once", "", " upon", "", "completion")),
        ({"text": "All of it.", "category": "c"}, Example("", "", "All of it.", "c", "text")),
        (
            {"messages": TALK},
            Example("Hi", "", "Hello.", "", "conversation", (Turn("user", "Hi"), Turn("assistant", "Hello."))),
        ),
        (
            {"prompt": TALK[:1], "completion": TALK[1:2]},
            Example("Hi", "", "Hello.", "", "conversation", (Turn("user", "Hi"), Turn("assistant", "Hello."))),
        ),
        (
            {"instruction": "Pick.", "output": 2, "choices": ["a", "b", "c"]},
            Example("Pick.", "", "c", "c", choices=("a", "b", "c")),
        ),
        (
            {"instruction": "Pick.", "output": "b", "choices": ["a", "b"], "category": "z", "text": "aside"},
            Example("Pick.", "", "b", "z", choices=("a", "b")),
        ),
    ],
)
def test_forms_of_rows(row: dict[str, Any], expected: Example) -> None:
    assert example_of("here", row, Layout()) == expected
    assert example_of("here", row_of(expected), Layout()) == expected


def test_the_form_that_was_named_goes_first() -> None:
    reading = Reading({"text": "body"})
    row = {"instruction": "a", "output": "b", "body": "c"}
    assert example_of("here", row, reading.layout) == Example("", "", "c", "", "text")
    named = Reading({"category": "stars"}).layout
    assert example_of("here", {"instruction": "a", "output": "b", "stars": 3}, named).category == "3"


@pytest.mark.parametrize(
    ("row", "reading", "message"),
    [
        ({"a": 1}, AS_NAMED, "field 'instruction' is missing (there are: 'a')"),
        ({"instruction": "q", "output": "a"}, Reading({"input": "context"}), "field 'context' is missing"),
        ({"prompt": "q"}, AS_NAMED, "field 'completion' is missing"),
        ({"prompt": "q", "completion": ""}, AS_NAMED, "field 'completion' is empty"),
        ({"prompt": TALK, "completion": "a"}, AS_NAMED, "field 'prompt' is a list where a text is expected"),
        ({"text": ""}, AS_NAMED, "field 'text' is empty"),
        ({"messages": []}, AS_NAMED, "field 'messages' is an empty list where a list of messages is expected"),
        ({"messages": "Hi"}, AS_NAMED, "field 'messages' is a text where a list of messages is expected"),
        ({"messages": TALK[:1]}, AS_NAMED, "field 'messages' has no turn of the assistant"),
        ({"messages": ["Hi"]}, AS_NAMED, "message 1: a text where an object with role and content is expected"),
        ({"messages": [{"content": "Hi"}]}, AS_NAMED, "message 1: field 'role' is missing"),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": None}]},
            AS_NAMED,
            "message 2: field 'content' is null where a text is expected",
        ),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": " \n"}]},
            AS_NAMED,
            "message 2: what the assistant says is empty",
        ),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": "x", "tool_calls": [{"name": "f"}]}]},
            AS_NAMED,
            "message 2: calls a tool, which is not supported",
        ),
        (
            {"instruction": "q", "output": "Maybe"},
            Reading(answers=("No", "Yes")),
            "field 'output' is 'Maybe'; needs one of 'No', 'Yes', or its number from 0",
        ),
        ({"instruction": "q", "output": 2}, Reading(answers=("No", "Yes")), "field 'output' is 2; needs one of"),
        ({"instruction": "q", "output": -1}, Reading(answers=("No", "Yes")), "field 'output' is -1; needs one of"),
        (
            {"instruction": "q", "output": True},
            Reading(answers=("a", "b", "c")),
            "field 'output' is True; needs one of",
        ),
        (
            {"instruction": "q", "output": "a", "choices": ["a"]},
            AS_NAMED,
            "field 'choices' is a list where two answers or more are expected",
        ),
        (
            {"instruction": "q", "output": "a", "choices": ["a", "a"]},
            AS_NAMED,
            "field 'choices' has an empty answer, or one answer twice",
        ),
    ],
)
def test_rows_that_are_no_use(row: dict[str, Any], reading: Reading, message: str) -> None:
    with pytest.raises(DataError) as caught:
        example_of("here", row, reading.layout)
    assert message in str(caught.value)
    assert str(caught.value).startswith("here: field ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("instruction,output\nHi\n", "line 2: has not as many values as the heading, 2"),
        ("instruction,output\nHi,a,b\n", "line 2: has not as many values as the heading, 2"),
        ('instruction,output\nHi,"a\n', "not valid CSV"),
        ("instruction,instruction\nHi,a\n", "the heading has a column without a name, or one name twice"),
        ("instruction,output\n", "the file holds no example"),
        ("instruction,output\nHi,\n", "line 2: field 'output' is empty"),
    ],
)
def test_csv_that_is_no_table(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        load_examples("mine.csv", tmp_path)
    assert message in str(caught.value)


def test_a_long_value_of_a_csv_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(f"instruction,output\nHi,{'a' * 200_000}\n")
    assert len(load_examples("mine.csv", tmp_path)[0].output) == 200_000


def test_a_parquet_file_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path, ".parquet")
    content = (tmp_path / "mine.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet: cannot be read"):
        load_examples("cut.parquet", tmp_path)
    with pytest.raises(DataError, match=r"none\.parquet: there is no such file"):
        load_examples("none.parquet", tmp_path)


def test_tables_are_for_data_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.table and data\.answers are for data sets of one's own"):
        load_examples("gsm8k", tmp_path, reading=READING)
