"""Replay, resume, catch-up and the published log equal training to the bit, whatever is combined with whatever."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmezo.engines.simulation import Simulation
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course, hash_of
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.messages import CatchUp, decode_task, encode_task
from fedmezo.federation.rates import SCALE_FREE, RateStrategy
from fedmezo.federation.robust import RULES
from fedmezo.federation.round import Federation, ServerState, close_round_, initial_state, plan_round
from fedmezo.federation.schedule import RateSchedule
from fedmezo.federation.server_optimizers import NO_MOMENTS, ServerOptimizer, moment_names
from fedmezo.records import ClientTask, RoundRecord
from fedmezo.runs.format import Header, server_line
from fedmezo.runs.journal import JOURNAL_FILE, JournalWriter, read_journal
from fedmezo.runs.log_file import PublishedLog, decode_log, encode_log
from fedmezo.runs.replay import rebuild_
from fedmezo.runs.resume import restore
from fedmezo.runs.snapshots import save_snapshot, snapshots_of
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.estimators.family import make_estimator
from fedmezo.zo.estimators.protocol import Settings
from fedmezo.zo.low_rank import directions_for
from fedmezo.zo.noise import Directions
from tests.toy import SIZE, Quadratic, ToyData, toy_segments

ROUNDS, STOPPED_AFTER, CLIENTS, SEED = 5, 2, 4, 99
START = torch.linspace(-1, 1, SIZE)
DATA = {client: ToyData(client, num_batches=2) for client in range(CLIENTS)}


@dataclass(frozen=True)
class Choices:
    estimator: str
    queries: int
    noise: str
    clip: float
    strategy: str
    schedule: str
    server: str
    cohort: int
    groups: int
    aggregation: str
    equal: bool
    trusting: bool

    @property
    def directions(self) -> Directions:
        """Compiled nowhere: there are few."""
        return directions_for(self.noise, 4, toy_segments(), 1, torch.device("cpu"))

    def federation(self) -> Federation:
        scale_free = self.strategy == SCALE_FREE
        chosen = Settings(1e-2, self.queries, self.directions, self.clip, scale_free)
        return Federation(
            seed=SEED,
            num_clients=CLIENTS,
            cohort_size=self.cohort,
            min_clients=1,
            equal_weights=self.equal,
            strategy=RateStrategy(self.strategy, 0.01, 0.004),
            rules=ReportRules("scalars", make_estimator(self.estimator, chosen, rows=2), 2, SIZE, most_examples=4),
            groups=self.groups,
            aggregation=self.aggregation,
            segments=toy_segments(),
            schedule=RateSchedule(self.schedule, ROUNDS, warmup_rounds=1, floor=0.1, step_rounds=2),
            server=ServerOptimizer(self.server, 0.5, 0.9, 0.99, 1e-3),
            trusting=self.trusting,
        )

    def header(self) -> Header:
        return Header(
            seed=SEED,
            rounds=ROUNDS,
            protocol="scalars",
            noise=self.noise,  # type: ignore[arg-type]  # one of three words
            rank=4,
            eps=1e-2,
            queries=self.queries,
            estimator=self.estimator,  # type: ignore[arg-type]  # one of three
            batch_size=2,
            scale_free=self.strategy == SCALE_FREE,
            direction_groups=self.groups,
            server_optimizer=server_line(self.federation().server),
            base="toy",
            base_hash="00" * 32,
            dtype="float32",
            adapter={"adapter_method": "lora"},
            theta_hash=state_hash(START),
            restored=False,
            data_hash="00" * 32,
            partition_hash="00" * 32,
            segments=toy_segments(),
        )


def choices_of(groups: int, strategies: list[str], aggregations: list[str]) -> st.SearchStrategy[Choices]:
    return st.builds(
        Choices,
        groups=st.just(groups),
        aggregation=st.sampled_from(aggregations),
        strategy=st.sampled_from(strategies),
        **ANY,
    )


ANY: dict[str, st.SearchStrategy[Any]] = dict(
    estimator=st.sampled_from(["two-point", "one-sided", "per-example"]),
    queries=st.sampled_from([1, 3]),
    noise=st.sampled_from(["gaussian", "rademacher", "low-rank"]),
    clip=st.sampled_from([0.0, 0.5]),
    schedule=st.sampled_from(["constant", "linear", "cosine", "step"]),
    server=st.sampled_from(["FedAvg", "FedAvgM", "FedAdam", "FedYogi"]),
    cohort=st.sampled_from([2, CLIENTS]),
    equal=st.booleans(),
    trusting=st.booleans(),
)
own = choices_of(0, ["frozen", "random", "round-wise", "five-round", "model-diff", "scale-free"], ["mean"])
one_group, two_groups = (choices_of(groups, ["frozen", "random"], ["mean", *RULES]) for groups in (1, 2))


def train(federation: Federation, state: ServerState, rounds: int) -> tuple[list[ServerState], list[RoundRecord]]:
    """States, the first included, and records of so many rounds."""
    estimator = federation.rules.estimator
    assert estimator is not None
    work = ZerothOrderClients(Quadratic(), estimator, SEED, "scalars", lanes=4)
    engine = Simulation(work, DATA, Downlink("scalars", SIZE, derivable=True), group_size=2)
    states, records = [state], []
    for _ in range(rounds):
        now = replace(states[-1], theta=states[-1].theta.clone())
        plan = plan_round(federation, now)
        after, record = close_round_(federation, now, plan, engine.run_round(plan, now).reports)
        states.append(after)
        records.append(record)
    return states, records


def same(state: ServerState, expected: ServerState) -> None:
    assert torch.equal(state.theta, expected.theta)
    assert state.hash == expected.hash == hash_of(expected.theta, expected.moments)
    assert state.histories == expected.histories
    assert state.moments.keys() == expected.moments.keys()
    assert all(torch.equal(state.moments[name], moment) for name, moment in expected.moments.items())


@settings(max_examples=40, deadline=None)
@given(own | one_group | two_groups)
def test_every_way_back_to_a_state_gives_its_bits(chosen: Choices) -> None:
    federation, header = chosen.federation(), chosen.header()
    states, records = train(federation, initial_state(START.clone()), ROUNDS)
    assert len({state.hash for state in states}) == ROUNDS + 1  # each round moves something
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = JournalWriter.create(folder / JOURNAL_FILE, header)
        for record in records:
            writer.append(record)
        journal = read_journal(folder / JOURNAL_FILE)
        assert (journal.header, journal.records) == (header, tuple(records))
        resumed(chosen, folder, states, records)
    replayed = rebuild_(START.clone(), journal.header, journal.records)
    assert torch.equal(replayed, states[-1].theta)
    log = decode_log(encode_log(PublishedLog(header, records, states[-1].hash)), "log")
    course, theta, moments = log.header.course_with(chosen.directions), START.clone(), NO_MOMENTS
    for record in log.records:
        moments = course.advance_(theta, moments, record)
    assert hash_of(theta, moments) == log.state_hash
    caught_up(course, states, records)


def resumed(chosen: Choices, folder: Path, states: list[ServerState], records: list[RoundRecord]) -> None:
    """From a snapshot, or from none, and the rounds behind it; and training goes on as if nothing had happened."""
    federation, saved = chosen.federation(), states[STOPPED_AFTER]
    journal = read_journal(folder / JOURNAL_FILE)
    same(restore(folder, journal, federation, START.clone()), states[-1])
    save_snapshot(snapshots_of(folder), STOPPED_AFTER, saved.theta, saved.hash, saved.moments)
    same(restore(folder, journal, federation, START.clone()), states[-1])
    stopped = read_journal(folder / JOURNAL_FILE, to_round=STOPPED_AFTER)
    again, written = train(federation, restore(folder, stopped, federation, START.clone()), ROUNDS - STOPPED_AFTER)
    assert written == records[STOPPED_AFTER:]
    same(again[-1], states[-1])


def caught_up(course: Course, states: list[ServerState], records: list[RoundRecord]) -> None:
    """A client that knows a state, or is sent one, follows the rounds as they are sent."""
    known = states[STOPPED_AFTER]
    vectors = tuple(known.moments[name] for name in sorted(known.moments))
    task = ClientTask(0, 0, 0.5, group=0 if records[0].groups else None)
    _, _, sent = decode_task(encode_task(task, known.hash, CatchUp((), known.theta, vectors)))
    assert sent.theta is not None
    theta, moments = sent.theta, dict(zip(moment_names(course.server), sent.moments, strict=True))
    way = CatchUp(tuple(records[STOPPED_AFTER:]))
    for record in decode_task(encode_task(task, known.hash, way))[2].records:
        moments = dict(course.advance_(theta, moments, record))
    assert hash_of(theta, moments) == states[-1].hash
