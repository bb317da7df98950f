"""The journal reads back equal, and damage of any kind is refused or leaves a prefix: never other rounds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fedmezo.errors import RunError
from fedmezo.records import Contribution, Refusal, RoundRecord, Segment
from fedmezo.runs.format import Header, RoundLine
from fedmezo.runs.journal import Journal, JournalWriter, read_journal
from fedmezo.zo.arithmetic import round_coefficient, round_scalar

HEADER = Header(
    seed=2**64 - 1,
    rounds=12,
    protocol="scalars",
    noise="gaussian",
    eps=1e-3,
    queries=2,
    base="bundled",
    base_hash="ab" * 32,
    dtype="float32",
    adapter={"adapter_method": "lora", "r": 8, "target_modules": ["q", "v"]},
    theta_hash="cd" * 32,
    restored=False,
    data_hash="ef" * 32,
    partition_hash="01" * 32,
    segments=(Segment("a", (2, 3), 0), Segment("b", (4,), 6)),
)


def record(index: int, salt: int = 0) -> RoundRecord:
    rng = random.Random(100 * salt + index)
    parts = tuple(
        Contribution(
            client=client,
            rate=round_coefficient(rng.uniform(1e-6, 1e-4)),
            weight=round_coefficient(1 / 3),
            num_examples=rng.randrange(1, 50),
            train_loss=rng.uniform(0, 9),
            skipped_steps=client,
            scalars=tuple(round_scalar(rng.gauss(0, 3)) for _ in range(6)),
            drift=rng.random() if client else None,
        )
        for client in (0, 3, 2**32 - 1)
    )
    return RoundRecord(
        index, (0, 3, 7, 2**32 - 1), parts, (Refusal(7, 'scalar 0 is "nan"'),), f"{rng.getrandbits(256):064x}"
    )


def write(path: Path, rounds: int = 12, salt: int = 0) -> Path:
    writer = JournalWriter.create(path, HEADER)
    for index in range(rounds):
        writer.append(record(index, salt))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "journal.jsonl")


def test_reads_back_equal(path: Path) -> None:
    journal = read_journal(path)
    assert journal.header == HEADER
    assert journal.records == tuple(record(index) for index in range(12))
    assert (journal.next_round, journal.truncated, journal.ended) == (12, False, False)
    assert journal.hashes == ["cd" * 32, *(record(index).state_hash for index in range(12))]
    assert journal.size == path.stat().st_size
    assert journal.header.num_parameters == 10


def test_never_overwrites(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        JournalWriter.create(path, HEADER)
    assert path.read_bytes() == before


def test_going_on_gives_the_bytes_of_one_go(path: Path, tmp_path: Path) -> None:
    halves = write(tmp_path / "halves.jsonl", rounds=5)
    with halves.open("ab") as file:
        file.write(b'{"kind":"round","round":5,"coh')
    journal = read_journal(halves)
    assert (journal.next_round, journal.truncated) == (5, True)
    writer = JournalWriter.reopen(halves, journal)
    for index in range(5, 12):
        writer.append(record(index))
    assert halves.read_bytes() == path.read_bytes()


def test_an_end_and_remarks_are_read(path: Path) -> None:
    writer = JournalWriter.reopen(path, read_journal(path))
    writer.end(12)
    assert read_journal(path).ended
    writer.remark("resumed by force: threads: 2 then, 1 now")
    writer.append(record(12))
    journal = read_journal(path)
    assert journal.remarks == ("resumed by force: threads: 2 then, 1 now",)
    assert not journal.ended
    writer.end(7)
    with pytest.raises(RunError, match=r"line 17: .*end"):
        read_journal(path)


def test_a_line_that_is_not_our_json_is_never_written(path: Path) -> None:
    before = path.read_bytes()
    part = Contribution(0, 1.0, 1.0, 1, float("nan"), 0, (0.5,))
    with pytest.raises(ValueError, match="JSON"):
        JournalWriter.reopen(path, read_journal(path)).append(RoundRecord(12, (0,), (part,), (), "00" * 32))
    assert path.read_bytes() == before


def damage(lines: list[bytes], other: list[bytes], rng: random.Random) -> tuple[str, bytes]:
    """Break a journal in one of the ways that disks, editors and people break files."""
    kind = rng.choice(["flip", "byte", "cut", "double", "swap", "delete", "splice", "insert", "tail", "truncate line"])
    i, j = rng.sample(range(len(lines)), 2)
    text = b"".join(lines)
    if kind in ("flip", "byte"):
        at = rng.randrange(len(text))
        changed = text[at] ^ (1 << rng.randrange(8)) if kind == "flip" else rng.randrange(256)
        return kind, text[:at] + bytes([changed]) + text[at + 1 :]
    if kind == "cut":
        return kind, text[: rng.randrange(len(text))]
    if kind == "truncate line":
        return kind, b"".join([*lines[:i], lines[i][: rng.randrange(len(lines[i]))], *lines[i + 1 :]])
    changes = {
        "double": [*lines[: i + 1], *lines[i:]],
        "delete": [*lines[:i], *lines[i + 1 :]],
        "splice": [*lines[:i], *other[i:]],
        "insert": [*lines[:i], other[j], *lines[i:]],
        "tail": lines[:i],
    }
    if kind == "swap":
        swapped = list(lines)
        swapped[i], swapped[j] = lines[j], lines[i]
        return kind, b"".join(swapped)
    return kind, b"".join(changes[kind])


def test_a_thousand_damaged_journals(path: Path, tmp_path: Path) -> None:
    whole = read_journal(path)
    lines = path.read_bytes().splitlines(keepends=True)
    other = write(tmp_path / "other.jsonl", salt=1).read_bytes().splitlines(keepends=True)
    rng = random.Random(20)
    outcomes: dict[str, set[str]] = {}
    damaged = tmp_path / "damaged.jsonl"
    for _ in range(1000):
        kind, content = damage(lines, other, rng)
        damaged.write_bytes(content)
        outcomes.setdefault(kind, set()).add(outcome(damaged, whole))
        assert damaged.read_bytes() == content  # reading never repairs
    assert outcomes.pop("cut") == {"prefix", "no header"}
    assert outcomes.pop("tail") == {"prefix", "no header"}
    assert outcomes.pop("delete") == {"refused", "prefix"}  # a last line that is gone leaves no trace here
    assert outcomes.pop("truncate line") == {"refused", "prefix"}
    assert outcomes.pop("flip") <= {"refused", "prefix", "no header"}  # of a line's end
    assert outcomes.pop("byte") <= {"refused", "prefix", "no header", "whole"}  # a byte may stay as it is
    assert outcomes.pop("splice") <= {"refused", "foreign"}
    assert all(found == {"refused"} for found in outcomes.values()), outcomes


def outcome(damaged: Path, whole: Journal) -> str:
    """How a damaged journal is taken; any answer but these fails the test."""
    try:
        journal = read_journal(damaged)
    except RunError as error:
        message = str(error)
        assert message.startswith(str(damaged))
        if "no complete header" in message:
            return "no header"
        assert ", line " in message
        return "refused"
    if journal.records and journal.records[0] == record(0, salt=1):
        assert journal.records == tuple(record(index, salt=1) for index in range(12))
        return "foreign"  # all of it is the other run, whose header is the same in this test
    assert journal.header == whole.header
    assert journal.records == whole.records[: journal.next_round]
    return "whole" if journal.records == whole.records and not journal.truncated else "prefix"


def forged(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> Path:
    """A journal whose line `number` was changed by somebody who knows how to chain lines."""
    chain, lines = "0" * 32, []
    for index, line in enumerate(path.read_text().splitlines(), start=1):
        fields = json.loads(line)
        del fields["chain"]
        if index == number:
            change(fields)
        body = json.dumps(fields, separators=(",", ":"))
        chain = sha256((chain + body).encode()).hexdigest()[:32]
        lines.append(f'{body[:-1]},"chain":"{chain}"}}\n')
    path.write_text("".join(lines))
    return path


def test_chaining_as_a_forger_does_gives_a_journal_that_is_read(path: Path) -> None:
    whole = read_journal(path)
    assert read_journal(forged(path, 3, lambda fields: None)).records == whole.records


BAD_HEADERS: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 2**64, "0", 0.5, None, True),
    "rounds": (10**30, 0, []),
    "eps": (0, -1e-3, math.nan, math.inf, 10**400, "1e-3", 1e-300),
    "dtype": ("float64", 5, ["float32"]),
    "noise": ("cauchy", None),
    "protocol": ("secure", {}),
    "adapter": ([], {}, {"adapter_method": "none"}, {"adapter_method": ["lora"]}, 5),
    "theta_hash": (5, "ab", "AB" * 32, "ab" * 32 + "\n"),
    "segments": ([], 5, [["a"]], [["a", [-1]]], [["a", [2**62, 2**62]]], [[5, [1]]], {"a": 1}, [["a", [2**20] * 8]]),
    "restored": (0, "False"),
    "base": (5, "", "a\x1b[31m", "\ud800", "a" * 10_000),
    "queries": (256,),
    "rank": (2, 1024, "1"),
    "trainable": (["*"], [5], None),
    "format": ("1", 10**30),
    "kind": (["header"],),
    "further": (1,),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_HEADERS.items() for value in values])
def test_a_forged_header_is_refused_with_one_line_that_names_the_key(path: Path, key: str, value: Any) -> None:
    with pytest.raises(RunError) as caught:
        read_journal(forged(path, 1, lambda fields: fields.update({key: value})))
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert key in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("key", sorted(set(Header.model_fields) - {"server_optimizer", "privacy"}))  # None by default
def test_a_header_without_one_of_its_keys_is_refused(path: Path, key: str) -> None:
    with pytest.raises(RunError, match=f"line 1: {key}: missing; needs"):
        read_journal(forged(path, 1, lambda fields: fields.pop(key)))


BAD_ROUNDS: tuple[tuple[str, Any, str], ...] = (
    ("round", 10**30, "round"),
    ("round", True, "round"),
    ("round", 3, "round: got 3; needs 1"),
    ("cohort", [0, 0, 3, 7, 2**32 - 1], "cohort: names a client twice"),
    ("cohort", [0], "each must be one of the cohort"),
    ("cohort", [-1], "cohort.0"),
    ("state_hash", 5, "state_hash"),
    ("clients", None, "clients"),
    ("refused", [{"client": 1}], "refused.0.reason: missing"),
    ("rate", -1.0, "clients.0.rate"),
    ("rate", 0.1, "more than 16 significant bits"),
    ("rate", 1e300, "clients.0.rate"),
    ("rate", 2.0**127, "too large to move theta"),
    ("weight", 1.5, "clients.0.weight"),
    ("weight", math.nan, "clients.0.weight"),
    ("client", 2**32, "clients.0.client"),
    ("client", 3, "stand there once"),
    ("num_examples", 2**70, "clients.0.num_examples"),
    ("train_loss", math.inf, "clients.0.train_loss"),
    ("skipped_steps", -1, "clients.0.skipped_steps"),
    ("scalars", "AAA", "clients.0.scalars: is no base64"),
    ("scalars", "\u1234", "clients.0.scalars: is no base64"),
    ("scalars", "gH8=", "clients.0.scalars.0: got inf"),
    ("scalars", [1.0], "clients.0.scalars"),
    ("scalars", None, "scalars belong to a run of the scalars protocol"),
    ("drift", -1.0, "clients.0.drift"),
    ("more", 1, "unknown key"),
)


@pytest.mark.parametrize(("key", "value", "message"), BAD_ROUNDS)
def test_a_forged_round_is_refused_with_what_is_sound(path: Path, key: str, value: Any, message: str) -> None:
    def change(fields: dict[str, Any]) -> None:
        (fields if key in RoundLine.model_fields or key == "more" else fields["clients"][0])[key] = value

    with pytest.raises(RunError, match=r"line 3: .*; rounds 0 to 0 before it are sound") as caught:
        read_journal(forged(path, 3, change))
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_damaged_line_is_named_with_what_is_sound(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = lines[6].replace(b'"client":3', b'"client":4')
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=r"journal.jsonl, line 7: .*rounds 0 to 4 before it are sound .*--to-round 5"):
        read_journal(path)
    assert read_journal(path, to_round=5).records == tuple(record(index) for index in range(5))


def test_a_line_that_is_nested_too_deeply_is_damaged(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = b"[" * 100_000 + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=r"line 7: it is not valid JSON .*rounds 0 to 4 before it are sound"):
        read_journal(path)


def test_lines_of_the_same_length_from_another_run_are_seen(path: Path, tmp_path: Path) -> None:
    """Even a line that is whole in itself, of the right round, does not fit another run's chain."""
    other = write(tmp_path / "other.jsonl", salt=1).read_bytes().splitlines(keepends=True)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], other[4], *lines[5:]]))
    with pytest.raises(RunError, match="line 5: the line was changed"):
        read_journal(path)


def test_another_format_version_is_named(path: Path) -> None:
    header, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(header.replace(b'"format":3', b'"format":7') + b"\n" + rest)
    with pytest.raises(RunError, match="journal format 7 was written by another version of fedmezo; this one reads"):
        read_journal(path)


def test_no_journal_and_no_header(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be read: No such file"):
        read_journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").write_bytes(b'{"kind":"head')
    with pytest.raises(RunError, match=r"no complete header line"):
        read_journal(tmp_path / "journal.jsonl")


def test_scalars_take_two_bytes_as_base64(path: Path) -> None:
    line = json.loads(path.read_text().splitlines()[1])
    assert [len(client["scalars"]) for client in line["clients"]] == [16, 16, 16]  # 6 x 2 bytes, four characters per 3
