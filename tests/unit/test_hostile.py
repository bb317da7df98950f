"""A light share of what tests/fuzz_by_hand.py does: hostile files and messages are taken or refused, nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fedmezo.errors import FedMeZOError
from tests.hostile import Kind, file_kinds
from tests.hostile_messages import MessageKind, message_kinds

FILES = (
    *("journal", "journal to resume", "journal to export", "published log"),
    *("kit", "project", "environment", "metrics", "snapshot", "adapter"),
    *("configuration", "settings"),
)
MESSAGES = ("task", "setup", "report", "ready", "refusal", "frame", "frame to the worker", "request")
FILES_EACH, MESSAGES_EACH = 25, 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Kind]:
    return {kind.name: kind for kind in file_kinds(folder)}


@pytest.fixture(scope="module")
def messages(folder: Path) -> dict[str, MessageKind]:
    return {kind.name: kind for kind in message_kinds(folder)}


def test_every_kind_is_tried(files: dict[str, Kind], messages: dict[str, MessageKind]) -> None:
    assert (tuple(files), tuple(messages)) == (FILES, MESSAGES)


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(files: dict[str, Kind], name: str) -> None:
    kind, refused = files[name], 0
    kind.read()
    for number in range(FILES_EACH):
        kind.place.write_bytes(kind.mutated(random.Random(f"{name} {number}")))
        try:
            refused += kind.read() == FedMeZOError.exit_code
        except FedMeZOError as error:
            refused += error.exit_code == 2  # nothing that was read may count as our own failure
    kind.place.write_bytes(kind.content)
    assert refused


@pytest.mark.parametrize("name", MESSAGES)
def test_hostile_messages(messages: dict[str, MessageKind], name: str) -> None:
    kind, refused = messages[name], 0
    for message in kind.good:
        kind.read(message)
    for number in range(MESSAGES_EACH):
        try:
            kind.read(kind.mutated(random.Random(f"{name} {number}")))
        except (FedMeZOError, ConnectionError):
            refused += 1
    assert refused or name in ("frame to the worker", "request")
