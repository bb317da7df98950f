"""A published log reads back equal, is small, and is refused when a byte of it changed."""

from __future__ import annotations

import random
import zlib
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmezo.errors import RunError
from fedmezo.records import Contribution, RoundRecord
from fedmezo.runs.log_file import PublishedLog, decode_log, encode_log
from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from tests.unit.test_journal import HEADER

HASH = "5a" * 32


def log_of(rounds: int, clients: int, scalars: int) -> PublishedLog:
    rng = random.Random(rounds)
    records = tuple(
        RoundRecord(
            index,
            tuple(range(clients)),
            tuple(
                Contribution(
                    client,
                    round_coefficient(rng.uniform(1e-6, 1e-4)),
                    round_coefficient(rng.random()),
                    0,
                    0.0,
                    0,
                    tuple(round_scalar(rng.gauss(0, 20)) for _ in range(scalars)),
                )
                for client in range(clients)
            ),
            (),
            "",
        )
        for index in range(rounds)
    )
    return PublishedLog(HEADER, records, HASH)


@settings(max_examples=40)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 7))
def test_reads_back_equal(rounds: int, clients: int, scalars: int) -> None:
    log = log_of(rounds, clients, scalars)
    assert decode_log(encode_log(log), "file") == log


@settings(max_examples=40)
@given(st.floats(min_value=2.0**-100, max_value=1.0), st.floats(min_value=2.0**-100, max_value=1.0))
def test_rates_and_weights_are_exact(rate: float, weight: float) -> None:
    part = Contribution(0, round_coefficient(rate), round_coefficient(weight), 0, 0.0, 0, (0.5,))
    log = PublishedLog(HEADER, (RoundRecord(0, (0,), (part,), (), ""),), HASH)
    assert decode_log(encode_log(log), "file") == log


def test_five_hundred_rounds_of_three_clients_and_thirty_steps_take_less_than_120_kilobytes() -> None:
    # scalars, rates and weights here are random, which no real run exceeds
    assert len(encode_log(log_of(500, 3, 30))) < 120_000


def test_a_changed_byte_is_refused() -> None:
    content = encode_log(log_of(3, 2, 4))
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(RunError, match=r"^file: "):
            decode_log(bytes(damaged), "file")


def test_a_cut_file_is_refused() -> None:
    content = encode_log(log_of(3, 2, 4))
    for stop in range(0, len(content), 7):
        with pytest.raises(RunError, match=r"^file: (this is no log|the file is damaged)"):
            decode_log(content[:stop], "file")


def test_another_version_is_named() -> None:
    content = encode_log(log_of(1, 1, 1))
    with pytest.raises(RunError, match="format version 9; this fedmezo reads 1"):
        decode_log(content[:4] + b"\x09" + content[5:], "file")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00{}",
        pytest.param(b"\x00\x00\x01\x00" + b"[" * 65_536, id="deep"),
    ],
)
def test_a_sound_checksum_over_nonsense_is_refused(body: bytes) -> None:
    packed = zlib.compress(body)
    with pytest.raises(RunError, match="cannot be read"):
        decode_log(b"FMZL\x01" + sha256(packed).digest() + packed, "file")
