"""Client work: the local steps of a round. One protocol, two implementations, run by whichever engine.

Work is done for a group of clients at once, because zeroth-order steps of several clients can share one forward over
the frozen base (lanes). A group of one is the sequential form, and a client's result does not depend on its group
beyond the last bits of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from fedmezo.federation.aggregate import WEIGHTS
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.records import Batch, ClientData, ClientTask, Differentiable, Report
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.local import LocalThetas, Probe, Tunable
from fedmezo.zo.noise import Purpose, Stream, words
from fedmezo.zo.replay import Address, Pace


class ClientWork(Protocol):
    """What clients do between receiving theta and reporting."""

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """Run the local steps of a group of clients, all starting from theta (d,), which is left as it is.

        Args:
            tasks: one per client.
            theta: (d,) float32, the state before the round; anywhere, such as on the host of a GPU.
            state_hash: of theta.
            data: the examples of each client named in `tasks`.
        """
        ...


@dataclass(slots=True, eq=False)
class _LocalRun:
    """One zeroth-order client in the middle of its round."""

    member: int  # its place in the group
    task: ClientTask
    address: Address  # of its directions
    batches: Sequence[Batch]
    scalars: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of each step that was not skipped
    num_examples: int = 0  # of the steps that were not skipped: a client weighs what it has learned from
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """The next step of one client."""

    run: _LocalRun
    index: int
    batch: Batch
    probes: Sequence[Probe]


@dataclass(frozen=True, slots=True)
class ZerothOrderClients:
    """Clients whose steps take forward passes alone, no gradient.

    Args:
        model: what is tuned.
        estimator: which losses a step asks for, and where they lead.
        seed: run seed.
        protocol: `scalars` or `weights`, that is, what is reported.
        lanes: perturbed copies of theta in memory at a time, and evaluated in one call of the model.
        weight_decay: as in the paper's code, theta shrinks by rate x weight_decay x theta in each step; `weights` only.
        proximal: mu of FedProx: each step pulls theta by rate x mu towards where the round began; `weights` only.
    """

    model: Tunable
    estimator: Estimator
    seed: int
    protocol: str
    lanes: int = 1
    weight_decay: float = 0.0
    proximal: float = 0.0

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """Run the group in lock-step, one local step of every client after the other; see `ClientWork.run`."""
        addresses = [Address(self.seed, task.round, task.owner) for task in tasks]
        runs = [
            _LocalRun(member, task, address, data[task.client].batches(task.round))
            for member, (task, address) in enumerate(zip(tasks, addresses, strict=True))
        ]
        thetas = self.model.local_thetas(theta, len(runs), self.estimator.settings.noise, self.lanes)
        steps = self._steps(runs, 0)
        while steps:
            steps = self._walk_(thetas, runs, steps)
        return [self._report(run, thetas, state_hash) for run in runs]

    def _walk_(self, thetas: LocalThetas, runs: Sequence[_LocalRun], steps: Sequence[_Step]) -> list[_Step]:
        """Take one step of each client that has one left; returns the next ones.

        These, and so their batches, are made while a GPU is at work on the losses. It is waited for once, to read them.
        """
        members = [step.run.member for step in steps for _ in step.probes]
        probes = [probe for step in steps for probe in step.probes]
        losses = thetas.losses(members, probes) if probes else torch.empty(0)  # batches drawn at random may be empty
        coming = self._steps(runs, steps[0].index + 1)
        values = iter(losses.tolist())
        for step in steps:
            self._move_(thetas, step, list(islice(values, len(step.probes))))
        return coming

    def _steps(self, runs: Sequence[_LocalRun], index: int) -> list[_Step]:
        """The steps of this number, of each client that has so many, with their batches."""
        steps = []
        for run in runs:
            if index < len(run.batches):
                batch = run.batches[index]
                steps.append(_Step(run, index, batch, self.estimator.probes(run.address, index, batch)))
        return steps

    def _move_(self, thetas: LocalThetas, step: _Step, losses: Sequence[float]) -> None:
        """Move a client's theta as its losses say; a step with a loss that is not finite is skipped whole."""
        run, task = step.run, step.run.task
        scalars = self.estimator.scalars(losses)
        if scalars is None:
            run.skipped_steps += 1
            run.scalars += [0.0] * self.estimator.directions
            return
        run.num_examples += step.batch.num_examples
        run.scalars += scalars
        run.losses.append(self.estimator.train_loss(losses))
        if self.weight_decay:
            thetas.shrink_(run.member, 1 - task.rate * self.weight_decay)
        if self.proximal:
            thetas.pull_(run.member, task.rate * self.proximal)
        pace = Pace(task.rate, task.size)
        thetas.move_(run.member, self.estimator.moves(pace, run.scalars, run.address, from_step=step.index))

    def _report(self, run: _LocalRun, thetas: LocalThetas, state_hash: str) -> Report:
        as_update = self.protocol == WEIGHTS
        return Report(
            round=run.task.round,
            client=run.task.client,
            state_hash=state_hash,
            num_examples=run.num_examples,
            train_loss=_mean(run.losses),
            skipped_steps=run.skipped_steps,
            scalars=None if as_update else tuple(run.scalars),
            update=thetas.take_update(run.member) if as_update else None,
        )


