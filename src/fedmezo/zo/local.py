"""The thetas of clients in the middle of a round, and the losses that their steps ask for.

A client says what it wants to know (a probe) and where it goes (moves); how a theta between two rounds is held, and how
theta + amount z is evaluated, is the model's choice. A model that is tuned through one flat vector keeps a copy of it
for each client and makes perturbed copies beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedmezo.records import Batch, Trainable
from fedmezo.zo.noise import Directions, Stream
from fedmezo.zo.replay import Move, apply_, perturb

BYTES_PER_ELEMENT = 2
KEPT_BYTES = 64 << 20
"""With one copy, directions of a step that take more are not kept: theta and one copy are all that is in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A loss that a step asks for: at theta + amount z on a batch, theta being that of the client that asks."""

    batch: Batch
    stream: Stream | None = None  # of z; None for theta itself
    amount: float = 0.0  # of 16 significant bits


class LocalThetas(Protocol):
    """The thetas of a group of clients, which all begin where the round begins; a member is a place in the group."""

    def losses(self, members: Sequence[int], probes: Sequence[Probe]) -> Tensor:
        """The loss of each probe, (len(probes),) float32.

        A GPU may still be at work on them when this returns: whoever reads the values waits for it.

        Args:
            members: which of the clients asks, for each probe.
            probes: all probes of one step of each client.
        """
        ...

    def move_(self, member: int, moves: Sequence[Move]) -> None:
        """Make the moves of one step, in order, each subtracted on its own."""
        ...

    def shrink_(self, member: int, factor: float) -> None:
        """Multiply a theta: weight decay."""
        ...

    def pull_(self, member: int, strength: float) -> None:
        """Take this share of a theta's way back to where the round began: FedProx."""
        ...

    def take_update(self, member: int) -> Tensor:
        """The theta of a member minus that before the round, (d,) float32 on the device that was on. Asked for last."""
        ...


class Tunable(Trainable, Protocol):
    """A model that zeroth-order clients can tune."""

    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        """As many thetas as there are clients in a group, all equal to theta (d,), which is left as it is.

        Args:
            theta: the state before the round, on any device.
            members: clients of the group.
            noise: distribution of the directions.
            copies: perturbed thetas that may be in memory at a time, and share a forward pass.
        """
        ...


class FlatThetas:
    """Implements `LocalThetas` with flat vectors: one for each client, and perturbed copies beside them.

    Args:
        model: gives the losses at some flat vectors.
        theta: as in `Tunable.local_thetas`, and so are the others.
        members: see there.
        noise: see there.
        copies: see there.
    """

    def __init__(self, model: Trainable, theta: Tensor, members: int, noise: Directions, copies: int) -> None:
        self._model = model
        self._before = theta
        self._noise = noise
        self._at_once = copies
        self._thetas = [theta.to(model.device, copy=True) for _ in range(members)]
        self._copies = torch.empty(0, len(theta), device=model.device)  # where perturbed copies are made
        self._kept: dict[Stream, Tensor] = {}  # the directions of the step in hand

    def losses(self, members: Sequence[int], probes: Sequence[Probe]) -> Tensor:
        """See `LocalThetas`."""
        self._keep_directions([probe.stream for probe in probes if probe.stream is not None])
        at_once = min(self._at_once, len(probes))
        if len(self._copies) < at_once:
            self._copies = self._copies.new_empty(at_once, self._copies.shape[1])
        losses = []
        for first in range(0, len(probes), len(self._copies)):
            some = probes[first : first + len(self._copies)]
            for copy, member, probe in zip(self._copies, members[first:], some, strict=False):
                self._place(copy, self._thetas[member], probe)
            losses.append(self._model.losses(self._copies[: len(some)], [probe.batch for probe in some]))
        return torch.cat(losses)

    def move_(self, member: int, moves: Sequence[Move]) -> None:
        """See `LocalThetas`."""
        theta = self._thetas[member]
        if not all(move.stream in self._kept for move in moves):  # for want of room, or the batch had no rows
            apply_(theta, moves, self._noise)
            return
        for move in moves:
            if move.coefficient != 0.0:
                theta.sub_(self._kept[move.stream], alpha=move.coefficient)

    def shrink_(self, member: int, factor: float) -> None:
        """See `LocalThetas`."""
        self._thetas[member].mul_(factor)

    def pull_(self, member: int, strength: float) -> None:
        """See `LocalThetas`."""
        theta = self._thetas[member]
        theta.sub_(theta - self._before.to(theta.device), alpha=strength)

    def take_update(self, member: int) -> Tensor:
        """See `LocalThetas`."""
        return self._thetas[member].to(self._before.device).sub_(self._before)

    def _keep_directions(self, streams: Sequence[Stream]) -> None:
        """Generate the directions of a step once, for its probes and its moves.

        None are kept where a single copy of theta is all that there is room for: then each use makes them by chunks.
        """
        distinct, size = list(dict.fromkeys(streams)), self._copies.shape[1]
        if self._at_once == 1 and len(distinct) * size * BYTES_PER_ELEMENT > KEPT_BYTES:
            self._kept = {}
            return
        z = self._noise.directions(distinct, 0, size, self._copies.device)
        self._kept = dict(zip(distinct, z, strict=True))

    def _place(self, copy: Tensor, theta: Tensor, probe: Probe) -> None:
        """Make `copy` the theta that a probe is about."""
        if probe.stream is None:
            copy.copy_(theta)
        elif self._kept:
            perturb(theta, self._kept[probe.stream], probe.amount, out=copy)
        else:
            apply_(copy.copy_(theta), [Move(probe.stream, -probe.amount)], self._noise)
