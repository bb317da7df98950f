"""One dishonest client among honest ones, over a transport that is played: it is named, and neither holds nor ruins."""

from __future__ import annotations

import heapq
import logging
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from fedmezo.engines.distributed import Arrival, Distributed
from fedmezo.engines.peers import Contact
from fedmezo.engines.rounds import closed_round_
from fedmezo.errors import TrainingError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import Reason, Setup, is_setup
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, ServerState, initial_state, plan_round, replay_round_
from fedmezo.machines.site import Loaded, Site
from fedmezo.records import Refusal, RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint
from tests.attacks import LIAR, WRONG, Attack, honest, lying, on_setup, on_task, refusing, times
from tests.toy import SIZE, Quadratic, ToyData, toy_segments

CLIENTS = 4
HONEST = [0, 1, 3]
ROUNDS = 40
SEED = 11
ESTIMATOR = TwoPoint(Settings(eps=0.01))
THETA = torch.linspace(-1.0, 1.0, SIZE)
BASE_HASH = "ab" * 32
SECONDS_OF_WORK = 1.0


@dataclass
class Stage:
    """A transport with sites behind it, in which time passes only while somebody waits."""

    protocol: str
    attack: Attack
    flaps: bool = False
    now: float = 0.0
    news: list[tuple[float, int, Arrival]] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.sites = [Site(self._load) for _ in range(CLIENTS)]
        for client in range(CLIENTS):
            self._tell(0.0, Arrival(client, Contact.HERE))

    def _load(self, setup: Setup) -> Loaded:
        work = ZerothOrderClients(Quadratic(), ESTIMATOR, SEED, self.protocol)
        return Loaded(
            work, ToyData(setup.client), BASE_HASH, THETA.clone, len(THETA), THETA.device, Course(SEED, ESTIMATOR)
        )

    def _tell(self, seconds: float, arrival: Arrival) -> None:
        self.sent += 1
        heapq.heappush(self.news, (self.now + seconds, self.sent, arrival))

    def send(self, client: int, message: bytes, answer_size: int) -> None:
        answer: bytes | None = self.sites[client].answer(message)
        assert answer is not None
        if client == LIAR:
            if self.flaps:
                for seconds, contact in ((0.5, Contact.AWAY), (1.0, Contact.HERE)):
                    self._tell(seconds, Arrival(client, contact))
                return
            answer = self.attack(message, answer)
        if answer is not None:
            self._tell(SECONDS_OF_WORK, Arrival(client, Contact.HERE, answer))

    def receive(self, seconds: float) -> Arrival | None:
        assert self.now < 1e5, "the run is held"
        if not self.news or self.news[0][0] > self.now + seconds:
            self.now += seconds
            return None
        self.now, _, arrival = heapq.heappop(self.news)
        return arrival


def federation(protocol: str, cohort_size: int = CLIENTS, min_clients: int = 2) -> Federation:
    return Federation(
        seed=SEED,
        num_clients=CLIENTS,
        cohort_size=cohort_size,
        min_clients=min_clients,
        equal_weights=False,
        strategy=RateStrategy("five-round", 0.01, 0.005),
        rules=ReportRules(protocol, ESTIMATOR, 4, SIZE, most_examples=8, max_ratio=5.0),
        segments=toy_segments(),
    )


@dataclass
class Outcome:
    """A run's end."""

    theta: torch.Tensor
    records: list[RoundRecord]
    seconds: float

    @property
    def refusals(self) -> list[Refusal]:
        return [refusal for record in self.records for refusal in record.refusals]


def engine_of(stage: Stage, chosen: Federation, deadline: float | None = None, tries: int = 5) -> Distributed:
    return Distributed(
        stage,
        Downlink(stage.protocol, SIZE, derivable=True),
        rules=chosen.rules,
        settings={},
        base_hash=BASE_HASH,
        theta_hash=state_hash(THETA),
        num_clients=CLIENTS,
        min_clients=chosen.min_clients,
        report_size=0,
        deadline=deadline,
        tries=tries,
        clock=lambda: stage.now,
    )


def go_through(engine: Distributed, chosen: Federation, state: ServerState, rounds: int) -> list[RoundRecord]:
    """Run rounds from a state, whose theta is changed in place."""
    records = []
    for _ in range(rounds):
        state, plan, record, _ = closed_round_(engine, chosen, state)
        engine.close_round(plan, record)
        records.append(record)
    return records


def beginning() -> ServerState:
    return initial_state(THETA.clone())


def play(attack: Attack, protocol: str = "scalars", *, flaps: bool = False, rounds: int = ROUNDS) -> Outcome:
    chosen, stage = federation(protocol), Stage(protocol, attack, flaps)
    state = beginning()
    records = go_through(engine_of(stage, chosen), chosen, state, rounds)
    return Outcome(state.theta, records, stage.now)


