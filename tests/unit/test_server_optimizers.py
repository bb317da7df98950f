"""The server's optimisers against torch.optim, and against the paper's recurrences written out in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmezo.engines.simulation import Simulation
from fedmezo.errors import RunError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, ServerState, close_round_, initial_state, plan_round
from fedmezo.federation.server_optimizers import Moments, ServerOptimizer, server_step_
from fedmezo.runs.snapshots import load_moments, load_snapshot, save_snapshot
from fedmezo.zo.arithmetic import round_coefficient
from tests.toy import SIZE, Quadratic, ToyData, toy_segments, two_point

DELTAS = [torch.sin(torch.arange(SIZE) * (k + 1.3)) * 10.0 ** (-k) for k in range(4)]
START = torch.linspace(-1, 1, SIZE)


def moved(optimizer: ServerOptimizer) -> Tensor:
    theta = START.clone()
    moments: Moments = {}
    for delta in DELTAS:
        moments = server_step_(theta, delta, moments, optimizer)
    return theta


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.9), (0.3, 0.5), (1.0, 0.0)])
def test_fedavgm_is_torchs_sgd_with_the_update_as_minus_the_gradient(lr: float, momentum: float) -> None:
    point = START.clone().requires_grad_()
    reference = torch.optim.SGD([point], lr=round_coefficient(lr), momentum=round_coefficient(momentum))
    for delta in DELTAS:
        point.grad = -delta
        reference.step()
    found = moved(ServerOptimizer("FedAvgM", lr, momentum))
    assert torch.allclose(found, point.detach(), rtol=1e-6, atol=1e-7)  # the order of two float32 products


def by_the_paper(method: str, lr: float, beta1: float, beta2: float, tau: float) -> np.ndarray:
    """Reddi et al. 2021, algorithm 2, a coordinate at a time."""
    x = START.double().numpy().copy()
    m, v = np.zeros(SIZE), np.full(SIZE, tau**2)
    for delta in (d.double().numpy() for d in DELTAS):
        for i in range(SIZE):
            m[i] = beta1 * m[i] + (1 - beta1) * delta[i]
            square = delta[i] ** 2
            if method == "FedAdam":
                v[i] = beta2 * v[i] + (1 - beta2) * square
            else:
                v[i] = v[i] - (1 - beta2) * square * np.sign(v[i] - square)
            x[i] += lr * m[i] / (np.sqrt(v[i]) + tau)
    return x


@pytest.mark.parametrize("method", ["FedAdam", "FedYogi"])
@pytest.mark.parametrize("settings", [(0.1, 0.9, 0.99, 1e-3), (1.0, 0.0, 0.5, 0.1)])
def test_adaptive_servers_follow_the_papers_recurrences(method: str, settings: tuple[float, ...]) -> None:
    expected = by_the_paper(method, *settings)
    assert np.allclose(moved(ServerOptimizer(method, *settings)).numpy(), expected, rtol=2e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("method", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi"])
def test_a_step_leaves_delta_and_the_old_moments_alone(method: str) -> None:
    theta, delta = START.clone(), DELTAS[0].clone()
    first = server_step_(theta, delta, {}, ServerOptimizer(method))
    kept = {name: moment.clone() for name, moment in first.items()}
    server_step_(theta, delta, first, ServerOptimizer(method))
    assert torch.equal(delta, DELTAS[0])
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def rounds(server: ServerOptimizer, number: int, state: ServerState | None = None) -> ServerState:
    estimator = two_point(eps=1e-2)
    federation = Federation(
        seed=5, num_clients=3, cohort_size=3, min_clients=1, equal_weights=False,
        strategy=RateStrategy("frozen", 0.01, 0.0), rules=ReportRules("weights", estimator, 4, SIZE),
        segments=toy_segments(), server=server,
    )  # fmt: skip
    work = ZerothOrderClients(Quadratic(), estimator, 5, "weights")
    engine = Simulation(work, {c: ToyData(c) for c in range(3)}, Downlink("weights", SIZE, derivable=True))
    state = initial_state(START.clone()) if state is None else state
    for _ in range(number):
        plan = plan_round(federation, state)
        state, _ = close_round_(federation, state, plan, engine.run_round(plan, state).reports)
    return state


def test_fedavgm_without_momentum_is_fedavg() -> None:
    plain, other = rounds(ServerOptimizer(), 3), rounds(ServerOptimizer("FedAvgM", 1.0, 0.0), 3)
    assert torch.allclose(plain.theta, other.theta, atol=1e-7)  # theta + (a + b) against (theta + a) + b
    assert plain.moments == {}


@pytest.mark.parametrize("method", ["FedAvgM", "FedAdam", "FedYogi"])
def test_what_a_snapshot_keeps_is_enough_to_go_on(method: str, tmp_path: Path) -> None:
    server = ServerOptimizer(method, 0.1)
    whole, half = rounds(server, 4), rounds(server, 2)
    save_snapshot(tmp_path, 2, half.theta, half.hash, half.moments)
    theta, moments = load_snapshot(tmp_path, 2, half.hash), load_moments(tmp_path, 2)
    assert moments.keys() == half.moments.keys()
    resumed = rounds(server, 2, ServerState(2, theta, half.hash, half.histories, moments))
    assert torch.equal(resumed.theta, whole.theta)
    forgetful = rounds(server, 2, replace(half, theta=load_snapshot(tmp_path, 2, half.hash), moments={}))
    assert not torch.equal(forgetful.theta, whole.theta)


def test_damaged_moments_are_refused(tmp_path: Path) -> None:
    moments: Moments = {"first": torch.full((SIZE,), 3.0)}
    path = save_snapshot(tmp_path, 1, START, initial_state(START).hash, moments)
    content = path.read_bytes()
    at = content.index(torch.full((SIZE,), 3.0).numpy().tobytes())
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(RunError, match="damaged"):
        load_moments(tmp_path, 1)
    save_snapshot(tmp_path, 2, START, initial_state(START).hash)
    assert load_moments(tmp_path, 2) == {}
