"""Configurations that are made to take long, to grow or to break the reader: each is read, or refused in few words.

The cost is counted, not timed: how many nodes and values are made before the answer is there.
"""

from __future__ import annotations

import codecs
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmezo.config import load_config, markup
from fedmezo.config.document import Document, parse
from fedmezo.config.load import MAX_SHOWN
from fedmezo.errors import ConfigError

SOUND = "federate: {client_num: 3}\ndata: {type: alpaca}\nmodel: {type: bundled}\nllm: {adapter: {use: True}}\n"
MANY = "more than 5,000 values, which no configuration needs; what aliases repeat counts each time"
DEEP = "lists or sections are nested more than 50 deep"
ESCAPE = "not valid YAML: an escape that is no character, or a version that is no number"


def message(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def chain(first: str, link: str, links: int) -> str:
    """Lines of which each names the one before: `{here}` and `{before}` in `link`."""
    later = (link.format(here=f"a{i}", before=f"a{i - 1}") for i in range(1, links))
    return "\n".join([f"a0: &a0 {first}", *later]) + "\n"


EXPLODING = {
    "aliases that multiply": chain("[x, x]", "{here}: &{here} [" + "*{before}, " * 10 + "]", 60),
    "sections that multiply": chain("{x: 1}", "{here}: &{here} {{x: *{before}, y: *{before}}}", 60),
    "merges that grow": chain("{x: 1}", "{here}: &{here} {{<<: *{before}, k{here}: 1}}", 1200),
    "merges that multiply": chain("{x: 1, y: 2}", "{here}: &{here} {{<<: [" + "*{before}, " * 50 + "]}}", 80),
    "keys": "".join(f"k{i}: {i}\n" for i in range(20_000)),
    "the same key": "k: 1\n" * 20_000,
    "a list": SOUND + "eval:\n  metrics:\n" + "  - 1\n" * 10_000,
    "a list in one line": SOUND + "eval: {metrics: [" + "1, " * 10_000 + "]}\n",
    "numbers in brackets": SOUND + "seed: (" + "1, " * 10_000 + "1)\n",
}


@pytest.mark.parametrize("text", EXPLODING.values(), ids=EXPLODING)
def test_a_file_that_stands_for_very_many_values_is_refused_before_they_are_made(tmp_path: Path, text: str) -> None:
    assert message(tmp_path, text).endswith(f": {MANY}")
    document = Document(Path("c.yaml"))
    parse(document, text)
    assert len(document.places) <= markup.MAX_VALUES


@pytest.mark.parametrize(
    "text", ["x: " + "[" * 100_000, "{a: " * 50_000, "- " * 50_000, "".join(" " * i + "a:\n" for i in range(600))]
)
def test_depth_is_limited_before_python_is_at_its_own_limit(tmp_path: Path, text: str) -> None:
    assert message(tmp_path, text).endswith(f": {DEEP}")
    assert message(tmp_path, chain("[1]", "{here}: &{here} [*{before}]", 70)).endswith((f": {DEEP}", f": {MANY}"))


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("9" * 5000, 5000),
        ("0x" + "f" * 60_000, 60_002),
        ("0b" + "1" * 60_000, 60_002),
        ("0" + "7" * 60_000, 60_001),
        ("1" + ":59" * 20_000, 60_001),
        ("1" + "_" * 60_000, 60_001),
        ("1." + "1" * 60_000, 60_002),
        ("1e" + "9" * 6000, 6002),
        ("!!float 1" + ":59" * 300, 901),
        ("(" + "9" * 6000 + ", 1)", 6000),
    ],
)
def test_a_number_of_very_many_digits_is_refused_by_its_length(tmp_path: Path, written: str, length: int) -> None:
    expected = f"a number of {length:,} characters; at most 100 are read"
    assert message(tmp_path, f"{SOUND}seed: {written}\n") == f"c.yaml:5: {expected}"
    assert message(tmp_path, SOUND, f"seed={written}").endswith(f": {expected}")


