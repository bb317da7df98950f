"""What each client already knows, and so what the server has to send it."""

from __future__ import annotations

from collections.abc import Iterable

from fedmezo.federation.aggregate import SCALARS
from fedmezo.federation.messages import CatchUp, bounded_history, catch_up
from fedmezo.federation.round import ServerState
from fedmezo.records import RoundRecord


class Downlink:
    """Keeps which state each client knows, and the records that may still be worth sending.

    The history is bounded by the size of theta, however long a client stays away.

    Args:
        protocol: with `weights` every client is sent theta in every round.
        num_parameters: d.
        derivable: clients can make the initial theta themselves, from the base model and the run seed.
    """

    def __init__(self, protocol: str, num_parameters: int, *, derivable: bool) -> None:
        self._protocol = protocol
        self._num_parameters = num_parameters
        self._derivable = derivable
        self._known: dict[int, int] = {}
        self._history: list[RoundRecord] = []

    def way(self, client: int, state: ServerState) -> CatchUp:
        """How the client gets to the present state."""
        known = self._known.get(client, 0 if self._derivable else None)
        if self._protocol != SCALARS or known is None:
            return CatchUp(theta=state.theta)
        return catch_up(known, state.round, state.theta, self._history)

    def close(self, record: RoundRecord, reached: Iterable[int]) -> None:
        """Remember a closed round; the clients in `reached` know the state it started from."""
        for client in reached:
            self._known[client] = record.round
        self._history = bounded_history([*self._history, record], self._num_parameters)
