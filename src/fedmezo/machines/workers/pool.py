"""Worker processes under Ray: clients are dealt to whoever is free, and a worker that dies is replaced.

To the round a pool is client work like any other. Only scalars travel: a worker follows the run by replaying each
closed round, and is sent theta only when it is new, or where scalars alone do not say what became of theta.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from fedmezo.errors import FedMeZOError, TrainingError
from fedmezo.records import ClientData, ClientTask, Report, RoundRecord

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""A group of clients whose workers die so often in a round ends the run: it is the group that kills them."""


@dataclass(slots=True, eq=False)
class _Member:
    """One worker as the pool sees it."""

    actor: Any
    known: str = ""  # hash of the state that it will have reached when it gets to its next call


@dataclass(frozen=True, slots=True)
class _Group:
    """Clients that are run together, and how often a worker died over them."""

    index: int
    tasks: tuple[ClientTask, ...]
    deaths: int = 0


@dataclass(slots=True, eq=False)
class WorkerPool:
    """Implements `federation.clients.ClientWork` over worker processes.

    Args:
        start: starts a worker and returns Ray's handle of it.
        size: workers.
        group_size: clients that a worker runs together.
        follows: a closed round's scalars are enough to follow it; else theta is sent in every round.
    """

    start: Callable[[], Any]
    size: int
    group_size: int
    follows: bool
    _members: list[_Member] = field(default_factory=list)

    def run(
        self, tasks: Sequence[ClientTask], theta: Tensor, state_hash: str, data: Mapping[int, ClientData]
    ) -> list[Report]:
        """Deal the clients in groups and collect their reports in the order of the tasks; `data` is the workers' own.

        Raises:
            FedMeZOError: what a worker says; TrainingError where its process dies again and again.
        """
        starts = range(0, len(tasks), self.group_size)
        waiting = deque(_Group(i, tuple(tasks[at : at + self.group_size])) for i, at in enumerate(starts))
        reports: dict[int, list[Report]] = {}
        busy: dict[Any, tuple[_Member, _Group]] = {}
        stored: Any = None
        while len(self._members) < self.size:
            self._members.append(_Member(self.start()))
        free = deque(self._members)
        while waiting or busy:
            while waiting and free:
                member, group = free.popleft(), waiting.popleft()
                if member.known != state_hash and stored is None:
                    stored = ray.put(theta)
                sent = None if member.known == state_hash else stored
                member.known = state_hash
                busy[member.actor.run.remote(group.tasks, state_hash, sent)] = (member, group)
            (done,), _ = ray.wait(list(busy), num_returns=1)
            member, group = busy.pop(done)
            try:
                reports[group.index] = ray.get(done)
            except RayActorError as error:
                waiting.append(self._after_death(group, error))
                self._replace(member)
            except RayTaskError as error:
                raise _of_the_worker(error) from error
            free.append(member)
        return [report for index in sorted(reports) for report in reports[index]]

    def close_round(self, record: RoundRecord) -> None:
        """Tell the workers of a closed round; nobody waits for them, and one that dies over it is found out later."""
        for member in self._members if self.follows else ():
            if member.known:
                member.actor.close_round.remote(record)
                member.known = record.state_hash

    def _after_death(self, group: _Group, error: RayActorError) -> _Group:
        clients = ", ".join(str(task.client) for task in group.tasks)
        if group.deaths + 1 == MAX_DEATHS:
            raise TrainingError(
                f"round {group.tasks[0].round}: the worker of clients {clients} died {MAX_DEATHS} times; in the end: "
                f"{str(error).splitlines()[0]}"
            ) from error
        logger.warning("a worker died while it ran clients %s; another takes over", clients)
        return _Group(group.index, group.tasks, group.deaths + 1)

    def _replace(self, member: _Member) -> None:
        member.actor, member.known = self.start(), ""


def _of_the_worker(error: RayTaskError) -> Exception:
    """The worker's own error where a user can act on it; whatever else happened there, with its traceback."""
    return error.cause if isinstance(error.cause, FedMeZOError) else error
