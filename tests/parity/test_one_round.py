"""The example, an implementation in numpy that shares no code with the package, against the package."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedmezo.engines.simulation import Simulation
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, close_round_, initial_state, plan_round
from tests.toy import SIZE, Quadratic, ToyData, toy_segments, two_point

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_round.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = spec_from_file_location("one_round", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 12345])
def test_five_rounds_agree_to_the_bit(example: ModuleType, seed: int) -> None:
    model, rate, eps = Quadratic(), 0.013, 1e-2
    data = {client: ToyData(client) for client in range(3)}
    federation = Federation(
        seed=seed,
        num_clients=3,
        cohort_size=3,
        min_clients=3,
        equal_weights=False,
        strategy=RateStrategy("frozen", rate, 0.0),
        rules=ReportRules("scalars", two_point(eps=eps), 4, SIZE),
        segments=toy_segments(),
    )
    work = ZerothOrderClients(model, two_point(eps=eps), seed, "scalars", lanes=3)
    engine = Simulation(work, data, Downlink("scalars", SIZE, derivable=True), group_size=3)

    def loss(theta: Any, batch: Any) -> float:
        return float(model.loss(torch.from_numpy(theta), batch))

    state = initial_state(torch.linspace(-1, 1, SIZE))
    theta = state.theta.numpy().copy()
    for round_index in range(5):
        plan = plan_round(federation, state)
        state, record = close_round_(federation, state, plan, engine.run_round(plan, state).reports)
        batches = [data[client].batches(round_index) for client in range(3)]
        theta, reports = example.one_round(loss, theta, batches, seed, round_index, rate, eps)
        assert [list(part.scalars or ()) for part in record.contributions] == reports
        assert example.state_hash(theta) == record.state_hash


def test_the_example_runs_and_learns() -> None:
    output = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True).stdout.splitlines()
    losses = [float(line.split()[4]) for line in output[:4]]
    assert losses[0] == pytest.approx(11 / 6, abs=1e-4)
    assert losses[-1] == pytest.approx(4 / 3, abs=0.05)  # the rate leaves some noise
    assert output[-1] == "each client sent 20 bytes of scalars per round; theta itself has 80"


def test_the_example_stays_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 150