def require_survival(outcome: Outcome, reason: str) -> None:
    """The honest contributed to every round, the journal replays, the offender and nobody else is named."""
    assert len(outcome.records) == ROUNDS
    for record in outcome.records:
        clients = [part.client for part in record.contributions]
        assert [client for client in clients if client != LIAR] == HONEST
    assert {refusal.client for refusal in outcome.refusals} == {LIAR}
    assert any(reason in refusal.reason for refusal in outcome.refusals), outcome.refusals
    assert bool(torch.isfinite(outcome.theta).all())


@pytest.mark.parametrize("name", WRONG)
def test_the_honest_end_their_run_and_the_offender_is_named(name: str) -> None:
    attack, reason = WRONG[name]
    outcome = play(attack)
    require_survival(outcome, reason)
    assert len(outcome.refusals) <= 6  # barred for 10 rounds, then 20, then 40
    state = beginning()
    for record in outcome.records:
        state = replay_round_(federation("scalars"), state, record)
        assert state.hash == record.state_hash
    without = play(lambda message, answer: None)
    assert torch.dist(outcome.theta, without.theta) < 0.02 * torch.dist(THETA, without.theta)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (lying(lambda r: replace(r, update=torch.full((SIZE,), math.inf))), "not finite"),
        (lying(lambda r: replace(r, update=torch.full((SIZE,), 3e38))), "its update changes a parameter by 3e+38"),
        (times(1000.0), "its update changes a parameter by"),
        (times(-64.0), "its update is"),
        (lying(lambda r: replace(r, update=None, scalars=(1.0,) * 4)), "no update of 10"),
    ],
    ids=["infinite", "3e38", "x1000", "turned x64", "scalars"],
)
def test_updates_are_bounded_by_those_of_the_honest(attack: Attack, reason: str) -> None:
    require_survival(play(attack, "weights"), reason)


@pytest.mark.parametrize("reason", [Reason.NOT_SET_UP, Reason.OTHER_STATE, Reason.STALE, Reason.FAILED])
def test_who_says_no_for_ever_holds_nobody(reason: Reason) -> None:
    """It is not barred, as an honest site whose work fails says the same."""
    outcome = play(refusing(reason, None))
    assert all([part.client for part in record.contributions] == HONEST for record in outcome.records)
    assert outcome.seconds < 8 * ROUNDS


def test_who_never_is_ready_is_waited_for_once() -> None:
    outcome = play(on_setup(lambda message, answer: None))
    assert all([part.client for part in record.contributions] == HONEST for record in outcome.records)
    assert outcome.refusals == []  # it may be loading a large model
    assert outcome.seconds < 600 + 10 * 3 + 2 * ROUNDS


def test_who_comes_and_goes_is_waited_for_once() -> None:
    outcome = play(honest, flaps=True)
    assert all([part.client for part in record.contributions] == HONEST for record in outcome.records)
    assert outcome.seconds < 600 + 10 * 3 + 3 * ROUNDS


def test_what_a_silent_client_costs_is_bounded() -> None:
    """A deadline for the first time, and one for each time that it is barred for twice as long."""
    first, usual = 600 + 10 * 2, 60 + 10
    assert play(on_task(lambda message, answer: None)).seconds < first + 4 * usual + 2 * ROUNDS


def test_a_slow_client_takes_part_when_it_can() -> None:
    """Its late reports are dropped, and it has the next task when it has sent them."""
    chosen = federation("scalars")
    stage = Stage("scalars", honest)
    late = {1}

    def attack(message: bytes, answer: bytes) -> bytes | None:
        if not is_setup(message) and int.from_bytes(message[5:9], "little") in late:
            stage._tell(200.0, Arrival(LIAR, Contact.HERE, answer))
            return None
        return answer

    stage.attack = attack
    records = go_through(engine_of(stage, chosen, deadline=20.0), chosen, beginning(), 300)
    took_part = [LIAR in [part.client for part in record.contributions] for record in records]
    assert took_part[0]
    assert not any(took_part[1:100])
    assert all(took_part[-50:])


def test_what_a_refusal_says_cannot_write_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    text = "no\x1b[2K\r\nround 5/5 val 0.0000\u202e" + "!" * 60_000
    with caplog.at_level(logging.INFO):
        play(refusing(Reason.FAILED, None, text), rounds=3)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said
    for line in said:
        assert line.isprintable()
        assert len(line) < 400


