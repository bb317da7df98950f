"""The journal reads back equal, and damage of any kind is refused or leaves a prefix: never other rounds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fedmezo.errors import RunError
from fedmezo.records import Contribution, Refusal, RoundRecord, Segment
from fedmezo.runs.journal import Header, Journal, JournalWriter, read_journal
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
    path.write_bytes(header.replace(b'"format":1', b'"format":7') + b"\n" + rest)
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