def test_numbers_that_people_write_keep_their_values() -> None:
    words = [
        "0x1F",
        "0b101",
        "017",
        "1:30",
        "1_000",
        "-3",
        "1e400",
        "1e-999999",
        ".inf",
        "(1, 2e-3)",
        "(08,)",
        "9" * 23,
    ]
    expected = [31, 5, 15, 90, 1000, -3, math.inf, 0.0, math.inf, [1, 2e-3], [8.0], 10**23 - 1]
    assert parse(Document(Path("c.yaml")), "".join(f"- {word}\n" for word in words)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('expname: "\\UFFFFFFFF"\n', f"c.yaml:1: {ESCAPE}"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1\n", f"c.yaml:1: {ESCAPE}"),
        ('expname: "a\\0b"\n', "c.yaml:1: not valid YAML: the character U+0000"),
        ('expname: "\\ud800"\n', "c.yaml:1: not valid YAML: the character U+D800"),
        ("seed: 1\n\0\n", "c.yaml:2: not valid YAML: the character U+0000"),
        ("a: &a {<<: *a}\n", "c.yaml:1: not valid YAML: an alias that contains itself"),
        ("a: &a {<<: [*a]}\n", "c.yaml:1: not valid YAML: an alias that contains itself"),
        ("a: &a [[*a]]\n", "c.yaml:1: not valid YAML: an alias that contains itself"),
        ("a: {<<: 3}\n", "c.yaml:1: not valid YAML: '<<' needs a section, or a list of sections"),
        ("a: {<<: [3]}\n", "c.yaml:1: not valid YAML: '<<' needs a section, or a list of sections"),
        ('"\\e[31m": 1\n', "c.yaml:1: not valid YAML: a key must be a plain word of at most 200 characters, not "
            "'\\x1b[31m'"),
        ("? " + "x" * 900 + "\n: 1\n", "c.yaml:1: not valid YAML: a key must be a plain word of at most 200 "
            "characters, not '" + "x" * 56 + "..."),
        ("a: !" + "x" * 60_000 + " 1\n", "c.yaml:1: not valid YAML: the tag !" + "x" * 391 + "..."),
        ("seed: !!map x\n", "c.yaml:1: not valid YAML: the tag !!map is not supported; leave it out and write a word, "
            "a number, a list or a section"),
        ("# x\n" * 70_000, "c.yaml: more than 256 KiB, which no configuration needs"),
        (codecs.BOM_UTF16_LE + "seed: 1\n".encode("utf-16-le"), "c.yaml: UTF-16 text; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "seed: 1\n".encode("utf-16-be"), "c.yaml: UTF-16 text; save it as UTF-8"),
        (b"seed: \xed\xa0\x80\n", "c.yaml: not UTF-8 text (byte 6)"),
    ],
)  # fmt: skip
def test_what_no_value_can_be_is_refused_in_few_words(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_a_file_without_end_is_refused_by_its_beginning() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: more than 256 KiB, which no configuration needs$"):
        load_config(Path("/dev/zero"))


def test_of_very_many_mistakes_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    found = message(tmp_path, SOUND + "".join(f"k{i}: {i}\n" for i in range(1500))).splitlines()
    assert found[0] == "1500 problems in the configuration"
    assert [line.split(": ")[:2] for line in found[1:-1]] == [[f"c.yaml:{5 + i}", f"k{i}"] for i in range(MAX_SHOWN)]
    assert found[-1] == "and 1400 more"
    same = message(tmp_path, SOUND + "k: 1\n" * 1500).splitlines()
    assert (len(same), same[-1]) == (MAX_SHOWN + 2, "and 1400 more")


def test_a_list_of_which_items_and_length_are_wrong_is_one_mistake(tmp_path: Path) -> None:
    text = SOUND.replace("type: alpaca", "type: alpaca, splitter_args: [{alpha: 1, b: 1}, {alpha: 2}]")
    assert message(tmp_path, text).splitlines()[1:] == [
        "c.yaml:2: data.splitter_args.0.b: unknown key; known are alpha",
        "c.yaml:2: data.splitter_args: got [{'alpha': 1, 'b': 1}, {'alpha': 2}]; needs a list of at most one mapping: "
        "[{alpha: 0.5}]",
    ]


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(codecs.BOM_UTF8 + SOUND.replace("\n", "\r\n").encode())
    assert load_config(path).config.federate.client_num == 3
    assert message(tmp_path, SOUND.replace("\n", "\r") + "k: 1\r").startswith("c.yaml:5: k: unknown key")


def test_merges_are_read_as_yaml_says() -> None:
    text = "{a: &a {x: 1, y: 1}, b: &b {y: 2, z: 2}, c: {z: 3, <<: [*a, *b]}, d: {<<: {<<: *b, y: 4}, w: 5}}"
    expected = {"c": {"x": 1, "y": 1, "z": 3}, "d": {"y": 4, "z": 2, "w": 5}}
    read = parse(Document(Path("c.yaml")), text)
    assert {name: read[name] for name in expected} == expected


PIECES = st.sampled_from(
    ["&a ", "*a", "<<: ", "[", "]", "{", "}", ", ", ": ", "a", "b: 1", "\n", "  ", "- ", "? ", "0x1f", "1:59", "(1, 2)",
     "1e5", "!!int ", "!!float ", "!numbers ", "'", '"', "\\0", "\\x", "|", ">", "%YAML ", "---", "\ufeff", "\x85", "#"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25).map("".join))
@settings(deadline=None, max_examples=200)
def test_pieces_of_yaml_in_any_order_are_read_or_refused(text: str) -> None:
    document = Document(Path("c.yaml"))
    parse(document, text)
    assert all(problem.text for problem in document.problems)
