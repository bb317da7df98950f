"""Trust in the rate: what counts as a jump, what follows, and that a rate far too large no longer ends a run."""

import math

import pytest
import torch

from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, ServerState, close_round_, initial_state, plan_round, replay_round_
from fedmezo.federation.server_optimizers import ServerOptimizer
from fedmezo.federation.trust import WINDOW, Trust
from fedmezo.records import RoundRecord
from tests.toy import SIZE, Quadratic, ToyData, toy_segments, two_point


def trusted(*losses: float) -> Trust:
    trust = Trust()
    for loss in losses:
        trust = trust.after(loss)
    return trust


def test_what_a_few_batches_vary_by_changes_nothing() -> None:
    assert trusted().limit == math.inf
    assert trusted(1.0).limit == 1.5
    noisy = trusted(1.0, 0.3, 0.02, 0.3, 0.05, 0.45, 0.8)
    assert (noisy.share, noisy.limit) == (1.0, 1.5)
    assert len(trusted(*[1.0] * 20).losses) == WINDOW
    assert trusted(1.0, *[0.1] * 8).limit == 0.2


def test_a_jump_halves_the_rate_and_a_second_one_is_a_new_level() -> None:
    once = trusted(1.0, 1.1, 3.0)
    assert once == Trust(0.5, 1.0, (1.0, 1.1), dropped=True)
    assert once.takes(3.0)
    assert once.after(3.0) == Trust(0.5, 1.0, (3.0,))
    assert once.after(1.0) == Trust(0.5, 1.0, (1.0, 1.1, 1.0))
    assert once.after(3.0).after(2.0) == Trust(0.25, 1.0, (3.0,), dropped=True)  # worse than where it began


def federation(rate: float, protocol: str = "scalars", server: str = "FedAvg", *, trusting: bool = False) -> Federation:
    return Federation(
        seed=3,
        num_clients=3,
        cohort_size=3,
        min_clients=1,
        equal_weights=False,
        strategy=RateStrategy("frozen", rate, 0.0),
        rules=ReportRules(protocol, two_point(eps=1e-2), 4, SIZE),
        segments=toy_segments(),
        trusting=trusting,
        server=ServerOptimizer(server),
    )


def train(chosen: Federation, rounds: int) -> tuple[ServerState, list[RoundRecord]]:
    estimator = chosen.rules.estimator
    assert estimator is not None
    protocol = chosen.rules.protocol
    work = ZerothOrderClients(Quadratic(), estimator, 3, protocol, lanes=6)
    engine = Simulation(work, {c: ToyData(c) for c in range(3)}, Downlink(protocol, SIZE, derivable=True), 3)
    state, records = initial_state(torch.linspace(-1, 1, SIZE)), []
    for _ in range(rounds):
        plan = plan_round(chosen, state)
        state, record = close_round_(chosen, state, plan, engine.run_round(plan, state).reports)
        records.append(record)
    return state, records


@pytest.mark.parametrize("protocol", ["scalars", "weights"])
def test_a_rate_that_diverges_is_brought_down_until_it_learns(protocol: str) -> None:
    with pytest.raises(TrainingError, match="which no model has"):
        train(federation(0.4, protocol, trusting=True), 20)
    state, records = train(federation(0.4, protocol), 60)
    assert float(state.theta.norm()) < 10
    assert state.trust.share < 1
    assert records[-1].contributions[0].rate == pytest.approx(0.4 * state.trust.share, rel=2**-15)
    losses = [record.contributions[0].train_loss for record in records]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("server", ["FedAvg", "FedAvgM", "FedAdam"])
def test_a_round_that_is_not_taken_leaves_the_whole_state(server: str) -> None:
    chosen = federation(0.3, server=server)
    state, records = train(chosen, 12)
    dropped = [record.round for record in records if not any(part.weight for part in record.contributions)]
    assert dropped
    hashes = [record.state_hash for record in records]
    assert all(hashes[index] == hashes[index - 1] for index in dropped)
    again = initial_state(torch.linspace(-1, 1, SIZE))
    for record in records:
        again = replay_round_(chosen, again, record)
    assert again.hash == state.hash
    assert again.trust == state.trust
    assert again.histories == state.histories
