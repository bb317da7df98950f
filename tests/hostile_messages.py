"""Messages, frames and requests as an attacker would send them, and who reads each of them."""

from __future__ import annotations

import math
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmezo.federation.aggregate import ReportRules, sort_reports
from fedmezo.federation.joining import (
    Ready,
    Reason,
    RefusedTask,
    decode_joining,
    encode_ready,
    encode_refusal,
    encode_setup,
)
from fedmezo.federation.messages import CatchUp, decode_report, encode_report, encode_task
from fedmezo.machines.flare.exchange import Mailbox
from fedmezo.machines.frames import number, receive_frame, send_frame, word
from fedmezo.machines.site import Site
from fedmezo.machines.worker import serve_one
from fedmezo.records import ClientTask, Contribution, Report, RoundPlan, RoundRecord
from fedmezo.zo.arithmetic import state_hash
from tests.hostile import changed_bytes, changed_value, dump
from tests.toy import SIZE
from tests.unit.test_site import ESTIMATOR, SETUP, THETA, load

NUMBERS = [struct.pack("<I", value) for value in (0, 1, 2**28 - 1, 2**28, 2**31, 2**32 - 1)]
NUMBERS += [struct.pack("<f", value) for value in (-0.0, -1.0, 3e38, math.inf, math.nan)]


@dataclass(frozen=True)
class MessageKind:
    """Messages of one kind.

    Args:
        name: what they are.
        good: some that are right.
        read: reads one as the party does that gets it; FedMeZOError and OSError are how it refuses.
    """

    name: str
    good: tuple[bytes, ...]
    read: Callable[[bytes], object]

    def mutated(self, rng: random.Random) -> bytes:
        """One that nobody honest sent; in half of them a number is another one, at a place where there is one."""
        message = rng.choice(self.good)
        if rng.random() < 0.5 or len(message) < 8:
            return changed_bytes(message, rng)
        at = rng.randrange(4, len(message) - 3)
        return message[:at] + rng.choice(NUMBERS) + message[at + 4 :]


def message_kinds(folder: Path) -> list[MessageKind]:
    """Every kind of message."""
    site = Site(load)
    digest = state_hash(THETA)
    setup = encode_setup(replace(SETUP, settings={"seed": 7, "train": {"zo": {"eps": 0.01}}}))
    record = RoundRecord(0, (0, 1), tuple(Contribution(c, 0.5, 0.5, 0, 0.0, 0, (1.0, -2.0)) for c in (0, 1)), (), "")
    ways = (CatchUp(), CatchUp((record,)), CatchUp(theta=THETA))
    tasks = [encode_task(ClientTask(index, 1, 0.5), digest, way) for index, way in enumerate(ways)]
    values = {"site": "a", "what": "here", "answer_size": 5, "state": "answer"}
    frames = (_frame({}, setup), _frame({}, tasks[0]))
    reports = [Report(0, 1, digest, 8, 1.0, 0, scalars=(1.0,) * 4), Report(0, 1, digest, 8, 1.0, 0, update=THETA)]

    def to_site(message: bytes) -> None:
        site.answer(setup)
        assert isinstance(site.answer(message), bytes)

    return [
        MessageKind("task", tuple(tasks), to_site),
        MessageKind("setup", (setup,), to_site),
        MessageKind("report", tuple(map(encode_report, reports)), _judge),
        MessageKind("ready", (encode_ready(Ready(1, 0, 8, 4)),), decode_joining),
        MessageKind("refusal", (encode_refusal(RefusedTask(1, 0, Reason.FAILED, 0, "no")),), decode_joining),
        MessageKind("frame", (_frame(values, b"x" * 40),), _read_frame),
        MessageKind("frame to the worker", frames, lambda data: _serve(site, data)),
        MessageKind(
            "request", (dump({"id": 1, "message": "x", "wait": 0.0}).encode(),), lambda data: _ask(folder, data)
        ),
    ]


def _judge(message: bytes) -> None:
    plan = RoundPlan(0, (0, 1), (0.5, 0.5))
    rules = ReportRules("scalars", ESTIMATOR, 4, SIZE, most_examples=8, max_ratio=5.0)
    if decode_joining(message) is None:
        sort_reports(plan, state_hash(THETA), [decode_report(message)], rules, {})


def _frame(values: dict[str, Any], payload: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_frame(ours, values, payload)
        return theirs.recv(1 << 20)


def _read_frame(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(data[: 1 << 16])
        values, _ = receive_frame(ours)
        word(values, "site"), word(values, "what"), number(values, "answer_size")


def _serve(site: Site, data: bytes) -> None:
    """What the model worker does with a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[: 1 << 16])
        theirs.shutdown(socket.SHUT_WR)
        serve_one(site, ours)


def _ask(folder: Path, data: bytes) -> None:
    """What a site's mailbox does with a request of a server that is none of ours; its worker is not there."""
    rng = random.Random(data)
    request = changed_value({"id": 1, "message": "x", "wait": 0.0}, rng)
    if not isinstance(request, dict):
        return  # FLARE hands over nothing else
    if isinstance(request.get("message"), str):
        request["message"] = data
    assert set(Mailbox(str(folder / "nobody")).handle(request)) == {"id", "state", "answer"}
