"""Messages are what is counted, read back equal, and catch-up takes the cheaper way with a bounded history."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.errors import RunError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import (
    CatchUp,
    bounded_history,
    catch_up,
    decode_report,
    decode_task,
    encode_report,
    encode_task,
    records_size,
    report_size,
    task_size,
)
from fedmezo.federation.round import ServerState
from fedmezo.records import ClientTask, Contribution, Report, RoundRecord
from fedmezo.zo.arithmetic import round_coefficient, round_scalar

HASH = "ab" * 32


def record(round_index: int, clients: int = 2, scalars: int = 3) -> RoundRecord:
    parts = tuple(
        Contribution(
            c,
            round_coefficient(1e-5 * (c + 1)),
            round_coefficient(1 / 3),
            0,
            0.0,
            0,
            tuple(round_scalar(i + 0.1) for i in range(scalars)),
        )
        for c in range(clients)
    )
    return RoundRecord(round_index, tuple(range(clients)), parts, (), "")


def test_a_scalar_report_costs_its_header_and_two_bytes_a_scalar() -> None:
    report = Report(3, 1, HASH, 30, 1.25, 0, scalars=(0.5,) * 30)
    assert len(encode_report(report)) == report_size(report) == 66 + 60
    assert asdict(decode_report(encode_report(report))) == asdict(report)


def test_an_update_report_carries_float32() -> None:
    report = Report(3, 1, HASH, 30, 1.25, 2, update=torch.linspace(0, 1, 7))
    data = encode_report(report)
    assert len(data) == report_size(report) == 66 + 28
    assert torch.equal(decode_report(data).update, report.update)  # type: ignore[arg-type]  # both are set


@given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9))
def test_a_task_message_reads_back_and_has_the_announced_size(rounds: int, clients: int, scalars: int) -> None:
    task, way = (
        ClientTask(9, 4, round_coefficient(3e-5)),
        CatchUp(tuple(record(r, clients, scalars) for r in range(rounds))),
    )
    data = encode_task(task, HASH, way)
    assert len(data) == task_size(task, way)
    read_task, read_hash, read_way = decode_task(data)
    assert (read_task.round, read_task.client, read_hash) == (9, 4, HASH)
    assert read_way.records == way.records
    assert round_coefficient(read_task.rate) == task.rate


def test_a_snapshot_task_carries_theta() -> None:
    theta = torch.linspace(-1, 1, 11)
    task = ClientTask(1, 0, 0.5)
    data = encode_task(task, HASH, CatchUp(theta=theta))
    assert len(data) == task_size(task, CatchUp(theta=theta))
    assert torch.equal(decode_task(data)[2].theta, theta)  # type: ignore[arg-type]  # it is set


@pytest.mark.parametrize("cut", [1, 5, 40, 70])
def test_cut_and_foreign_messages_are_refused(cut: int) -> None:
    report = encode_report(Report(3, 1, HASH, 30, 1.25, 0, scalars=(0.5,) * 30))
    with pytest.raises(RunError):
        decode_report(report[:-cut])
    with pytest.raises(RunError, match="no FMZR message"):
        decode_report(b"GET / HTTP/1.1" * 10)
    with pytest.raises(RunError, match="format version 9; this program reads 2"):
        decode_report(report[:4] + b"\x09" + report[5:])
    with pytest.raises(RunError):
        decode_task(encode_task(ClientTask(9, 4, 0.5), HASH, CatchUp((record(0, 3, 30),)))[:-cut])


def test_catch_up_takes_records_while_they_are_cheaper_than_theta() -> None:
    history = [record(r) for r in range(10)]
    size = records_size(history[4:])
    exact, smaller = torch.zeros(size // 4), torch.zeros(size // 4 - 1)
    assert catch_up(4, 10, exact, history).records == tuple(history[4:])
    assert catch_up(4, 10, smaller, history).theta is smaller
    assert asdict(catch_up(10, 10, smaller, history)) == asdict(CatchUp())


def test_catch_up_without_the_records_it_needs_sends_theta() -> None:
    theta = torch.zeros(10_000)
    history = [record(r) for r in range(5, 10)]
    assert catch_up(4, 10, theta, history).theta is theta
    assert catch_up(0, 10, theta, []).theta is theta
    assert catch_up(5, 10, theta, history).records == tuple(history)


def test_the_history_is_bounded_by_theta_however_long_a_client_is_away() -> None:
    num_parameters = 400
    downlink = Downlink("scalars", num_parameters, derivable=True)
    state = ServerState(0, torch.zeros(num_parameters), HASH, {})
    for round_index in range(300):
        downlink.close(record(round_index), reached=[0, 1])
        state = ServerState(round_index + 1, state.theta, HASH, {})
    assert records_size(downlink._history) <= 4 * num_parameters
    assert downlink.way(2, state).theta is state.theta  # away since the start
    assert downlink.way(0, state).records == (record(299),)


def test_bounded_history_keeps_the_newest() -> None:
    history = [record(r) for r in range(6)]
    one = records_size(history[:1])
    assert bounded_history(history, 2 * one // 4) == history[4:]


@pytest.mark.parametrize(("protocol", "derivable"), [("weights", True), ("scalars", False)])
def test_theta_is_sent_where_a_client_cannot_make_it(protocol: str, derivable: bool) -> None:
    state = ServerState(0, torch.zeros(5), HASH, {})
    assert Downlink(protocol, 5, derivable=derivable).way(0, state).theta is state.theta
    assert asdict(Downlink("scalars", 5, derivable=True).way(0, state)) == asdict(CatchUp())
