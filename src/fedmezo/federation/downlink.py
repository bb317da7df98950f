"""What each client already knows, and so what the server has to send it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedmezo.federation.aggregate import SCALARS
from fedmezo.federation.messages import CatchUp, bounded_history, catch_up
from fedmezo.federation.round import ServerState
from fedmezo.records import RoundRecord

NOTHING = -1
"""The known round of a client that knows no state."""


class Downlink:
    """Keeps which state each client knows, and the records that may still be worth sending.

    The history is bounded by the size of theta, however long a client stays away.

    Args:
        protocol: with `weights` every client is sent theta in every round.
        num_parameters: d.
        snapshots: send theta in every round, so that no client is sent what another has reported.
        derivable: clients can make the initial theta themselves, from the base model and the run seed.
    """

    def __init__(self, protocol: str, num_parameters: int, *, derivable: bool, snapshots: bool = False) -> None:
        self._replayable = protocol == SCALARS  # clients follow the rounds, and need all of the server's state
        self._by_records = self._replayable and not snapshots
        self._num_parameters = num_parameters
        self._at_first = 0 if derivable else NOTHING
        self._known = np.zeros(0, np.int32)  # of each client so far, 4 bytes each: they may be millions
        self._history: list[RoundRecord] = []

    def way(self, client: int, state: ServerState) -> CatchUp:
        """How the client gets to the present state."""
        known = int(self._known[client]) if client < len(self._known) else self._at_first
        moments = tuple(state.moments[name] for name in sorted(state.moments)) if self._replayable else ()
        if known == NOTHING or not self._by_records:
            return CatchUp(theta=state.theta, moments=moments)
        return catch_up(known, state.round, state.theta, self._history, moments)

    def learn(self, client: int, known_round: int | None) -> None:
        """Note that the client knows the state before this round, or none."""
        self._note(client, NOTHING if known_round is None else known_round)

    def close(self, record: RoundRecord, reached: Iterable[int]) -> None:
        """Remember a closed round; the clients in `reached` know the state it started from."""
        for client in reached:
            self._note(client, record.round)
        self._history = bounded_history([*self._history, record], self._num_parameters)

    def _note(self, client: int, known_round: int) -> None:
        if client >= len(self._known):
            more = max(client + 1 - len(self._known), len(self._known))
            self._known = np.concatenate([self._known, np.full(more, self._at_first, np.int32)])
        self._known[client] = known_round
