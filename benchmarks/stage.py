"""Many short federations over the quickstart's model and data, in one process: what several benchmarks play on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from fedmezo.config import Config, load_config
from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import Federation, ServerState, close_round_, initial_state, plan_round
from fedmezo.records import Report, RoundPlan, RoundRecord
from fedmezo.runs import assemble
from fedmezo.runs.evaluate import evaluate

ONE_SIDED = ("train.zo.estimator=one-sided", "train.zo.queries=4", "train.optimizer.lr=0.06", "train.lr_width=0.03")
"""Steps whose scalars the dishonest clients' benchmarks tell lies about, whatever the quickstart's own are."""
PLAIN = (*ONE_SIDED, "train.trust=False", "train.schedule.type=constant", "model.dtype=float32")
"""The same, with nothing that makes up for a rate that is too high."""

Lie = Callable[[RoundPlan, Sequence[Report]], Sequence[Report]]
"""From the plan of a round and all honest reports to what the server gets."""


Change = Callable[[Federation], Federation]
"""What the server does otherwise than the configuration says."""


def unchanged(federation: Federation) -> Federation:
    """What it says."""
    return federation


def honest(plan: RoundPlan, reports: Sequence[Report]) -> Sequence[Report]:
    """What the clients found."""
    return reports


class Stage:
    """A model and divided data that serve all runs.

    Args:
        words: keys that differ from the quickstart's, of all runs.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = (*PLAIN, *words)
        config = self.config()
        self.tuned = assemble.load_model(config)
        self.holdings = assemble.load_holdings(config, self.tuned.tokenizer, Console(quiet=True))
        assemble.use_lanes(config, self.tuned, self.holdings.dataset)

    def config(self, *words: str) -> Config:
        """The configuration with further keys."""
        return load_config(None, [*self.words, *words]).config

    def rounds(
        self, config: Config, lie: Lie = honest, change: Change = unchanged
    ) -> Iterator[tuple[ServerState, RoundRecord]]:
        """The state after each round and its record; ends early where no report is usable."""
        federation = change(assemble.make_federation(config, self.tuned.model))
        downlink = Downlink(federation.rules.protocol, federation.rules.num_parameters, derivable=True)
        shards = assemble.make_shards(config, self.holdings, self.tuned.model.device)
        at_once = assemble.clients_at_once(config, self.tuned.model)
        engine = Simulation(assemble.make_work(config, self.tuned), shards, downlink, at_once)
        state = initial_state(self.tuned.theta.clone())
        for _ in range(config.federate.total_round_num):
            plan = plan_round(federation, state)
            reports = lie(plan, engine.run_round(plan, state).reports)
            try:
                state, record = close_round_(federation, state, plan, reports)
            except TrainingError:
                return
            engine.close_round(plan, record)
            yield state, record

    def final_loss(self, config: Config, lie: Lie = honest, change: Change = unchanged) -> float:
        """Test loss after the last round; infinite where a round had no usable report."""
        state, rounds = initial_state(self.tuned.theta), 0
        for state, _ in self.rounds(config, lie, change):  # noqa: B007 (the last one counts)
            rounds += 1
        return self.loss(state.theta) if rounds == config.federate.total_round_num else float("inf")

    def loss(self, theta: Tensor) -> float:
        """Test loss."""
        test = self.holdings.partition.parts["test"]
        return evaluate(self.tuned.model, theta, self.holdings.dataset, test).value


@dataclass(frozen=True, slots=True)
class Results:
    """Lines of JSON, one for each thing that was measured: what is there is not measured again.

    Args:
        path: the file.
    """

    path: Path

    def done(self) -> dict[str, dict[str, float]]:
        """What was measured, by its name."""
        if not self.path.exists():
            return {}
        return {line["name"]: line["values"] for line in map(json.loads, self.path.read_text().splitlines())}

    def measure(self, name: str, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What was measured under this name, now or before."""
        known = self.done()
        if name not in known:
            known[name] = work()
            with self.path.open("a") as file:
                file.write(json.dumps({"name": name, "values": known[name]}) + "\n")
            print(name, json.dumps(known[name]), flush=True)
        return known[name]
