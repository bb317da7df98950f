"""The data sets that `data.type` can name, and where each of them comes from.

A file that already lies under `data.root` is used as it is; otherwise the pinned upstream version is fetched there.

| data.type         | file under data.root                                  | category       |
|-------------------|-------------------------------------------------------|----------------|
| alpaca            | alpaca_data.json                                      | none           |
| alpaca_cleaned    | alpaca_data_cleaned.json                              | none           |
| dolly-15k         | databricks-dolly-15k.jsonl                            | kind of task   |
| gsm8k             | gsm8k_train.jsonl                                     | none           |
| rosetta_alpaca    | rosetta_alpaca.json                                   | language       |
| code_search_net   | LANGUAGE/final/jsonl/train/*.jsonl or *.jsonl.gz      | language       |
| bundled           | none: part of this package                            | kind of task   |
| NAME.SUFFIX       | that file: .json, .jsonl, .jsonl.gz, .csv, .parquet   | its `category` |
| NAME              | that folder of `datasets.save_to_disk`                | its `category` |
| OWNER/NAME        | none: the Hugging Face hub, if there is no such folder | its `category` |

What a row of the last three may hold, `rows.py` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedmezo.data.download import OnProgress, download, ignore_progress
from fedmezo.data.parse import FILE_SUFFIXES, examples_of, read_examples
from fedmezo.data.rows import Layout
from fedmezo.data.tables import hub_rows, is_saved, saved_rows
from fedmezo.errors import DataError
from fedmezo.records import Example

BUNDLED_PATH = Path(__file__).parent.parent / "bundled" / "instructions.json"
CODE_SEARCH_NET_URL = "https://huggingface.co/datasets/code_search_net/resolve/main/data/{language}.zip"


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of one upstream commit, and the name it has under `data.root`."""

    name: str
    url: str
    layout: Layout
    rare_categories: frozenset[str] = frozenset()  # too small to be all that a client holds


def _with_spelled_out_answer(example: Example) -> Example:
    return replace(example, output=example.output.replace("####", "The answer is"))


def _without_hard_spaces(example: Example) -> Example:
    instruction, output = (text.replace("\u00a0", "") for text in (example.instruction, example.output))
    return replace(example, instruction=instruction, output=output)


def _with_language_first(example: Example) -> Example:
    return replace(example, instruction=f"{example.category} {example.instruction}")


_GITHUB = "https://raw.githubusercontent.com"

# Upstream files are taken as they are: some of their answers are empty, and the reference trains on those too.
PINNED_FILES = {
    "alpaca": PinnedFile(
        name="alpaca_data.json",
        url=f"{_GITHUB}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json",
        layout=Layout(empty_output=True),
    ),
    "alpaca_cleaned": PinnedFile(
        name="alpaca_data_cleaned.json",
        url=f"{_GITHUB}/gururise/AlpacaDataCleaned/a7d629079a95c2e4b7ec7dfe55087fbd18d9eba8/alpaca_data_cleaned.json",
        layout=Layout(empty_output=True),
    ),
    "dolly-15k": PinnedFile(
        name="databricks-dolly-15k.jsonl",
        url=f"{_GITHUB}/databrickslabs/dolly/d000e3030970379aabbf6d291f50ffdd3b715b64/data/databricks-dolly-15k.jsonl",
        layout=Layout(input="context", output="response", empty_output=True),
    ),
    "gsm8k": PinnedFile(
        name="gsm8k_train.jsonl",
        url=f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
        "/grade_school_math/data/train.jsonl",
        layout=Layout(instruction="question", output="answer", finish=_with_spelled_out_answer),
    ),
    "rosetta_alpaca": PinnedFile(
        name="rosetta_alpaca.json",
        url=f"{_GITHUB}/sahil280114/codealpaca/d269da106a579a623a654529b3cb91b5dfa9c72f/data/rosetta_alpaca.json",
        layout=Layout(category="input", empty_output=True, finish=_without_hard_spaces),
        rare_categories=frozenset({"X86-64 Assembly"}),
    ),
}

