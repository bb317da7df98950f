"""This package's own methods, zeroth and first order: the round of any run, without its files."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.convergence.task import Progress, Task
from fedmezo.config import Config
from fedmezo.engines.rounds import closed_round_
from fedmezo.engines.simulation import Simulation
from fedmezo.errors import TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import initial_state
from fedmezo.runs import assemble
from fedmezo.zo.noise import Purpose, Stream
from fedmezo.zo.rounding import round_randomly_

PASSES_OF_A_STEP_BACK = 3
"""A forward pass, and a backward pass of twice its arithmetic."""


def configured(task: Task, rate: float) -> Iterator[Progress]:
    """The method of the task's own configuration, at another rate; ends where no report is usable."""
    return _rounds(task, _with_rate(task.config, rate))


def at_server_rate(task: Task, rate: float) -> Iterator[Progress]:
    """The method of the task's own configuration, with another rate of the server's optimiser."""
    fedopt = task.config.fedopt.model_copy(update={"lr_server": rate})
    return _rounds(task, task.config.model_copy(update={"fedopt": fedopt}))


def _rounds(task: Task, config: Config) -> Iterator[Progress]:
    federation = assemble.make_federation(config, task.model)
    rules = federation.rules
    downlink = Downlink(rules.protocol, rules.num_parameters, derivable=True)
    at_once = assemble.clients_at_once(config, task.model)
    engine = Simulation(assemble.make_work(config, task.tuned), task.shards, downlink, at_once)
    per_batch = rules.estimator.passes if rules.estimator else PASSES_OF_A_STEP_BACK
    state, passes, sent = initial_state(task.tuned.theta.clone()), 0, 0
    while True:
        try:
            state, plan, record, result = closed_round_(engine, federation, state)
        except TrainingError:
            return
        engine.close_round(plan, record)
        passes += per_batch * result.num_batches
        sent += sum(result.bytes_up.values()) + sum(result.bytes_down.values())
        yield Progress(passes, sent, state.theta)


def bfloat16_at_random(task: Task, rate: float) -> Iterator[Progress]:
    """The same with theta rounded to bfloat16 after each round, up or down at random."""
    task.tuned.theta.copy_(task.tuned.theta.bfloat16())
    for index, progress in enumerate(configured(task, rate)):
        round_randomly_(progress.theta, Stream(task.config.seed, Purpose.ROUNDING, index), 0)
        yield progress


def bfloat16_to_nearest(task: Task, rate: float) -> Iterator[Progress]:
    """The same with theta rounded to the nearest bfloat16 after each round."""
    task.tuned.theta.copy_(task.tuned.theta.bfloat16())
    for progress in configured(task, rate):
        progress.theta.copy_(progress.theta.bfloat16())
        yield progress


def _with_rate(config: Config, rate: float) -> Config:
    optimizer = config.train.optimizer.model_copy(update={"lr": rate})
    train = config.train.model_copy(update={"optimizer": optimizer, "lr_width": rate / 2})
    return config.model_copy(update={"train": train})