@dataclass(frozen=True, slots=True)
class FirstOrderClients:
    """Clients that back-propagate: the FedAvg that the paper compares with. They report weights.

    Args:
        model: what is tuned, dropout on.
        optimizer: makes the optimiser and scheduler of one round; nothing of it is kept between rounds.
        seed: run seed, for dropout.
        grad_clip: largest L2 norm of a gradient; 0 for no limit.
        grad_accum_count: batches that one optimiser step averages over.
        loss_scaling: scale the loss dynamically, as float16 gradients need.
        proximal: mu of FedProx: mu (theta - theta of the round) is part of every gradient.
    """

    model: Differentiable
    optimizer: OptimizerFactory
    seed: int
    grad_clip: float = 0.0
    grad_accum_count: int = 1
    loss_scaling: bool = False
    proximal: float = 0.0

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """Run the clients one after the other; see `ClientWork.run`."""
        return [self._run_one(task, theta, state_hash, data[task.client].batches(task.round)) for task in tasks]

    def _run_one(self, task: ClientTask, theta: Tensor, state_hash: str, batches: Sequence[Batch]) -> Report:
        self.model.load(theta)
        with self._dropout_of(task):
            losses = self._steps(task.rate, batches)
        finite = [loss for loss in losses if math.isfinite(loss)]
        used = [batch for i, batch in enumerate(batches) if math.isfinite(losses[i // self.grad_accum_count])]
        return Report(
            round=task.round,
            client=task.client,
            state_hash=state_hash,
            num_examples=sum(batch.num_examples for batch in used),
            train_loss=_mean(finite),
            skipped_steps=len(losses) - len(finite),
            update=self.model.flat().to(theta.device).sub_(theta),
        )

    @contextmanager
    def _dropout_of(self, task: ClientTask) -> Iterator[None]:
        """Torch's generators, seeded for this client and round, and put back afterwards."""
        device = self.model.device
        low, high = words(Stream(self.seed, Purpose.DROPOUT, task.round, task.client), 0, 2).tolist()
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            torch.manual_seed(low | high << 32)
            yield

    def _steps(self, rate: float, batches: Sequence[Batch]) -> list[float]:
        """Optimise over the batches and return the loss of each optimiser step."""
        parameters = self.model.parameters()
        origins = [parameter.detach().clone() for parameter in parameters] if self.proximal else []
        optimizer, scheduler = self.optimizer.build(parameters, rate, -(-len(batches) // self.grad_accum_count))
        scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.loss_scaling)
        losses = []
        for first in range(0, len(batches), self.grad_accum_count):
            optimizer.zero_grad(set_to_none=True)
            loss = self._accumulate(batches[first : first + self.grad_accum_count], scaler)
            losses.append(loss)
            if math.isfinite(loss):
                if self.grad_clip > 0 or self.proximal:
                    scaler.unscale_(optimizer)
                self._pull_(parameters, origins)
                if self.grad_clip > 0:
                    torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)
                scaler.step(optimizer)
                scaler.update()
                if scheduler is not None:
                    scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return losses

    def _pull_(self, parameters: Sequence[Tensor], origins: Sequence[Tensor]) -> None:
        """Add the gradient of FedProx's mu/2 |theta - theta of the round|^2; no origins, no pull."""
        for parameter, origin in zip(parameters, origins, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - origin, alpha=self.proximal)

    def _accumulate(self, batches: Sequence[Batch], scaler: torch.amp.GradScaler) -> float:
        """Add up the gradient of the mean loss over some batches; returns that loss."""
        total = 0.0
        for batch in batches:
            loss = self.model.training_loss(batch) / len(batches)
            torch.autograd.backward(scaler.scale(loss))
            total += float(loss.detach())
        return total


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