_CODE_SEARCH_NET_LAYOUT = Layout(
    instruction="docstring", input="language", output="code", category="language", finish=_with_language_first
)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """How tables of one's own are read.

    Args:
        columns: the names of fields where they are not `rows.Layout`'s own, by those.
        split: which part of a saved or hub data set.
        subset: which configuration of a hub data set; empty for the only one.
        answers: what an answer can be, where there are candidates.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    subset: str = ""
    answers: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """Where each field is; what was named must be there."""
        named: dict[str, Any] = dict(self.columns)
        return Layout(**named, required=frozenset(self.columns.values()), answers=self.answers)


AS_NAMED = Reading()


def load_examples(
    data_type: str, root: Path, on_progress: OnProgress = ignore_progress, reading: Reading = AS_NAMED
) -> list[Example]:
    """Read the data set that `data_type` names (with or without `@llm`), fetching it into `root` if need be.

    `on_progress` hears of the bytes fetched. Raises DataError: an unknown name, a file that cannot be fetched (the
    message names address and place), a file that is damaged (it names line and field).
    """
    plain = data_type.removesuffix("@llm")
    if is_saved(root / plain):
        return examples_of(f"{root / plain}: the folder", saved_rows(root / plain, reading.split), reading.layout)
    name = data_set_name(data_type)
    if name.endswith(FILE_SUFFIXES):
        return read_examples(root / name, reading.layout)
    if _HUB_NAME.fullmatch(name):
        rows = hub_rows(name, reading.subset, reading.split, root / name)
        return examples_of(f"{name}, {reading.split}: the data set", rows, reading.layout)
    if reading != AS_NAMED:
        raise DataError(f"data.type {name!r}: data.table and data.answers are for data sets of one's own")
    if name == "bundled":
        return read_examples(BUNDLED_PATH, Layout())
    if name == "code_search_net":
        return _load_code_search_net(root)
    return _load_pinned(PINNED_FILES[name], root, on_progress)


def data_set_name(data_type: str) -> str:
    """Return the part before `@llm`: a known name in lower case, a file name, or OWNER/NAME on the hub.

    Raises DataError for any other.
    """
    name, _, package = data_type.partition("@")
    if package not in ("", "llm"):
        raise DataError(f"data.type {data_type!r}: {package!r} is not supported after the @; write {name}@llm")
    if name.endswith(FILE_SUFFIXES):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(
                f"data.type {data_type!r}: the file is named by its path below data.root, which this one leaves; set "
                f"data.root to the file's folder and data.type to {Path(name).name}"
            )
        return name
    known = [*PINNED_FILES, "code_search_net", "bundled"]
    if name.lower() in known:
        return name.lower()
    if _HUB_NAME.fullmatch(name):
        return name
    close = f" (did you mean {meant!r}?)" if (meant := _meant(name, known)) else ""
    raise DataError(
        f"data.type {data_type!r}: there is no data set {name!r}{close}. Allowed: {', '.join(known)}, "
        f"under data.root a file ({', '.join(FILE_SUFFIXES)}) or a folder of datasets.save_to_disk, or OWNER/NAME on "
        "the Hugging Face hub"
    )


_OTHER_NAMES = {
    "codealpaca": "rosetta_alpaca",
    "rosetta": "rosetta_alpaca",
    "stanfordalpaca": "alpaca",
    "alpacadata": "alpaca",
    "cleanedalpaca": "alpaca_cleaned",
    "alpacadatacleaned": "alpaca_cleaned",
    "dolly": "dolly-15k",
    "databricksdolly15k": "dolly-15k",
    "gsm": "gsm8k",
    "gradeschoolmath": "gsm8k",
    "csn": "code_search_net",
    "codesearchnet": "code_search_net",
}
"""What data sets are called elsewhere, in letters and digits alone: a similar name is often another one's."""


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The known data set that a name was probably meant to be: by what it is called elsewhere, else by its letters."""
    letters = re.sub(r"[^a-z0-9]|(_?(20|1|2)k)$", "", name.lower())
    if letters in _OTHER_NAMES:
        return _OTHER_NAMES[letters]
    return next(iter(get_close_matches(name.lower(), known, n=1)), None)


def missing_data(data_type: str, root: Path) -> str | None:
    """What is not there of a data set that nobody could fetch; None where all is well or can be fetched.

    Raises:
        DataError: the name is none of a data set.
    """
    if is_saved(root / data_type.removesuffix("@llm")):
        return None
    name = data_set_name(data_type)
    if name.endswith(FILE_SUFFIXES) and not (root / name).is_file():
        return f"data.type is {name}, but there is no file {root / name}; put it there, or change data.root"
    return None


def without_rare_categories(data_type: str, examples: list[Example]) -> list[Example]:
    """Leave out what the meta splitter should not deal: categories with too few examples to be all of a client's."""
    pinned = PINNED_FILES.get(data_type.removesuffix("@llm").lower())
    rare = pinned.rare_categories if pinned else frozenset()
    return [example for example in examples if example.category not in rare]


def _load_pinned(pinned: PinnedFile, root: Path, on_progress: OnProgress) -> list[Example]:
    path = root / pinned.name
    if not path.exists():
        download(pinned.url, path, on_progress)
    return read_examples(path, pinned.layout)


def _load_code_search_net(root: Path) -> list[Example]:
    """Read every training file of the languages that were unpacked under `root`; they are gigabytes, so not fetched."""
    folder = "*/final/jsonl/train"
    paths = sorted([*root.glob(f"{folder}/*.jsonl"), *root.glob(f"{folder}/*.jsonl.gz")])
    if not paths:
        raise DataError(
            f"data.type 'code_search_net': no file matches {root}/{folder}/*.jsonl.gz. Fetch "
            f"{CODE_SEARCH_NET_URL.format(language='LANGUAGE')} (python, javascript, java, ruby, php or go) "
            f"and unpack it in {root}"
        )
    return [example for path in paths for example in read_examples(path, _CODE_SEARCH_NET_LAYOUT)]
