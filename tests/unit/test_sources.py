"""Data sets by name, and the message for everything that can be wrong with their files."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmezo.data.sources import PINNED_FILES, data_set_name, load_examples, without_rare_categories
from fedmezo.errors import DataError
from fedmezo.records import Example

GOOD = '{"instruction": "Add.", "input": "1 2", "output": "3", "category": "sums"}'


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("data_type", "file_name", "content", "expected"),
    [
        (
            "alpaca@llm",
            "alpaca_data.json",
            '[{"instruction": "Name a fruit.", "input": "", "output": "Pear."},'
            ' {"instruction": "Say nothing.", "input": "", "output": ""}]',
            [Example("Name a fruit.", "", "Pear.", ""), Example("Say nothing.", "", "", "")],
        ),
        (
            "alpaca_cleaned@llm",
            "alpaca_data_cleaned.json",
            '[{"instruction": "Add.", "input": "1 2", "output": "3"}]',
            [Example("Add.", "1 2", "3", "")],
        ),
        (
            "dolly-15k@llm",
            "databricks-dolly-15k.jsonl",
            '{"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "closed_qa"}\n',
            [Example("Who?", "Ann came.", "Ann", "closed_qa")],
        ),
        (
            "GSM8K@llm",
            "gsm8k_train.jsonl",
            '{"question": "One and one?", "answer": "1+1=<<1+1=2>>2\\n#### 2"}\n',
            [Example("One and one?", "", "1+1=<<1+1=2>>2\nThe answer is 2", "")],
        ),
        (
            "rosetta_alpaca@llm",
            "rosetta_alpaca.json",
            '[{"instruction": "Print\u00a0it.", "input": "X86-64 Assembly", "output": "ret\u00a0"},'
            ' {"instruction": "Print it.", "input": "Go", "output": "x()"}]',
            [Example("Printit.", "X86-64 Assembly", "ret", "X86-64 Assembly"), Example("Print it.", "Go", "x()", "Go")],
        ),
        ("mine.jsonl@llm", "mine.jsonl", f"\ufeff{GOOD}\r\n\r\n{GOOD}", [Example("Add.", "1 2", "3", "sums")] * 2),
        (
            "sub/mine.json",
            "sub/mine.json",
            '[{"instruction": "Hi.", "input": null, "output": "Hi\u2028there"}]',
            [Example("Hi.", "", "Hi\u2028there", "")],
        ),
    ],
)
def test_fields(tmp_path: Path, data_type: str, file_name: str, content: str, expected: list[Example]) -> None:
    write(tmp_path / file_name, content)
    assert load_examples(data_type, tmp_path) == expected


def test_code_search_net_reads_every_unpacked_language(tmp_path: Path) -> None:
    for language, number in (("ruby", 0), ("go", 0), ("go", 1)):
        row = json.dumps({"docstring": "Adds.", "code": f"f{number}", "language": language, "url": "x"})
        write(
            tmp_path / language / "final/jsonl/train" / f"{language}_train_{number}.jsonl.gz",
            gzip.compress(row.encode()),
        )
    write(tmp_path / "go/final/jsonl/test/go_test_0.jsonl", "not read")
    assert load_examples("code_search_net@llm", tmp_path) == [
        Example("go Adds.", "go", "f0", "go"),
        Example("go Adds.", "go", "f1", "go"),
        Example("ruby Adds.", "ruby", "f0", "ruby"),
    ]


def test_bundled_set_has_categories(tmp_path: Path) -> None:
    examples = load_examples("bundled", tmp_path)
    assert len(examples) >= 1000
    assert len({example.category for example in examples}) >= 6
    assert load_examples("bundled@llm", tmp_path) == examples


def test_meta_leaves_out_the_rare_language(tmp_path: Path) -> None:
    examples = [Example("a", language, "b", language) for language in ("C", "X86-64 Assembly", "Go")]
    assert without_rare_categories("rosetta_alpaca@llm", examples) == [examples[0], examples[2]]
    assert without_rare_categories("mine.json@llm", examples) == examples


@pytest.mark.parametrize("name", PINNED_FILES)
def test_upstream_files_are_pinned_to_a_whole_commit(name: str) -> None:
    commit = PINNED_FILES[name].url.split("/")[5]
    assert len(bytes.fromhex(commit)) == 20


@pytest.mark.parametrize(
    ("data_type", "message"),
    [
        (
            "alpca@llm",
            "data.type 'alpca@llm': there is no data set 'alpca' (did you mean 'alpaca'?). Allowed: alpaca, "
            "alpaca_cleaned, dolly-15k, gsm8k, rosetta_alpaca, code_search_net, bundled, "
            "under data.root a file (.json, .jsonl, .jsonl.gz, .csv, .parquet) or a folder of datasets.save_to_disk, "
            "or OWNER/NAME on the Hugging Face hub",
        ),
        (
            "zzz",
            "data.type 'zzz': there is no data set 'zzz'. Allowed: alpaca, "
            "alpaca_cleaned, dolly-15k, gsm8k, rosetta_alpaca, code_search_net, bundled, "
            "under data.root a file (.json, .jsonl, .jsonl.gz, .csv, .parquet) or a folder of datasets.save_to_disk, "
            "or OWNER/NAME on the Hugging Face hub",
        ),
        ("cora@pyg", "data.type 'cora@pyg': 'pyg' is not supported after the @; write cora@llm"),
        *(
            (
                f"{path}@llm",
                f"data.type '{path}@llm': the file is named by its path below data.root, which this one leaves; set "
                "data.root to the file's folder and data.type to x.jsonl",
            )
            for path in ("/data/x.jsonl", "../x.jsonl", "sub/../../x.jsonl")
        ),
    ],
)
def test_unknown_data_set(data_type: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        data_set_name(data_type)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("d.jsonl", None, ": there is no such file; put it there, or change data.root"),
        ("d.jsonl", "", ": the file is empty"),
        ("d.json", " \n", ": the file is empty"),
        ("d.json", "[]", ": the file holds no example"),
        ("d.json", "{}", ": holds an object where a list of objects is expected"),
        (
            "d.json",
            f"[{GOOD},\n 3]",
            ", item 2: holds a number where an object with the field 'instruction' is expected",
        ),
        ("d.json", f"[{GOOD},\n {GOOD}\n {GOOD}]", ", line 3, column 2: not valid JSON (Expecting ',' delimiter)"),
        (
            "d.json",
            f"{GOOD}\n{GOOD}",
            ", line 2, column 1: not valid JSON (Extra data); if each line holds an object, call the file .jsonl",
        ),
        ("d.jsonl", f"{GOOD}\n\n{GOOD[:-1]}", ", line 3, column 74: not valid JSON (Expecting ',' delimiter)"),
        (
            "d.jsonl",
            f"[\n{GOOD}\n]",
            ", line 1, column 2: not valid JSON (Expecting value); if the file holds one list, call it .json",
        ),
        ("d.jsonl", f"{GOOD}\n[]", ", line 2: holds a list where an object with the field 'instruction' is expected"),
        (
            "d.jsonl",
            f'{GOOD}\n{{"question": "a", "answer": "b"}}',
            ", line 2: field 'instruction' is missing (there are: 'question', 'answer')",
        ),
        ("d.json", '[{"instruction": "a"}]', ", item 1: field 'output' is missing (there are: 'instruction')"),
        ("d.json", "[{}]", ", item 1: field 'instruction' is missing (there are: none)"),
        (
            "d.jsonl",
            '{"instruction": "a", "output": ["b"]}',
            ", line 1: field 'output' is a list where a text is expected",
        ),
        (
            "d.jsonl",
            '{"instruction": null, "output": "b"}',
            ", line 1: field 'instruction' is null where a text is expected",
        ),
        (
            "d.jsonl",
            '{"instruction": "a", "output": "b", "category": 7}',
            ", line 1: field 'category' is a number where a text is expected",
        ),
        (
            "d.jsonl",
            '{"instruction": "a", "output": ""}',
            ", line 1: field 'output' is empty; write the answer there or remove the example",
        ),
        (
            "d.jsonl",
            '{"instruction": "a", "output": "\\ud83d"}',
            ", line 1: field 'output' holds half of a surrogate pair (\\ud800 to \\udfff)",
        ),
        ("d.jsonl", GOOD.encode() + b"\n\xe9", ", line 2: not valid UTF-8 (byte 0xe9)"),
        (
            "d.jsonl",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            ": the file is a Git LFS pointer instead of the data (fetch it with `git lfs pull`)",
        ),
        (
            "d.json",
            "<!DOCTYPE html>\n<title>404</title>",
            ": the file is a web page instead of the data (take the address of the raw file)",
        ),
        ("d.jsonl.gz", GOOD, ": cannot be read (Not a gzipped file (b'{\"'))"),
        (
            "d.jsonl.gz",
            # Without a time inside, so that every pytest worker collects the same test.
            gzip.compress(GOOD.encode(), mtime=0)[:-9],
            ": cannot be read (Compressed file ended before the end-of-stream marker was reached)",
        ),
    ],
)
def test_damaged_file(tmp_path: Path, file_name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / file_name
    if content is not None:
        write(path, content)
    with pytest.raises(DataError) as caught:
        load_examples(f"{file_name}@llm", tmp_path)
    assert str(caught.value) == f"{path}{message}"


def test_upstream_file_with_other_fields(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k_train.jsonl", GOOD)
    with pytest.raises(DataError, match=r"gsm8k_train.jsonl, line 1: field 'question' is missing \(there are: 'instr"):
        load_examples("gsm8k@llm", tmp_path)


def test_code_search_net_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_examples("code_search_net@llm", tmp_path)
    assert str(caught.value) == (
        f"data.type 'code_search_net': no file matches {tmp_path}/*/final/jsonl/train/*.jsonl.gz. "
        "Fetch https://huggingface.co/datasets/code_search_net/resolve/main/data/LANGUAGE.zip "
        f"(python, javascript, java, ruby, php or go) and unpack it in {tmp_path}"
    )


def test_neither_torch_nor_transformers_is_imported() -> None:
    program = (
        "import sys, fedmezo.data.sources, fedmezo.data.partition\n"
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param("[" * 100_000, "lists or objects are nested too deeply", id="depth"),
        pytest.param("1" * 5_000, "a whole number has too many digits", id="digits"),
    ],
)
@pytest.mark.parametrize(("name", "place"), [("d.jsonl", ", line 2"), ("d.json", "")])
def test_what_python_refuses_to_parse_is_a_mistake_in_the_data(
    tmp_path: Path, name: str, place: str, value: str, problem: str
) -> None:
    path = tmp_path / name
    path.write_text(f"{GOOD}\n{value}" if name == "d.jsonl" else f"[{GOOD},\n{value}]")
    with pytest.raises(DataError) as caught:
        load_examples(name, tmp_path)
    assert str(caught.value) == f"{path}{place}: {problem}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("codealpaca", "rosetta_alpaca"), ("code_alpaca", "rosetta_alpaca"), ("Code-Alpaca-20k", "rosetta_alpaca"),
     ("dolly", "dolly-15k"), ("databricks-dolly-15k", "dolly-15k"), ("CSN", "code_search_net"),
     ("alpacca", "alpaca"), ("gsm8", "gsm8k")],
)  # fmt: skip
def test_a_name_from_elsewhere_leads_to_its_own_data_set(name: str, meant: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '{meant}'"):
        data_set_name(name)


def test_doubled_keys_and_blank_answers_are_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"instruction": "a", "output": "b"}'
    doubled = '{"instruction": "a", "output": "b", "output": "c"}'
    blank = '{"instruction": "a", "output": " \\t"}'
    (tmp_path / "mine.jsonl").write_text("\n".join([good, doubled, blank, doubled]))
    (tmp_path / "mine.json").write_text(f"[{good}, {doubled}]")
    examples = load_examples("mine.jsonl", tmp_path)
    assert [example.output for example in examples] == ["b", "c", " \t", "c"]
    load_examples("mine.json", tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of 4 examples give a key twice, of which the last counts; the first is {tmp_path}/mine.jsonl, line 2, key "
        "'output'",
        f"1 of 4 answers are white space alone, and are learned as such; the first is {tmp_path}/mine.jsonl, line 3",
        f"1 of 2 examples give a key twice, of which the last counts; the first is {tmp_path}/mine.json, item 2, key "
        "'output'",
    ]
