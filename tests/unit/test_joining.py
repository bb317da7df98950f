from dataclasses import replace

import pytest

from fedmezo.errors import RunError
from fedmezo.federation.joining import (
    UNKNOWN,
    Ready,
    Reason,
    RefusedTask,
    Setup,
    decode_joining,
    decode_setup,
    encode_ready,
    encode_refusal,
    encode_setup,
    is_setup,
)

SETUP = Setup(2, 5, "ab" * 32, "cd" * 32, {"seed": 7, "train": {"zo": {"eps": 0.001}}})
READY = Ready(2, UNKNOWN, 19, 10)
REFUSAL = RefusedTask(2, 5, Reason.OTHER_STATE, 3, "from there I cannot get to it")


def test_golden_messages() -> None:
    assert encode_setup(SETUP) == (
        b"FMZS\x02"
        + b"\x02\0\0\0"
        + b"\x05\0\0\0"
        + b"\xab" * 32
        + b"\xcd" * 32
        + b'{"seed":7,"train":{"zo":{"eps":0.001}}}'
    )
    assert encode_ready(READY) == b"FMZY\x02" + b"\x02\0\0\0" + b"\xff" * 8 + b"\x13\0\0\0" + b"\x0a\0\0\0"
    head = b"FMZN\x02" + b"\x02\0\0\0" + b"\x05\0\0\0" + b"\x02" + b"\x03\0\0\0\0\0\0\0"
    assert encode_refusal(REFUSAL) == head + b"from there I cannot get to it"


def test_messages_read_back_equal() -> None:
    assert decode_setup(encode_setup(SETUP)) == SETUP
    assert decode_joining(encode_ready(READY)) == READY
    assert decode_joining(encode_refusal(REFUSAL)) == REFUSAL
    assert is_setup(encode_setup(SETUP))
    assert not is_setup(encode_ready(READY))


def test_another_message_is_none_of_them() -> None:
    assert decode_joining(b"FMZR\x01") is None


@pytest.mark.parametrize(
    "message",
    [encode_ready(READY)[:-1], b"FMZY\x01" + encode_ready(READY)[5:], b"FMZN", encode_refusal(REFUSAL) + b"\xff"],
)
def test_a_damaged_answer_is_an_error(message: bytes) -> None:
    with pytest.raises(RunError):
        decode_joining(message)


SETUP_HEAD = len(encode_setup(replace(SETUP, settings={}))) - len("{}")


@pytest.mark.parametrize(
    "message",
    [b"FMZT", encode_setup(SETUP)[:-1], encode_setup(SETUP)[:40], encode_setup(SETUP)[:SETUP_HEAD] + b"[" * 100_000],
    ids=["another", "cut", "cut early", "deep"],
)
def test_a_damaged_setup_is_an_error(message: bytes) -> None:
    with pytest.raises(RunError):
        decode_setup(message)
