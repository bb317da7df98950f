"""Clients elsewhere: one round over any transport that carries bytes and tells who can be reached.

A client that answers a first setup message takes part. Whoever cannot be reached is left out of the round, and the
round ends when every client that can be reached has answered and enough have reported; with fewer it waits. A client
that comes back says which state it knows and is brought up to date with its next task. Reports of another round are
never used: a late answer is dropped here, and the aggregation checks once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from fedmezo.engines.rounds import RoundResult
from fedmezo.errors import RunError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import (
    UNKNOWN,
    Ready,
    Reason,
    RefusedTask,
    Setup,
    decode_joining,
    encode_setup,
)
from fedmezo.federation.messages import decode_report, encode_task
from fedmezo.federation.round import ServerState
from fedmezo.records import ClientTask, Report, RoundPlan, RoundRecord

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_NOTICES = 60.0
_MAX_REFUSALS = 2
"""In one round; a client that cannot be brought to the round's state by then is left out of it."""


class Contact(Enum):
    """What a transport knows of a client."""

    AWAY = "away"  # it cannot be reached
    COMING = "coming"  # it is expected, and has not answered yet
    HERE = "here"


@dataclass(frozen=True, slots=True)
class Arrival:
    """News of a client: where it is now, or its answer to the last message it was sent."""

    client: int
    contact: Contact
    answer: bytes | None = None


class Transport(Protocol):
    """Carries messages to clients and answers back."""

    def send(self, client: int, message: bytes, answer_size: int) -> None:
        """Send a message in place of any that the client has not answered.

        Args:
            client: to whom.
            message: what.
            answer_size: bytes that the answer may have: a large one takes its time.
        """
        ...

    def receive(self, seconds: float) -> Arrival | None:
        """Wait so long for news."""
        ...


@dataclass(slots=True, eq=False)
class _Peer:
    """A client as the server sees it."""

    contact: Contact = Contact.AWAY
    ready: Ready | None = None  # since it was last HERE
    barred: str = ""  # why it cannot take part at all


@dataclass(slots=True, eq=False)
class _Round:
    """The round in hand."""

    plan: RoundPlan
    state: ServerState
    pending: set[int] = field(default_factory=set)  # have been sent their task
    done: set[int] = field(default_factory=set)  # reported, or refused for good
    refusals: dict[int, int] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)


