"""What one dishonest client among three or ten can do to the quickstart, within the server's limits and without them.

Every lie is told in every round, and nobody is barred for it: a refused report is only left out. With `--honest`,
how far apart the reports of honest clients are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from rich.console import Console

from benchmarks.stage import ONE_SIDED
from fedmezo.config import load_config
from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.rates import ClientHistory, mean_square
from fedmezo.federation.round import ServerState, close_round_, initial_state, plan_round
from fedmezo.records import Report
from fedmezo.runs import assemble
from fedmezo.runs.evaluate import evaluate

LIAR = 1
MAX_RATIO = 5.0
WITHIN = 4.0
"""Times as large as its scalars are: what the limit lets pass of a client that is like the others."""

Lie = Callable[[Report], Report]


@dataclass(frozen=True, slots=True)
class Case:
    """A lie, and whether the server limits it."""

    name: str
    lie: Lie
    limited: bool = True
    clipped: bool = True


def times(factor: float) -> Lie:
    """Scalars that are so many times as large."""
    return lambda made: replace(made, scalars=tuple(factor * g for g in made.scalars or ()))


def clipped_up(made: Report) -> Report:
    """Every scalar against its sign, as large as the quickstart's clip allows."""
    largest = max(map(abs, made.scalars or (0.0,)))
    return replace(made, scalars=tuple(-largest if g > 0 else largest for g in made.scalars or ()))


CASES = (
    Case("honest", lambda made: made),
    Case("signs turned", times(-1.0)),
    Case("signs turned, each as large as the clip", clipped_up),
    Case("4,294,967,295 examples, unlimited", lambda made: replace(made, num_examples=2**32 - 1), limited=False),
    Case("4,294,967,295 examples", lambda made: replace(made, num_examples=2**32 - 1)),
    Case("no clip: honest", lambda made: made, clipped=False),
    Case("no clip: x1024, unlimited", times(1024.0), limited=False, clipped=False),
    Case("no clip: x1024", times(1024.0), clipped=False),
    Case("no clip: signs turned, x4", times(-WITHIN), clipped=False),
)


class Bench:
    """The quickstart over some clients, whose model and data serve all cases."""

    def __init__(self, clients: int, words: Sequence[str]) -> None:
        self.clients = clients
        self.words = [f"federate.client_num={clients}", *ONE_SIDED, *words]
        self.config = load_config(None, self.words).config
        self.tuned = assemble.load_model(self.config)
        self.holdings = assemble.load_holdings(self.config, self.tuned.tokenizer, Console(quiet=True))
        self.nearest = (0.0, 0.0, 0.0)  # the report that came nearest to its limit: see `apart`

    def play(self, case: Case) -> tuple[float, int]:
        """Test loss at the end, infinite if the run failed, and how many reports were refused."""
        changes = [] if case.clipped else ["train.zo.clip=0", "train.optimizer.lr=0.01"]
        config = load_config(None, [*self.words, *changes]).config
        federation = assemble.make_federation(config, self.tuned.model)
        rules = replace(federation.rules, max_ratio=MAX_RATIO if case.limited else 0.0)
        if not case.limited:
            rules = replace(rules, most_examples=None)
        federation = replace(federation, rules=rules)
        downlink = Downlink(rules.protocol, rules.num_parameters, derivable=True)
        shards = assemble.make_shards(config, self.holdings, self.tuned.model.device)
        engine = Simulation(assemble.make_work(config, self.tuned), shards, downlink)
        state, refused = initial_state(self.tuned.theta.clone()), 0
        for _ in range(config.federate.total_round_num):
            plan = plan_round(federation, state)
            reports = [
                case.lie(made) if made.client == LIAR else made for made in engine.run_round(plan, state).reports
            ]
            self.nearest = max([self.nearest, *apart(state, reports)])
            try:
                state, record = close_round_(federation, state, plan, reports)
            except TrainingError:
                return float("inf"), refused
            refused += len(record.refusals)
            engine.close_round(plan, record)
        test = self.holdings.partition.parts["test"]
        return evaluate(self.tuned.model, state.theta, self.holdings.dataset, test).value, refused


def apart(state: ServerState, reports: Sequence[Report]) -> list[tuple[float, float, float]]:
    """Of each report, by its scalars and those of its client's last rounds: share of its limit, size, and limit.

    Size and limit are in medians of the reports; see `federation.aggregate`.
    """
    powers = [
        [*state.histories.get(made.client, ClientHistory()).powers, mean_square(made.scalars or ())] for made in reports
    ]
    sizes = [math.sqrt(sum(known) / len(known)) for known in powers]
    found = []
    for made, known, size in zip(reports, powers, sizes, strict=True):
        limit = MAX_RATIO * 10 ** (2 / (len(known) * len(made.scalars or ())))
        found.append((size / median_low(sizes) / limit, size / median_low(sizes), limit))
    return found


def show_honest(words: Sequence[str]) -> None:
    """How near to its limit any report of honest clients comes; one-sided steps are all of one size."""
    for clients in (3, 10):
        for steps in (1, 20):
            changes = ["train.zo.estimator=two-point", f"train.local_update_steps={steps}"]
            bench = Bench(clients, [*words, *changes])
            _, refused = bench.play(CASES[0])
            _, size, limit = bench.nearest
            rounds = bench.config.federate.total_round_num
            print(
                f"{clients} honest clients, {steps} steps, {rounds} rounds: the nearest to its limit has {size:.2f} "
                f"times the median where {limit:.2f} are allowed, {refused} reports refused",
                flush=True,
            )


def main() -> None:
    """Play every case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="five rounds instead of the quickstart's thirty")
    parser.add_argument("--honest", action="store_true", help="how far apart honest reports are, instead")
    asked = parser.parse_args()
    words = ["federate.total_round_num=5"] if asked.quick else []
    if asked.honest:
        show_honest(words)
        return
    for clients in (3, 10):
        bench = Bench(clients, words)
        for case in CASES:
            loss, refused = bench.play(case)
            print(f"one of {clients}: {case.name}: test loss {loss:.4f}, {refused} reports refused", flush=True)


if __name__ == "__main__":
    main()
