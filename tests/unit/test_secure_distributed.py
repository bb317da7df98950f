"""Secure sums over a transport that is played: clients that leave, restart or lie, and a server that is curious."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

pytest.importorskip("cryptography")
pytest.importorskip("Crypto")

from fedmezo.engines.distributed import Arrival, Distributed
from fedmezo.engines.peers import Contact
from fedmezo.engines.rounds import closed_round_
from fedmezo.engines.secure import SecureSums
from fedmezo.errors import RunError, TrainingError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import RefusedTask, Setup, decode_joining, encode_setup, is_setup
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, initial_state
from fedmezo.federation.sums import FixedPoint
from fedmezo.machines.site import Loaded, Masking, Site
from fedmezo.privacy.collector import Question
from fedmezo.privacy.messages import (
    decode_masked,
    encode_question,
    is_masked,
    is_question,
    is_wrapped,
    unwrap_task,
    wrap_task,
)
from fedmezo.records import RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from tests.toy import SIZE, Quadratic, ToyData, toy_segments

CLIENTS = 5
SEED = 11
ESTIMATOR = TwoPoint(Settings(eps=0.01))
THETA = torch.linspace(-1.0, 1.0, SIZE)
BASE_HASH = "ab" * 32
CODING = FixedPoint(4, CLIENTS, 8, ESTIMATOR.largest, equal=False)
MASKING = Masking(CODING, 0.49, CLIENTS)

Meddle = Callable[["Stage", int, bytes, bytes], "bytes | None"]
"""From the stage, a client, a message to it and its honest answer to what it answers; None for nothing, for ever."""


def honest(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
    return answer


@dataclass
class Stage:
    """A transport with sites behind it, in which time passes only while somebody waits."""

    meddle: Meddle = honest
    masking: Masking | None = MASKING
    now: float = 0.0
    news: list[tuple[float, int, Arrival]] = field(default_factory=list)
    sent: int = 0
    kept: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sites = [Site(self.load) for _ in range(CLIENTS)]
        for client in range(CLIENTS):
            self.tell(0.0, Arrival(client, Contact.HERE))

    def load(self, setup: Setup) -> Loaded:
        work = ZerothOrderClients(Quadratic(), ESTIMATOR, SEED, "scalars")
        course = Course(SEED, ESTIMATOR)
        data = ToyData(setup.client)
        return Loaded(work, data, BASE_HASH, THETA.clone, SIZE, THETA.device, course, masking=self.masking)

    def tell(self, seconds: float, arrival: Arrival) -> None:
        self.sent += 1
        heapq.heappush(self.news, (self.now + seconds, self.sent, arrival))

    def send(self, client: int, message: bytes, answer_size: int) -> None:
        answer = self.meddle(self, client, message, self.sites[client].answer(message))
        if answer is not None:
            self.tell(1.0, Arrival(client, Contact.HERE, answer))

    def receive(self, seconds: float) -> Arrival | None:
        assert self.now < 1e5, "the run is held"
        if not self.news or self.news[0][0] > self.now + seconds:
            self.now += seconds
            return None
        self.now, _, arrival = heapq.heappop(self.news)
        return arrival


def play(stage: Stage, rounds: int = 3, min_clients: int = 2) -> list[RoundRecord]:
    chosen = Federation(
        seed=SEED,
        num_clients=CLIENTS,
        cohort_size=CLIENTS,
        min_clients=min_clients,
        equal_weights=False,
        strategy=RateStrategy("frozen", 0.01, 0.0),
        rules=ReportRules("scalars", ESTIMATOR, 4, SIZE, most_examples=8),
        segments=toy_segments(),
        groups=1,
    )
    engine = Distributed(
        stage,
        Downlink("scalars", SIZE, derivable=True),
        rules=chosen.rules,
        settings={},
        base_hash=BASE_HASH,
        theta_hash=state_hash(THETA),
        num_clients=CLIENTS,
        min_clients=min_clients,
        report_size=0,
        deadline=30.0,
        tries=3,
        secure=SecureSums(CODING, MASKING.tolerated) if stage.masking else None,
        clock=lambda: stage.now,
    )
    state, records = initial_state(THETA.clone()), []
    for _ in range(rounds):
        state, plan, record, _ = closed_round_(engine, chosen, state)
        engine.close_round(plan, record)
        records.append(record)
    return records


def counted(records: list[RoundRecord]) -> list[int]:
    return [record.groups[0].clients for record in records]


def test_the_sums_are_the_open_ones_to_the_bit_and_nobody_sees_a_report() -> None:
    seen: list[bytes] = []

    def watch(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        seen.append(answer)
        return answer

    secure, plain = play(Stage(watch)), play(Stage(masking=None))
    assert [record.groups for record in secure] == [record.groups for record in plain]
    assert [record.state_hash for record in secure] == [record.state_hash for record in plain]
    assert not [answer for answer in seen if answer.startswith(b"FMZR")]
    assert sum(map(is_masked, seen)) == 3 * CLIENTS


def gone_at(kind: Callable[[bytes], bool], client: int, round_index: int = 1) -> Meddle:
    """A client that leaves for good when it gets a message of this kind in a round."""
    rounds: list[int] = []

    def meddle(stage: Stage, to: int, message: bytes, answer: bytes) -> bytes | None:
        if to != client or not kind(message):
            return answer
        rounds.append(len(rounds))
        if len(rounds) <= round_index:
            return answer
        stage.tell(0.5, Arrival(client, Contact.AWAY))
        return None

    return meddle


@pytest.mark.parametrize(("kind", "left"), [(is_wrapped, 4), (is_question, 5)])
def test_a_client_may_leave_before_and_after_it_masked(kind: Callable[[bytes], bool], left: int) -> None:
    assert counted(play(Stage(gone_at(kind, 2)))) == [5, left, 4]


def test_a_silent_client_holds_no_round(caplog: pytest.LogCaptureFixture) -> None:
    def silent(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        return None if client == 3 and is_question(message) else answer

    with caplog.at_level(logging.WARNING):
        assert counted(play(Stage(silent), rounds=2)) == [5, 5]
    assert "client 3 does not help with the sum" in caplog.text


def test_too_few_are_no_sum_and_the_round_is_not_tried_again() -> None:
    def most_leave(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        return None if client > 1 and is_wrapped(message) else answer

    with pytest.raises(TrainingError, match="0 usable reports"):
        play(Stage(most_leave), rounds=1)


def test_replayed_words_and_open_reports_are_wrong_and_the_others_go_on() -> None:
    def replay(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        if client != 4 or not is_masked(answer):
            return answer
        stage.kept.append(answer)
        return stage.kept[0]

    records = play(Stage(replay), rounds=3)
    assert counted(records) == [5, 4, 4]
    assert "masked words without a task" in records[1].refusals[0].reason

    plain = Site(Stage(masking=None).load)

    def unmasked(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        if client == 4 and is_setup(message):
            plain.answer(message)
        return plain.answer(message) if client == 4 and is_wrapped(message) else answer

    records = play(Stage(unmasked), rounds=1)
    assert counted(records) == [4]
    assert "unmasked" in records[0].refusals[0].reason


def test_a_site_that_lost_its_keys_is_back_with_the_next_round() -> None:
    tasks: list[bytes] = []

    def restart(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        if client != 0 or not is_wrapped(message):
            return answer
        tasks.append(message)
        if len(tasks) != 2:
            return answer
        stage.sites[0] = Site(stage.load)  # killed in the middle of its second round
        stage.tell(0.2, Arrival(0, Contact.AWAY))
        stage.tell(0.4, Arrival(0, Contact.HERE))
        return None

    assert counted(play(Stage(restart), rounds=3)) == [5, 4, 5]


def test_a_lost_answer_is_sent_again_and_is_no_second_sum() -> None:
    lost: list[bytes] = []

    def lose(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        if client != 1 or not is_masked(answer):
            return answer
        lost.append(answer)
        if len(lost) > 1:
            return answer
        stage.tell(0.2, Arrival(1, Contact.AWAY))
        stage.tell(0.4, Arrival(1, Contact.HERE))
        return None

    assert counted(play(Stage(lose), rounds=1)) == [5]
    assert lost[0] == lost[1]


def last_messages() -> tuple[Stage, dict[int, bytes]]:
    """A stage after one round, and the wrapped task of each client."""
    tasks: dict[int, bytes] = {}

    def keep(stage: Stage, client: int, message: bytes, answer: bytes) -> bytes | None:
        if is_wrapped(message):
            tasks[client] = message
        return answer

    stage = Stage(keep)
    play(stage, rounds=1)
    return stage, tasks


def test_a_curious_server_is_told_nothing_more() -> None:
    stage, tasks = last_messages()
    group, task = unwrap_task(tasks[0])
    site = stage.sites[0]
    asked = {
        "would show the site's own report": task,
        "is settled": encode_question(Question(0, 0, (1,))),
        "are said to have gone": encode_question(Question(0, 0, (2,), {1: b""})),
        "the question is for client 3": encode_question(Question(3, 0, (1,))),
        "masked no words": encode_question(Question(0, 7, (1,))),
    }
    for says, message in asked.items():
        answer = decode_joining(site.answer(message))
        assert isinstance(answer, RefusedTask)
        assert says in answer.text
    assert group.members == tuple(range(CLIENTS))
    small = replace(group, fewest=2)
    with pytest.raises(RunError, match="a sum of 2 is wanted"):
        site.answer(tasks[0].replace(group.fewest.to_bytes(4, "little"), small.fewest.to_bytes(4, "little"), 1))


def test_a_second_sum_of_a_round_is_refused_in_the_same_session() -> None:
    stage, tasks = last_messages()
    group, task = unwrap_task(tasks[0])
    fewer = replace(group, members=group.members[:4], keys=group.keys[:4])
    answer = decode_joining(stage.sites[0].answer(wrap_task(fewer, task)))
    assert isinstance(answer, RefusedTask)
    assert "two sums would tell them apart" in answer.text


def test_a_site_that_masks_needs_a_session() -> None:
    site = Site(Stage().load)
    setup = Setup(0, 0, BASE_HASH, state_hash(THETA), {})
    for session in ("", "zz", "00"):
        answer = decode_joining(site.answer(encode_setup(replace(setup, session=session))))
        assert isinstance(answer, RefusedTask)
        assert "session is none" in answer.text


def test_a_task_of_a_secure_sum_before_any_setup_is_refused() -> None:
    stage, tasks = last_messages()
    answer = decode_joining(Site(stage.load).answer(tasks[2]))
    assert isinstance(answer, RefusedTask)
    assert "no setup" in answer.text


def test_words_of_another_length_are_wrong() -> None:
    with pytest.raises(RunError, match="no whole number of shares"):
        decode_masked(b"FMZM\2" + bytes(8) + bytes(sum(CODING.widths) + 5), CODING.widths)