class Distributed:
    """Runs a round with clients elsewhere.

    Args:
        transport: reaches them.
        downlink: what each client knows.
        settings: of every setup message.
        base_hash: of the server's base weights.
        theta_hash: of the initial theta that clients can derive.
        num_clients: of the federation.
        min_clients: reports without which a round goes on waiting.
        report_size: bytes that a report may have.
    """

    def __init__(
        self,
        transport: Transport,
        downlink: Downlink,
        *,
        settings: Mapping[str, Any],
        base_hash: str,
        theta_hash: str,
        num_clients: int,
        min_clients: int,
        report_size: int,
    ) -> None:
        self._transport = transport
        self._downlink = downlink
        self._settings = settings
        self._hashes = (base_hash, theta_hash)
        self._min_clients = min_clients
        self._report_size = report_size
        self._peers = {client: _Peer() for client in range(num_clients)}
        self._bytes_down: dict[int, int] = {}
        self._bytes_up: dict[int, int] = {}
        self._quiet_seconds = 0.0
        self._round: _Round | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a round cannot begin for want of clients: none of them has a task of it, or has reported."""
        this = self._round
        return this is not None and not this.pending and not this.reports

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """Send the plan to the cohort and collect its reports.

        Raises:
            RunError: so many clients cannot take part at all that the rest are too few.
        """
        this = self._round = _Round(plan, state)
        for client in plan.cohort:
            self._send_task(this, client)
        while not self._complete(this):
            arrival = self._transport.receive(1.0)
            if arrival is None:
                self._notice_waiting(this)
            else:
                self._take(this, arrival)
        self._round = None
        down, up = self._bytes_down, self._bytes_up
        self._bytes_down, self._bytes_up = {}, {}
        batches = [ready.num_batches for report in this.reports if (ready := self._peers[report.client].ready)]
        return RoundResult(tuple(this.reports), down, up, sum(batches))

    def close_round(self, record: RoundRecord) -> None:
        """Remember a committed round; only those who contributed are sure to know the state it started from."""
        self._downlink.close(record, [part.client for part in record.contributions])

    def _complete(self, this: _Round) -> bool:
        open_ = [self._peers[client] for client in this.plan.cohort if client not in this.done]
        if not open_:
            return True
        return len(this.reports) >= self._min_clients and all(
            peer.contact is Contact.AWAY or peer.barred for peer in open_
        )

    def _take(self, this: _Round, arrival: Arrival) -> None:
        peer = self._peers[arrival.client]
        if arrival.answer is not None:
            self._take_answer(this, arrival.client, arrival.answer)
            return
        if arrival.contact is not peer.contact:
            self._log_contact(arrival)
        peer.contact, peer.ready = arrival.contact, None
        this.pending.discard(arrival.client)
        if arrival.contact is Contact.HERE:
            base, theta = self._hashes
            peer.barred = ""
            self._send(
                arrival.client, encode_setup(Setup(arrival.client, this.plan.round, base, theta, self._settings)), 0
            )

    def _take_answer(self, this: _Round, client: int, answer: bytes) -> None:
        _add(self._bytes_up, client, len(answer))
        try:
            joining = decode_joining(answer)
            report = decode_report(answer) if joining is None else None
        except RunError as error:
            self._leave_out(this, client, f"sent what cannot be read: {error}")
            return
        if isinstance(joining, Ready):
            self._take_ready(this, client, joining)
        elif isinstance(joining, RefusedTask):
            self._take_refusal(this, client, joining)
        elif report is not None and client in this.pending and report.round == this.plan.round:
            this.pending.discard(client)
            this.done.add(client)
            this.reports.append(report)

    def _take_ready(self, this: _Round, client: int, ready: Ready) -> None:
        self._peers[client].ready = ready
        self._downlink.learn(client, None if ready.known_round == UNKNOWN else ready.known_round)
        self._send_task(this, client)

    def _take_refusal(self, this: _Round, client: int, refusal: RefusedTask) -> None:
        peer = self._peers[client]
        if peer.ready is None:  # it refuses the setup
            peer.barred = refusal.text
            logger.warning("client %d cannot take part: %s", client, refusal.text)
            self._require_enough()
            return
        if refusal.round != this.plan.round or client not in this.pending:
            return
        this.pending.discard(client)
        this.refusals[client] = this.refusals.get(client, 0) + 1
        if refusal.reason is Reason.NOT_SET_UP:
            self._take(this, Arrival(client, Contact.HERE))
        elif refusal.reason is Reason.OTHER_STATE and this.refusals[client] < _MAX_REFUSALS:
            self._downlink.learn(client, None)
            self._send_task(this, client)
        else:
            self._leave_out(this, client, refusal.text)

    def _leave_out(self, this: _Round, client: int, why: str) -> None:
        logger.warning("round %d: client %d is left out: %s", this.plan.round, client, why)
        this.pending.discard(client)
        this.done.add(client)

    def _send_task(self, this: _Round, client: int) -> None:
        """Send a client its task, if it is there for it."""
        plan = this.plan
        if client not in plan.cohort or client in this.done or self._peers[client].ready is None:
            return
        task = ClientTask(plan.round, client, dict(zip(plan.cohort, plan.rates, strict=True))[client])
        message = encode_task(task, this.state.hash, self._downlink.way(client, this.state))
        this.pending.add(client)
        self._send(client, message, self._report_size)

    def _send(self, client: int, message: bytes, answer_size: int) -> None:
        _add(self._bytes_down, client, len(message))
        self._transport.send(client, message, answer_size)

    def _require_enough(self) -> None:
        barred = {client: peer.barred for client, peer in self._peers.items() if peer.barred}
        if len(self._peers) - len(barred) < self._min_clients:
            why = "; ".join(f"client {client}: {text}" for client, text in barred.items())
            raise RunError(f"too few sites can take part (federate.min_clients is {self._min_clients}). {why}")

    def _log_contact(self, arrival: Arrival) -> None:
        words = {Contact.AWAY: "cannot be reached", Contact.COMING: "is expected", Contact.HERE: "is here"}
        level = logging.WARNING if arrival.contact is Contact.AWAY else logging.INFO
        logger.log(level, "client %d %s", arrival.client, words[arrival.contact])

    def _notice_waiting(self, this: _Round) -> None:
        if any(self._peers[client].contact is Contact.HERE for client in this.plan.cohort if client not in this.done):
            self._quiet_seconds = 0.0
            return
        if self._quiet_seconds % _SECONDS_BETWEEN_NOTICES == 0:
            if self.is_waiting:
                logger.info("round %d begins when clients that can take part are here", this.plan.round)
            else:
                logger.warning(
                    "round %d waits: %d of at least %d clients have reported, the others cannot be reached",
                    this.plan.round,
                    len(this.reports),
                    self._min_clients,
                )
        self._quiet_seconds += 1.0


def _add(totals: dict[int, int], client: int, count: int) -> None:
    totals[client] = totals.get(client, 0) + count
