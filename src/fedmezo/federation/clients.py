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
from typing import Protocol

import torch
from torch import Tensor

from fedmezo.federation.aggregate import WEIGHTS
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.records import Batch, ClientData, ClientTask, Differentiable, Report, Trainable
from fedmezo.zo.estimate import Estimator, perturb, projected_gradient
from fedmezo.zo.noise import Purpose, Stream, words
from fedmezo.zo.replay import Move, apply_, direction_stream, local_moves

BYTES_PER_ELEMENT = 2
KEPT_BYTES = 64 << 20
"""With one lane, directions of a step that take more are not kept: theta and one copy are all that is in memory."""


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

    task: ClientTask
    theta: Tensor  # (d,), this client's own
    batches: Sequence[Batch]
    scalars: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of each step that was not skipped
    num_examples: int = 0  # of the steps that were not skipped: a client weighs what it has learned from
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    """One direction of one client's step."""

    run: _LocalRun
    stream: Stream
    batch: Batch


@dataclass(frozen=True, slots=True)
class ZerothOrderClients:
    """Clients that take MeZO steps: two forward passes per direction, no gradient.

    Args:
        model: what is tuned.
        estimator: eps, queries, noise and clip.
        seed: run seed.
        protocol: `scalars` or `weights`, that is, what is reported.
        lanes: perturbed copies of theta in memory at a time, and evaluated in one call of the model.
        weight_decay: as in the paper's code, theta shrinks by rate x weight_decay x theta in each step; `weights` only.
        proximal: mu of FedProx: each step pulls theta by rate x mu towards where the round began; `weights` only.
    """

    model: Trainable
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
        device = self.model.device
        runs = [_LocalRun(task, theta.to(device, copy=True), data[task.client].batches(task.round)) for task in tasks]
        rows = min(self.lanes, 2 * self.estimator.queries * len(runs))
        copies = torch.empty(rows, len(theta), device=device)  # where perturbed copies are made
        origin = theta.to(device) if self.proximal else None
        probes = self._probes(runs, 0)
        while probes:
            probes = self._step_(runs, probes, copies, origin)
        return [self._report(run, theta, state_hash) for run in runs]

    def _step_(
        self, runs: Sequence[_LocalRun], probes: Sequence[_Probe], copies: Tensor, origin: Tensor | None
    ) -> list[_Probe]:
        """One step of each client that has one left; returns the next one's probes.

        These, and so their batches, are made while a GPU is at work on the losses. It is waited for once, to read them.
        """
        z = self._kept_directions(probes)
        losses = self._probe_losses(probes, z, copies)
        coming = self._probes(runs, probes[0].stream.step + 1)
        plus_minus = [(plus, minus) for plus, minus in losses.view(-1, 2).tolist()]
        queries = self.estimator.queries
        for first in range(0, len(probes), queries):
            rows = slice(first, first + queries)
            self._update_(probes[first], None if z is None else z[rows], plus_minus[rows], origin)
        return coming

    def _probes(self, runs: Sequence[_LocalRun], step: int) -> list[_Probe]:
        """The directions of a step, client by client, with their batches."""
        probes = []
        for run in runs:
            if step < len(run.batches):
                task, batch = run.task, run.batches[step]
                streams = [
                    direction_stream(self.seed, task.round, task.client, step, query)
                    for query in range(self.estimator.queries)
                ]
                probes += [_Probe(run, stream, batch) for stream in streams]
        return probes

    def _kept_directions(self, probes: Sequence[_Probe]) -> Tensor | None:
        """The directions of a step, (probes, d), generated once for both signs and the update.

        None where a single copy of theta is all that there is room for: then each use generates them by chunks.
        """
        theta = probes[0].run.theta
        if self.lanes == 1 and len(probes) * len(theta) * BYTES_PER_ELEMENT > KEPT_BYTES:
            return None
        return self.estimator.noise.directions([probe.stream for probe in probes], 0, len(theta), theta.device)

    def _probe_losses(self, probes: Sequence[_Probe], z: Tensor | None, copies: Tensor) -> Tensor:
        """The losses at theta + eps z and theta - eps z of each probe, (2 probes,)."""
        eps = self.estimator.step_size
        signed = [(index, amount) for index in range(len(probes)) for amount in (eps, -eps)]
        losses = []
        for first in range(0, len(signed), len(copies)):
            some = signed[first : first + len(copies)]
            for copy, (index, amount) in zip(copies, some, strict=False):
                self._perturb_(copy, probes[index], None if z is None else z[index], amount)
            losses.append(self.model.losses(copies[: len(some)], [probes[index].batch for index, _ in some]))
        return torch.cat(losses)

    def _perturb_(self, copy: Tensor, probe: _Probe, z: Tensor | None, amount: float) -> None:
        """Make `copy` theta + amount z."""
        if z is None:
            apply_(copy.copy_(probe.run.theta), [Move(probe.stream, -amount)], self.estimator.noise)
        else:
            perturb(probe.run.theta, z, amount, out=copy)

    def _update_(
        self, probe: _Probe, z: Tensor | None, pairs: Sequence[tuple[float, float]], origin: Tensor | None
    ) -> None:
        """theta_i -= c(rate, g) z for each query; a step with a loss that is not finite is skipped whole.

        `probe` is the client's first in this step, `origin` (d,) where the round began, for FedProx.
        """
        run = probe.run
        gradients = [projected_gradient(plus, minus, self.estimator) for plus, minus in pairs]
        finite = [g for g in gradients if g is not None]
        if len(finite) < len(gradients):
            run.skipped_steps += 1
            run.scalars += [0.0] * len(gradients)
            return
        run.num_examples += probe.batch.num_examples
        run.scalars += finite
        run.losses.append(sum(plus + minus for plus, minus in pairs) / (2 * len(pairs)))
        task = run.task
        if self.weight_decay:
            run.theta.mul_(1 - task.rate * self.weight_decay)
        if origin is not None:
            run.theta.sub_(run.theta - origin, alpha=task.rate * self.proximal)
        moves = local_moves(
            self.seed, task.round, task.client, task.rate, finite, len(finite), first_step=probe.stream.step
        )
        if z is None:
            apply_(run.theta, moves, self.estimator.noise)
        else:
            for move, row in zip(moves, z, strict=True):
                run.theta.sub_(row, alpha=move.coefficient)

    def _report(self, run: _LocalRun, theta: Tensor, state_hash: str) -> Report:
        as_update = self.protocol == WEIGHTS
        return Report(
            round=run.task.round,
            client=run.task.client,
            state_hash=state_hash,
            num_examples=run.num_examples,
            train_loss=_mean(run.losses),
            skipped_steps=run.skipped_steps,
            scalars=None if as_update else tuple(run.scalars),
            update=run.theta.to(theta.device).sub_(theta) if as_update else None,
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
