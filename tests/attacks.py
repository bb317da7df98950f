"""What a dishonest client may answer in place of the honest answer: by name, with what the server says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedmezo.federation.joining import Ready, Reason, RefusedTask, encode_ready, encode_refusal, is_setup
from fedmezo.federation.messages import decode_report, encode_report
from fedmezo.records import Report

LIAR = 2

Attack = Callable[[bytes, bytes], bytes | None]
"""What is sent in answer to a message in place of the honest answer; None is nothing, ever."""


def honest(message: bytes, answer: bytes) -> bytes:
    return answer


def on_task(attack: Attack) -> Attack:
    return lambda message, answer: answer if is_setup(message) else attack(message, answer)


def on_setup(attack: Attack) -> Attack:
    return lambda message, answer: attack(message, answer) if is_setup(message) else answer


def lying(change: Callable[[Report], Report]) -> Attack:
    def attack(message: bytes, answer: bytes) -> bytes:
        if not answer.startswith(b"FMZR"):
            return answer
        return encode_report(change(decode_report(answer)))

    return attack


def times(factor: float) -> Attack:
    def change(report: Report) -> Report:
        if report.update is not None:
            return replace(report, update=report.update * factor)
        return replace(report, scalars=tuple(factor * g for g in report.scalars or ()))

    return lying(change)


def refusing(reason: Reason, round_index: int | None, text: str = "no", client: int = LIAR) -> Attack:
    def attack(message: bytes, answer: bytes) -> bytes:
        own = int.from_bytes(message[5:9], "little")  # the round of a task
        return encode_refusal(RefusedTask(client, own if round_index is None else round_index, reason, -1, text))

    return on_task(attack)


READY = encode_ready(Ready(LIAR, 0, 8, 4))
WRONG: dict[str, tuple[Attack, str]] = {
    "reports as another client": (lying(lambda r: replace(r, client=1)), "it speaks for client 1"),
    "reports as a client that does not exist": (lying(lambda r: replace(r, client=99)), "it speaks for client 99"),
    "is ready as another client": (on_setup(lambda m, a: encode_ready(Ready(1, 0, 8, 4))), "it speaks for client 1"),
    "refuses as another client": (refusing(Reason.FAILED, None, client=1), "it speaks for client 1"),
    "reports of another round": (lying(lambda r: replace(r, round=r.round + 1)), "it is of round"),
    "reports of no round": (lying(lambda r: replace(r, round=2**32 - 1)), "it is of round 4294967295"),
    "reports from another state": (lying(lambda r: replace(r, state_hash="00" * 32)), "it started from the state"),
    "answers a task with noise": (on_task(lambda m, a: b"\x1b[31mwhat?"), "no answer of its own"),
    "answers a setup with noise": (on_setup(lambda m, a: b"?"), "no answer of its own"),
    "answers a setup with a cut answer": (on_setup(lambda m, a: a[:-1]), "no answer of its own"),
    "answers a setup with a report": (on_setup(lambda m, a: _a_report()), "reports without a task"),
    "answers a task with being ready": (on_task(lambda m, a: READY), "out of turn"),
    "answers with nothing in it": (on_task(lambda m, a: b""), "no answer of its own"),
    "is ready without data": (on_setup(lambda m, a: encode_ready(Ready(LIAR, 0, 0, 0))), "without data"),
    "refuses another round": (refusing(Reason.FAILED, 77), "refuses a task that it does not have"),
    "never reports": (on_task(lambda m, a: None), "it has not reported by the round's deadline"),
    "counts as many examples as fit": (lying(lambda r: replace(r, num_examples=2**32 - 1)), "counts 4294967295"),
    "skips more steps than there are": (lying(lambda r: replace(r, skipped_steps=5)), "5 skipped steps cannot be"),
    "has a loss that overflows": (lying(lambda r: replace(r, train_loss=1.7e308)), "its train loss is 1.7e+308"),
    "has a loss below zero": (lying(lambda r: replace(r, train_loss=-1.0)), "its train loss is -1"),
    "sends scalars a thousand times as large": (times(1024.0), "its scalars are"),
    "sends scalars sixty times as large": (times(-64.0), "its scalars are"),
}
FLOOD = "sends more than a site may"
"""Over FLARE, which drops it: whoever does so counts as away."""


def _a_report() -> bytes:
    return encode_report(Report(0, LIAR, "ab" * 32, 8, 1.0, 0, scalars=(1.0,) * 4))
