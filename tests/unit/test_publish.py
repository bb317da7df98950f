"""A published log reads back equal, is small, and is refused when a byte of it changed."""

from __future__ import annotations

import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmezo.errors import RunError
from fedmezo.records import Contribution, RoundRecord
from fedmezo.runs.format import FORMAT_VERSION
from fedmezo.runs.log_file import PublishedLog, decode_log, encode_log
from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from tests.unit.test_journal import HEADER

HASH = "5a" * 32
START = b"FMZL" + bytes([FORMAT_VERSION])


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
        decode_log(START + sha256(packed).digest() + packed, "file")


def forged(change: Callable[[dict[str, Any]], object], columns: bytes | None = None) -> bytes:
    """A log whose document was changed by somebody who knows how to make a checksum."""
    body = zlib.decompress(encode_log(log_of(3, 2, 4))[37:])
    (length,) = struct.unpack_from("<I", body)
    document = json.loads(body[4 : 4 + length])
    change(document)
    head = json.dumps(document).encode()
    packed = zlib.compress(struct.pack("<I", len(head)) + head + (body[4 + length :] if columns is None else columns))
    return START + sha256(packed).digest() + packed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["header"].update(seed=-1),
            "header.seed: got -1; needs a whole number from 0",
        ),
        (lambda d: d["header"].update(seed="x"), "header.seed: got 'x'; needs a whole number"),
        (lambda d: d["header"].update(theta_hash=5), "header.theta_hash: got 5; needs 64 hexadecimal digits"),
        (lambda d: d["header"].update(eps=-1.0), "header.eps: got -1.0; needs a number from"),
        (lambda d: d["header"]["adapter"].update(adapter_method="none"), "header.adapter: adapter_method"),
        (lambda d: d.update(state_hash=5), "state_hash: got 5; needs 64 hexadecimal digits"),
        (lambda d: d.update(rounds=10**30), "rounds: got 1000000000000000000000000000000; needs a whole number"),
        (lambda d: d.update(rounds=2**28 - 1), "it is shorter than it says"),
        (lambda d: d.update(header=[]), r"header: got \[\]; needs keys below it: seed, rounds"),
        (lambda d: d.update(more=1), "more: unknown key"),
        (lambda d: d.clear(), "header: missing; needs"),
    ],
)
def test_a_forged_document_is_refused_with_one_line(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(RunError, match=f"^file: the file cannot be read: {message}") as caught:
        decode_log(forged(change), "file")
    assert str(caught.value).isprintable()


def columns_of(rate: float, weight: float, clients: tuple[int, int] = (0, 1), scalars: int = 0x3F80) -> bytes:
    """Columns of one round with two contributions of two scalars, byte planes and all."""
    numbers = [struct.pack("<I", 2), struct.pack("<2I", *clients), struct.pack("<2I", 2, 2)]
    numbers += [struct.pack("<2f", rate, rate), struct.pack("<2f", weight, weight)]
    planes = [b"".join(column[byte::4] for byte in range(4)) for column in numbers]
    scalar_column = struct.pack("<4H", *[scalars] * 4)
    return b"".join([*planes, scalar_column[0::2], scalar_column[1::2]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (columns_of(math.nan, 0.5), "it holds a rate of nan; needs 0 to"),
        (columns_of(-1.0, 0.5), "it holds a rate of -1.0; needs 0 to"),
        (columns_of(0.1, 0.5), "it holds a rate of 0.1.*in 16 bits"),
        (columns_of(0.5, 1.5), "it holds a weight of 1.5; needs 0 to 1"),
        (columns_of(0.5, 0.5, clients=(3, 3)), "it holds two contributions of a client to one round"),
        (columns_of(0.5, 0.5, scalars=0x7F80), "it holds scalars that are not finite"),
        (columns_of(2.0**100, 0.5, scalars=0x7F00), "it holds rates and scalars that are too large to move theta"),
        (columns_of(0.5, 0.5)[:-1], "it is shorter than it says"),
    ],
)
def test_forged_columns_are_refused(columns: bytes, message: str) -> None:
    with pytest.raises(RunError, match=f"^file: the file cannot be read: {message}"):
        decode_log(forged(lambda document: document.update(rounds=1), columns), "file")


def test_sound_columns_are_read() -> None:
    (record,) = decode_log(forged(lambda document: document.update(rounds=1), columns_of(0.5, 0.5)), "file").records
    assert [(part.client, part.rate, part.weight, part.scalars) for part in record.contributions] == [
        (0, 0.5, 0.5, (1.0, 1.0)),
        (1, 0.5, 0.5, (1.0, 1.0)),
    ]


def test_a_file_that_unpacks_to_far_more_than_it_weighs_is_refused_without_unpacking_it() -> None:
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])
    assert len(packed) < 1 << 17
    with pytest.raises(RunError, match=r"unpack to more than 33\.6 MB"):
        decode_log(START + sha256(packed).digest() + packed, "file")
    short = packed[:-10]
    with pytest.raises(RunError, match=r"unpack to more|cut short"):
        decode_log(START + sha256(short).digest() + short, "file")
