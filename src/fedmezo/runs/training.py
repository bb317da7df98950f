"""The rounds of a run on disk: train, evaluate, measure, and commit each round to the journal.

A round's journal line is its commit and is written last: whatever was written for a round that has no line is cut or
removed when the run is resumed.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedmezo.engines.rounds import Engine, RoundResult, closed_round_
from fedmezo.federation.aggregate import WEIGHTS
from fedmezo.federation.round import Federation, ServerState
from fedmezo.federation.trust import Trust, train_loss
from fedmezo.records import RoundPlan, RoundRecord
from fedmezo.results.console import RoundProgress, RoundStatus
from fedmezo.results.metrics import Metric, Sink, evaluated, is_accuracy, measured
from fedmezo.runs.budget import Budget
from fedmezo.runs.evaluate import Evaluable, Evaluation
from fedmezo.runs.journal import JournalWriter
from fedmezo.runs.own import Listener, RoundEvent
from fedmezo.runs.snapshots import delete_snapshots, save_snapshot, snapshot_rounds, snapshots_of
from fedmezo.runs.stopping import EarlyStopping
from fedmezo.zo.low_rank import LOW_RANK

logger = logging.getLogger(__name__)

ROUNDS_BETWEEN_SNAPSHOTS = 50
ELEMENTS_BETWEEN_SNAPSHOTS = 1 << 31
"""In a `scalars` run, what a resume has to replay at most: rounds, and elements of directions (half a minute)."""
LOSSES = ("train_loss", "skipped_steps")
"""What a run that hides clients or examples is not told."""
FASTER_OF_LOW_RANK = 32
"""How many times as many elements of low-rank directions are replayed in the same time."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is evaluated and when.

    Args:
        freq: every so many rounds, and after the last; 0 is never.
        measures: what is measured of a theta, by the name of the metric; empty for no evaluation.
        key: the metric that decides the best round.
        stopping: when the run ends early.
        by_client: whether the examples belong to clients, whose losses are then told apart.
    """

    freq: int
    measures: Mapping[str, Callable[[Tensor], Evaluation]]
    key: str
    stopping: EarlyStopping
    by_client: bool = True

    def due(self, round_index: int, last: int) -> bool:
        """Whether the state after so many rounds is evaluated."""
        return bool(self.freq and self.measures) and (round_index % self.freq == 0 or round_index == last)

    def cost(self, value: float) -> float:
        """What is the lower, the better the value of the key is."""
        return -value if is_accuracy(self.key) else value


@dataclass(slots=True, eq=False)
class Training:
    """A run in progress.

    Args:
        run_dir: the run's folder.
        rounds: how many rounds the run has.
        federation: the server's choices.
        engine: runs the clients.
        model: what is tuned and evaluated.
        evaluation: what is evaluated and when.
        save_freq: keep a snapshot every so many rounds; 0 or less keeps none of them.
        keep_initial: keep the snapshot of round 0, of a run whose initial theta cannot be derived.
        forward_passes_per_batch: of a client's local step.
        whole: the metric that says what a round would have sent without scalars.
        journal: where rounds are committed.
        sinks: where metrics go.
        listeners: who hears of each round, once it is committed.
        state: the server's.
        evaluations: (round, cost) of the key so far.
        hashes: state hash of every round so far; the first is the initial one.
        budget: what a private run may spend; None where nothing is spent.
    """

    run_dir: Path
    rounds: int
    federation: Federation
    engine: Engine
    model: Evaluable
    evaluation: EvaluationPlan
    save_freq: int
    keep_initial: bool
    forward_passes_per_batch: int
    whole: str
    journal: JournalWriter
    sinks: Sequence[Sink]
    listeners: Sequence[Listener]
    state: ServerState
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    budget: Budget | None = None

    @property
    def best_round(self) -> int:
        """The round with the lowest cost so far, the earliest of equals; without evaluations, the present one."""
        if not self.evaluations:
            return self.state.round
        return min(self.evaluations, key=lambda pair: (pair[1], pair[0]))[0]

    @property
    def finished(self) -> bool:
        """Whether no further round is due."""
        costs = [cost for _, cost in self.evaluations]
        return self.state.round >= self.rounds or self.is_spent or self.evaluation.stopping.should_stop(costs)

    @property
    def is_spent(self) -> bool:
        """Whether one more round would spend more privacy than the run has."""
        return self.budget is not None and not self.budget.allows(self.state.round + 1)

    def run(self, progress: RoundProgress, interrupted: Callable[[], bool]) -> None:
        """Run the rounds that are left, until the last, an early stop, or an interruption between two rounds."""
        if self.state.round == 0 and not self.evaluations:
            self._begin(progress)
        self._remove_old_snapshots()  # those of a process that was killed before it came to it
        while not self.finished and not interrupted():
            progress.update(self._round())
        if not self.finished:
            self._snapshot()

    def _begin(self, progress: RoundProgress) -> None:
        """Evaluate the model before training."""
        metrics = self._evaluate() if self.evaluation.due(0, self.rounds) else []
        self._write(metrics)
        if self.keep_initial or self.federation.rules.protocol == WEIGHTS:
            self._snapshot()
        self._tell(metrics)
        progress.update(_status(0, metrics))

    def _round(self) -> RoundStatus:
        started = time.monotonic()
        trusted = self.state.trust.share
        self.state, plan, record, result = closed_round_(self.engine, self.federation, self.state)
        if self.state.trust.share < trusted:
            logger.warning(_jump(record, self.state.trust))
        for refusal in record.refusals[len(result.refusals) :]:  # of the others the engine has told
            logger.warning("round %d: client %d was refused: %s", record.round, refusal.client, refusal.reason)
        if self.budget is not None:
            record = replace(record, epsilon=self.budget.spent(self.state.round))
        metrics = round_metrics(record, result, tells_losses=self.federation.tells_losses) + self._costs(
            len(plan.cohort), result.num_batches
        )
        if self.evaluation.due(self.state.round, self.rounds):
            metrics += self._evaluate()
        metrics.append(measured("seconds", time.monotonic() - started, round_index=self.state.round))
        self._write(metrics)
        self._commit(plan, record)
        self._tell(metrics)
        return _status(self.state.round, metrics)

    def _tell(self, metrics: Sequence[Metric]) -> None:
        for listener in self.listeners:
            listener(RoundEvent(self.state.round, tuple(metrics)))

    def _commit(self, plan: RoundPlan, record: RoundRecord) -> None:
        here = self.state.round
        if self._keeps(here) or self._rolling(here, record):
            self._snapshot()
        self.journal.append(record)
        self.hashes.append(record.state_hash)
        self.engine.close_round(plan, record)
        self._remove_old_snapshots()

    def _remove_old_snapshots(self) -> None:
        """Remove all but the latest and those that stay."""
        folder = snapshots_of(self.run_dir)
        saved = snapshot_rounds(folder)
        delete_snapshots(folder, [at for at in saved[:-1] if not self._keeps(at)])

    def _keeps(self, round_index: int) -> bool:
        """Whether the snapshot of a round stays."""
        if round_index == 0:
            return self.keep_initial
        asked_for = self.save_freq > 0 and round_index % self.save_freq == 0
        return asked_for or (bool(self.evaluations) and round_index == self.best_round)

    def _rolling(self, round_index: int, record: RoundRecord) -> bool:
        """Whether a snapshot is due that only the latest of is needed, to resume from."""
        rules = self.federation.rules
        low_rank = rules.estimator is not None and rules.estimator.settings.noise.name == LOW_RANK
        elements = ELEMENTS_BETWEEN_SNAPSHOTS * (FASTER_OF_LOW_RANK if low_rank else 1)
        interval = elements // max(1, record.num_coefficients * rules.num_parameters)
        return rules.protocol == WEIGHTS or round_index % max(1, min(interval, ROUNDS_BETWEEN_SNAPSHOTS)) == 0

    def _snapshot(self) -> None:
        state = self.state
        save_snapshot(snapshots_of(self.run_dir), state.round, state.theta, state.hash, state.moments)

    def _evaluate(self) -> list[Metric]:
        metrics = []
        for name, measure in self.evaluation.measures.items():
            result = measure(self.state.theta)
            metrics.append(evaluated(name, result.value, round_index=self.state.round))
            for client, value in result.client_values.items() if self.evaluation.by_client else ():
                metrics.append(measured(name, value, round_index=self.state.round, client=client))
            if name == self.evaluation.key:
                self.evaluations.append((self.state.round, self.evaluation.cost(result.value)))
        return metrics

    def _costs(self, clients: int, num_batches: int) -> list[Metric]:
        here = self.state.round
        whole = 2 * clients * self.state.theta.element_size() * self.federation.rules.num_parameters
        return [
            measured(self.whole, whole, round_index=here),
            measured("forward_passes", num_batches * self.forward_passes_per_batch, round_index=here),
            measured("peak_memory", peak_memory(self.model.device), round_index=here),
        ]

    def _write(self, metrics: Sequence[Metric]) -> None:
        for sink in self.sinks:
            sink.write(metrics)


def round_metrics(record: RoundRecord, result: RoundResult, *, tells_losses: bool = True) -> list[Metric]:
    """What a closed round measured, per client or group and over all; its state is that of round + 1.

    Where there are groups nothing is told of single clients: a round has as many lines whatever their number.
    """
    here = record.round + 1
    metrics, overall = _of_groups(record) if record.groups else _of_clients(record)
    for name, by_client in (("bytes_up", result.bytes_up), ("bytes_down", result.bytes_down)):
        if not record.groups:
            metrics += [measured(name, count, round_index=here, client=client) for client, count in by_client.items()]
        metrics.append(measured(name, sum(by_client.values()), round_index=here))
    overall = {"train_loss": train_loss(record)} | overall | {"refused_reports": len(record.refusals)}
    if record.epsilon is not None:
        overall["epsilon"] = record.epsilon
    metrics += [measured(name, value, round_index=here) for name, value in overall.items()]
    return metrics if tells_losses else [metric for metric in metrics if metric.name not in LOSSES]


def _of_clients(record: RoundRecord) -> tuple[list[Metric], dict[str, float]]:
    """What is known of each client, and of all of them."""
    parts, metrics = record.contributions, []
    for part in parts:
        values: dict[str, float] = {
            "train_loss": part.train_loss,
            "rate": part.rate,
            "skipped_steps": part.skipped_steps,
            **_mean_size(part.scalars),
        }
        metrics += [
            measured(name, value, round_index=record.round + 1, client=part.client) for name, value in values.items()
        ]
    return metrics, {
        "rate": sum(part.rate for part in parts) / len(parts),
        "skipped_steps": sum(part.skipped_steps for part in parts),
        **_mean_size([g for part in parts for g in part.scalars or ()]),
    }


def _of_groups(record: RoundRecord) -> tuple[list[Metric], dict[str, float]]:
    """What is known of each direction group, and of all of them."""
    metrics = []
    for part in record.groups:
        values = {"train_loss": part.train_loss, "clients": part.clients, "skipped_steps": part.skipped_steps}
        metrics += [
            measured(name, value, round_index=record.round + 1, group=part.group) for name, value in values.items()
        ]
    clients = sum(part.clients for part in record.groups)
    overall: dict[str, float] = {
        "rate": record.common_rate,
        "clients": clients,
        "skipped_steps": sum(part.skipped_steps for part in record.groups),
    }
    if clipped := [part.clipped * part.clients for part in record.groups if part.clipped is not None]:
        overall["clipped_share"] = sum(clipped) / clients
    return metrics, overall


def _jump(record: RoundRecord, trust: Trust) -> str:
    return (
        f"round {record.round}: the train loss jumps to {train_loss(record):.4g} (up to {trust.limit:.4g} would be no "
        f"jump): the round is not taken, and rates are {trust.share:.3g} of what they would be (train.trust)"
    )


def peak_memory(device: torch.device) -> int:
    """The largest memory in use so far in bytes: of the GPU where there is one, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mean_size(scalars: Sequence[float] | None) -> dict[str, float]:
    return {"projected_gradient": sum(map(abs, scalars)) / len(scalars)} if scalars else {}


def _status(round_index: int, metrics: Sequence[Metric]) -> RoundStatus:
    overall = {metric.name: metric.value for metric in metrics if metric.is_overall}
    names = ("train_loss", "val_loss", "test_loss", "val_accuracy", "test_accuracy", "rate", "epsilon")
    return RoundStatus(round_index, **{name: overall[name] for name in names if name in overall})
