"""The weights of clients in the middle of a round, each of which is theta and the moves it has made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from fedmezo.models.lanes import join
from fedmezo.models.perturbed import DenseLanes, Lanes, LowRankLanes, PerturbedForward
from fedmezo.zo.local import Probe
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import Directions, Stream
from fedmezo.zo.replay import Move, apply_


class LaneThetas:
    """Implements `zo.local.LocalThetas` without a copy of the weights for any client or probe.

    Args:
        forward: the model over perturbed weights, at theta.
        theta: (d,), the state before the round.
        members: clients of the group.
        noise: distribution of the directions.
        lanes: probes that share a forward pass.
        device: of the model.
    """

    def __init__(
        self,
        forward: PerturbedForward,
        theta: Tensor,
        members: int,
        noise: Directions,
        lanes: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._before = theta
        self._noise = noise
        self._lanes = lanes
        self._device = device
        self._moves: list[list[Move]] = [[] for _ in range(members)]
        self._octets: dict[Stream, Tensor] = {}  # of the directions of moves and of the probes in hand, (1, bytes)

    def losses(self, members: Sequence[int], probes: Sequence[Probe]) -> Tensor:
        """See `zo.local.LocalThetas`; probes of batches with as many rows share a forward pass."""
        losses = torch.empty(len(probes), device=self._device)
        with torch.inference_mode():
            for rows in sorted({probe.batch.num_examples for probe in probes}):
                alike = [i for i, probe in enumerate(probes) if probe.batch.num_examples == rows]
                for first in range(0, len(alike), self._lanes):
                    some = alike[first : first + self._lanes]
                    lanes = self._lanes_of([members[i] for i in some], [probes[i] for i in some])
                    losses[some] = self._forward(lanes, join([probes[i].batch for i in some]))
        return losses

    def move_(self, member: int, moves: Sequence[Move]) -> None:
        """See `zo.local.LocalThetas`."""
        self._moves[member] += [move for move in moves if move.coefficient != 0.0]
        made = {move.stream for moves in self._moves for move in moves}
        self._octets = {stream: octets for stream, octets in self._octets.items() if stream in made}

    def shrink_(self, member: int, factor: float) -> None:
        """Not to be had: theta itself is all clients'."""
        raise NotImplementedError("weight decay needs a theta of each client's own")

    def pull_(self, member: int, strength: float) -> None:
        """See `zo.local.LocalThetas`: the way back is that of all moves."""
        kept = 1.0 - strength
        self._moves[member] = [replace(move, coefficient=kept * move.coefficient) for move in self._moves[member]]

    def take_update(self, member: int) -> Tensor:
        """See `zo.local.LocalThetas`."""
        theta = self._before.clone()
        return apply_(theta, self._moves[member], self._noise).sub_(self._before)

    def _lanes_of(self, members: Sequence[int], probes: Sequence[Probe]) -> Lanes:
        if isinstance(self._noise, LowRankNoise) and self._forward.low_rank:
            return self._low_rank_lanes(self._noise, members, probes)
        return DenseLanes(self._noise, [self._moves[member] for member in members], list(map(_move_of, probes)))

    def _low_rank_lanes(self, noise: LowRankNoise, members: Sequence[int], probes: Sequence[Probe]) -> LowRankLanes:
        """Lanes in groups by client, if all clients have as many; else each lane is a group of its own."""
        runs = [list(group) for _, group in groupby(range(len(members)), key=members.__getitem__)]
        if len({len(run) for run in runs}) > 1:
            runs = [[lane] for lane in range(len(members))]
        columns = []  # of each group: the streams and, for each of its lanes, their coefficients
        for run in runs:
            moves = self._moves[members[run[0]]]
            probing = list(dict.fromkeys(s for lane in run if (s := probes[lane].stream) is not None))
            own = [-move.coefficient for move in moves]
            lanes = [own + [probes[lane].amount * (s == probes[lane].stream) for s in probing] for lane in run]
            columns.append(([*(move.stream for move in moves), *probing], lanes))
        width = max(1, *(len(streams) for streams, _ in columns))
        empty = torch.zeros(1, noise.num_octets, dtype=torch.uint8, device=self._device)
        octets = torch.stack(
            [
                torch.cat([self._octets_of(noise, s) for s in streams] + [empty] * (width - len(streams)))
                for streams, _ in columns
            ]
        )
        padded = [[row + [0.0] * (width - len(row)) for row in rows] for _, rows in columns]
        return LowRankLanes(noise, octets, torch.tensor(padded, device=self._device))

    def _octets_of(self, noise: LowRankNoise, stream: Stream) -> Tensor:
        if stream not in self._octets:
            self._octets[stream] = noise.octets([stream], self._device)
        return self._octets[stream]


def _move_of(probe: Probe) -> list[Move]:
    return [] if probe.stream is None else [Move(probe.stream, -probe.amount)]
