"""Rounds over a transport that is written down beforehand: who is left out, asked again, waited for."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from fedmezo.engines.distributed import Arrival, Distributed
from fedmezo.engines.peers import Contact
from fedmezo.errors import RunError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import UNKNOWN, Ready, Reason, RefusedTask, encode_ready, encode_refusal
from fedmezo.federation.messages import encode_report
from fedmezo.federation.round import ServerState
from fedmezo.records import Report, RoundPlan
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.estimators.two_point import TwoPoint

STATE = ServerState(5, torch.zeros(10), "ab" * 32, {})
PLAN = RoundPlan(5, (0, 1), (0.5, 0.5))


class Script:
    """Plays news in order, one after each wait, and keeps what was sent."""

    def __init__(self, *news: Arrival | None) -> None:
        self.news = deque(news)
        self.sent: list[tuple[int, bytes]] = []

    def send(self, client: int, message: bytes, answer_size: int) -> None:
        self.sent.append((client, message[:4]))

    def receive(self, seconds: float) -> Arrival | None:
        return self.news.popleft()


def engine(script: Script, min_clients: int = 1) -> Distributed:
    return Distributed(
        script,
        Downlink("scalars", 10, derivable=True),
        rules=ReportRules("scalars", TwoPoint(Settings(eps=0.01)), 1, 10),
        settings={},
        base_hash="ab" * 32,
        theta_hash="cd" * 32,
        num_clients=2,
        min_clients=min_clients,
        report_size=0,
    )


def here(client: int) -> Arrival:
    return Arrival(client, Contact.HERE)


def ready(client: int, known: int = 5) -> Arrival:
    return Arrival(client, Contact.HERE, encode_ready(Ready(client, known, 8, 4)))


def report(client: int, round_index: int = 5) -> Arrival:
    made = Report(round_index, client, STATE.hash, 8, 1.0, 0, scalars=(1.0,))
    return Arrival(client, Contact.HERE, encode_report(made))


def refusal(client: int, reason: Reason) -> Arrival:
    return Arrival(client, Contact.HERE, encode_refusal(RefusedTask(client, 5, reason, UNKNOWN, "no")))


def reporters(script: Script, min_clients: int = 1) -> list[int]:
    result = engine(script, min_clients).run_round(PLAN, STATE)
    assert not script.news, "the round ended early"
    return [made.client for made in result.reports]


def test_a_round_ends_when_all_who_are_there_have_reported() -> None:
    assert reporters(Script(here(0), here(1), ready(0), ready(1), report(1), report(0))) == [1, 0]


def test_who_is_expected_is_waited_for() -> None:
    coming = Arrival(1, Contact.COMING)
    assert reporters(Script(coming, here(0), ready(0), report(0), None, here(1), ready(1), report(1))) == [0, 1]


def test_who_goes_away_is_not_waited_for() -> None:
    gone = Arrival(1, Contact.AWAY)
    assert reporters(Script(here(0), here(1), ready(0), ready(1), report(0), gone)) == [0]


def test_with_too_few_the_round_waits_until_somebody_is_back() -> None:
    gone = Arrival(0, Contact.AWAY)
    script = Script(here(0), gone, None, None, here(0), ready(0), report(0), None, here(1), ready(1), report(1))
    assert reporters(script, min_clients=2) == [0, 1]


def test_a_round_waits_while_nobody_works_on_it() -> None:
    gone = Arrival(0, Contact.AWAY)
    script = Script(None, here(0), ready(0), gone, here(0), ready(0), report(0), here(1), ready(1), report(1))
    made = engine(script, min_clients=2)
    waiting: list[bool] = []
    receive = script.receive

    def watch(seconds: float) -> Arrival | None:
        waiting.append(made.is_waiting)
        return receive(seconds)

    script.receive = watch  # type: ignore[method-assign]  # to look between the news
    made.run_round(PLAN, STATE)
    assert waiting == [True, True, True, False, True, True, False, False, False, False]
    assert not made.is_waiting


def test_a_report_of_another_round_is_not_used() -> None:
    assert reporters(Script(here(0), ready(0), report(0, round_index=4), report(0))) == [0]


def test_a_report_after_the_client_was_away_is_not_used() -> None:
    """It was made for the task before; the client is asked anew."""
    script = Script(here(0), ready(0), Arrival(0, Contact.AWAY), report(0), here(0), report(0), ready(0), report(0))
    assert reporters(script) == [0]


def test_a_client_that_does_not_know_the_state_is_sent_the_weights_once() -> None:
    other = refusal(0, Reason.OTHER_STATE)
    script = Script(here(1), here(0), ready(0), other, report(0), ready(1), refusal(1, Reason.OTHER_STATE), report(1))
    assert reporters(script) == [0, 1]
    assert [sent for sent in script.sent if sent[0] == 0] == [(0, b"FMZS"), (0, b"FMZT"), (0, b"FMZT")]


@pytest.mark.parametrize("reason", [Reason.STALE, Reason.FAILED])
def test_a_client_that_cannot_is_left_out(reason: Reason) -> None:
    assert reporters(Script(here(0), here(1), ready(0), ready(1), refusal(0, reason), report(1))) == [1]


def test_a_worker_that_is_new_is_set_up_again() -> None:
    script = Script(here(0), ready(0), refusal(0, Reason.NOT_SET_UP), ready(0), report(0))
    assert reporters(script) == [0]
    assert [kind for _, kind in script.sent] == [b"FMZS", b"FMZT", b"FMZS", b"FMZT"]


def test_what_cannot_be_read_is_no_report() -> None:
    assert reporters(Script(here(0), here(1), ready(0), ready(1), Arrival(0, Contact.HERE, b"?"), report(1))) == [1]


def test_if_all_refuse_the_round_ends_without_reports() -> None:
    """And the aggregation then says that they are too few."""
    failed = [refusal(client, Reason.FAILED) for client in (0, 1)]
    assert reporters(Script(here(0), here(1), ready(0), ready(1), *failed), min_clients=2) == []


def test_too_many_refused_setups_are_an_error_with_the_reasons() -> None:
    script = Script(here(0), refusal(0, Reason.FAILED))
    with pytest.raises(RunError, match="client 0: no"):
        engine(script, min_clients=2).run_round(PLAN, STATE)