def test_a_client_that_is_needed_is_asked_although_it_is_barred() -> None:
    chosen = federation("scalars", cohort_size=2, min_clients=2)
    plans = [plan_round(chosen, replace(initial_state(THETA), round=r), {LIAR}) for r in range(20)]
    assert all(LIAR not in plan.cohort and len(plan.cohort) == 2 for plan in plans)
    needed = [plan_round(chosen, replace(initial_state(THETA), round=r), {0, 1, LIAR}) for r in range(20)]
    assert all(3 in plan.cohort and len(plan.cohort) == 2 for plan in needed)


def test_powers_of_scalars_are_remembered() -> None:
    chosen, state = federation("scalars"), beginning()
    engine = engine_of(Stage("scalars", honest), chosen)
    for _ in range(7):
        state, plan, record, _ = closed_round_(engine, chosen, state)
        engine.close_round(plan, record)
    last = record.contributions[0]
    history = state.histories[last.client]
    assert len(history.powers) == 5
    assert history.powers[-1] == pytest.approx(math.fsum(g * g for g in last.scalars or ()) / 4)


def test_a_round_without_enough_reports_is_tried_again_and_then_given_up() -> None:
    """Each try lasts twice as long as the one before; what is left is the state of the last closed round."""
    chosen = federation("scalars", min_clients=CLIENTS)
    stage, state = Stage("scalars", on_task(lambda message, answer: None)), beginning()
    with pytest.raises(TrainingError, match=r"3 usable reports of 4 .*client 2: it has not reported by the round's de"):
        go_through(engine_of(stage, chosen, deadline=10.0, tries=4), chosen, state, 1)
    assert stage.now == pytest.approx(10 * (1 + 2 + 4 + 8), abs=10)
    assert torch.equal(state.theta, THETA)
    after = go_through(engine_of(Stage("scalars", honest), chosen), chosen, state, 1)
    assert [part.client for part in after[0].contributions] == [0, 1, 2, 3]


def test_a_report_that_comes_in_the_next_try_counts() -> None:
    chosen = federation("scalars", min_clients=CLIENTS)
    stage = Stage("scalars", honest)

    def attack(message: bytes, answer: bytes) -> bytes | None:
        if is_setup(message):
            return answer
        stage._tell(15.0, Arrival(LIAR, Contact.HERE, answer))
        return None

    stage.attack = attack
    (record,) = go_through(engine_of(stage, chosen, deadline=10.0, tries=2), chosen, beginning(), 1)
    assert [part.client for part in record.contributions] == [0, 1, 2, 3]
    assert stage.now < 20


def test_a_client_that_failed_for_once_is_asked_again() -> None:
    chosen = federation("scalars", min_clients=CLIENTS)
    failed: list[bytes] = []
    fail = refusing(Reason.FAILED, None, "out of memory")

    def attack(message: bytes, answer: bytes) -> bytes | None:
        if is_setup(message) or failed:
            return answer
        failed.append(message)
        return fail(message, answer)

    (record,) = go_through(engine_of(Stage("scalars", attack), chosen, tries=2), chosen, beginning(), 1)
    assert [part.client for part in record.contributions] == [0, 1, 2, 3]


def test_a_run_whose_clients_leave_ends_and_one_whose_clients_never_came_waits() -> None:
    chosen, stage = federation("scalars"), Stage("scalars", honest)
    engine, state = engine_of(stage, chosen, deadline=10.0, tries=3), beginning()
    come, stage.news = stage.news, []
    stage._tell(5e4, come[0][2])  # one of the two that are needed
    for _, _, arrival in come[1:]:
        stage._tell(9e4, arrival)
    assert len(go_through(engine, chosen, state, 1)) == 1
    assert stage.now > 9e4
    stage.now = 0.0
    for client in range(CLIENTS):
        stage._tell(0.0, Arrival(client, Contact.AWAY))
    with pytest.raises(TrainingError, match="0 usable reports of 4"):
        go_through(engine, chosen, replace(beginning(), round=1), 1)
    assert stage.now == pytest.approx(10 * (1 + 2 + 4), abs=5)


@pytest.mark.parametrize(
    "name", ["answers with nothing in it", "reports as another client", "sends scalars sixty times as large"]
)
def test_who_is_barred_stays_so_when_the_server_starts_again(name: str) -> None:
    chosen, stage = federation("scalars"), Stage("scalars", WRONG[name][0])
    engine = engine_of(stage, chosen)
    records = go_through(engine, chosen, beginning(), ROUNDS)
    again = engine_of(Stage("scalars", honest), chosen)
    again.recall(records)
    assert engine.barred(ROUNDS) == {LIAR}
    assert all(again.barred(index) == engine.barred(index) for index in range(ROUNDS, 5 * ROUNDS))
