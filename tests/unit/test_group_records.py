"""Records of groups as files and messages have them: read back equal, and refused with what is wrong in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmezo.errors import RunError
from fedmezo.federation.messages import CatchUp, decode_task, encode_task, records_size, task_size
from fedmezo.records import ClientTask, GroupSum, Refusal, RoundRecord
from fedmezo.runs.journal import JournalWriter, read_journal
from fedmezo.runs.log_file import PublishedLog, decode_log, encode_log
from fedmezo.zo.arithmetic import round_coefficient
from tests.unit.test_journal import HEADER, forged

GROUPED = HEADER.model_copy(update={"direction_groups": 3})
HASH = "cd" * 32


def group(number: int, weight: int = 8) -> GroupSum:
    return GroupSum(number, 4, weight, 1.5, 1, tuple(round_coefficient(0.01 * (number + i) - 0.02) for i in range(4)))


def record(index: int, numbers: tuple[int, ...] = (0, 2)) -> RoundRecord:
    rate = round_coefficient(1e-3)
    return RoundRecord(index, (), (), (Refusal(1, "late"),), HASH, tuple(map(group, numbers)), rate)


def bare(one: RoundRecord) -> RoundRecord:
    """As messages and published logs have it."""
    groups = tuple(GroupSum(g.group, 0, 0, 0.0, 0, g.coefficients) for g in one.groups)
    return RoundRecord(one.round, (), (), (), "", groups)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = JournalWriter.create(tmp_path / "journal.jsonl", GROUPED)
    for index in range(3):
        writer.append(record(index))
    return tmp_path / "journal.jsonl"


def test_a_journal_reads_back_equal(path: Path) -> None:
    assert read_journal(path).records == tuple(map(record, range(3)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("groups", [], "groups: each must be one of 3"),
        ("groups", None, "belong to a run of direction groups, and this one has 3"),
        ("cohort", [1], "cohort, clients: must be empty where there are groups"),
        ("common_rate", -1.0, "common_rate: got -1.0"),
        ("group", 3, "groups: each must be one of 3"),
        ("group", 2, "and stand there once"),
        ("weight", -1, "weight: got -1"),
        ("clients", 0, "groups: each must have clients, and they a weight"),
        ("coefficients", "AAA", "is no base64 of coefficients"),
        ("coefficients", "AIB/", "a coefficient is inf"),
        ("coefficients", 5, "coefficients: got 5"),
    ],
)
def test_a_forged_group_is_refused(path: Path, key: str, value: Any, message: str) -> None:
    def change(fields: dict[str, Any]) -> None:
        (fields if key in ("groups", "cohort", "common_rate") else fields["groups"][0])[key] = value

    with pytest.raises(RunError) as caught:
        read_journal(forged(path, 3, change))
    assert message in str(caught.value)
    assert "line 3" in str(caught.value)


def test_groups_belong_to_a_run_of_groups(tmp_path: Path) -> None:
    writer = JournalWriter.create(tmp_path / "journal.jsonl", HEADER)
    writer.append(record(0))
    with pytest.raises(RunError, match="this one has 0"):
        read_journal(tmp_path / "journal.jsonl")


def test_a_published_log_reads_back_equal_and_holds_no_count() -> None:
    records = tuple(map(record, range(4)))
    read = decode_log(encode_log(PublishedLog(GROUPED, records, HASH)), "file")
    assert tuple(read.records) == tuple(map(bare, records))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: replace(one, groups=(group(7),)), "it holds a group 7; needs one of 3"),
        (lambda one: replace(one, groups=(group(1), group(1))), "two contributions of a group to one round"),
    ],
)
def test_a_published_log_that_cannot_be_is_refused(change: Callable[[RoundRecord], RoundRecord], message: str) -> None:
    with pytest.raises(RunError, match=message):
        decode_log(encode_log(PublishedLog(GROUPED, (change(record(0)),), HASH)), "file")


TASK = ClientTask(9, 4, round_coefficient(3e-5), group=2)


def test_a_task_brings_its_group_and_sums() -> None:
    records = tuple(map(record, range(5, 9)))
    way = CatchUp(records)
    data = encode_task(TASK, HASH, way)
    assert len(data) == task_size(TASK, way)
    task, digest, read = decode_task(data)
    assert (task.client, task.group, task.owner, digest) == (4, 2, 2, HASH)
    assert read.records == tuple(map(bare, records))
    assert records_size(records) == 4 * (6 + 2 * (8 + 4 * 3))


def test_cut_and_forged_sums_are_refused() -> None:
    data = encode_task(TASK, HASH, CatchUp((record(8),)))
    for cut in range(1, len(data) - 58):
        with pytest.raises(RunError):
            decode_task(data[:-cut])
    with pytest.raises(RunError, match="cut short before its group"):
        decode_task(data[:56])
    with pytest.raises(RunError, match="a group in round 8 twice"):
        decode_task(encode_task(TASK, HASH, CatchUp((record(8, (1, 1)),))))
    with pytest.raises(RunError, match="kind 32"):
        decode_task(data[:21] + b"\x20" + data[22:])
    with pytest.raises(RunError, match="a coefficient is"):
        decode_task(data[:-3] + b"\xff\xff\xff")
