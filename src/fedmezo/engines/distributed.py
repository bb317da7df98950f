"""Clients elsewhere: one round over any transport that carries bytes and tells who can be reached.

A client that answers a first setup message takes part. Whoever cannot be reached is left out of the round, and the
round ends when every client that can be reached has answered and enough have reported. With too few by its deadline it
is tried again, each time for twice as long. A client that comes back says which state it knows and is brought up to
date with its next task.

Nothing that a client says is believed before it is checked: who it is (the transport knows), that the message answers
what it was sent, that a report is one. No client holds a round: whoever answers wrongly is set up again and not waited
for, or barred (see `peers`), and so is whoever lets the deadline pass (see `patience`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fedmezo.engines.patience import SECONDS_OF_GRACE, Patience
from fedmezo.engines.peers import Contact, Peer
from fedmezo.engines.rounds import RoundResult
from fedmezo.errors import RunError
from fedmezo.federation.aggregate import ReportRules, report_fault, sort_reports
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import Ready, Reason, RefusedTask, Setup, decode_joining, encode_setup
from fedmezo.federation.messages import decode_report, encode_task
from fedmezo.federation.round import ServerState
from fedmezo.plain import one_line
from fedmezo.privacy.extra import SMALLEST_GROUP
from fedmezo.records import ClientTask, Refusal, Report, RoundPlan, RoundRecord

if TYPE_CHECKING:  # its libraries are an extra
    from fedmezo.engines.secure import SecureSums
    from fedmezo.privacy.member import Masked

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_NOTICES = 60.0
_MAX_REFUSALS = 2
"""In one round; a client that cannot be brought to the round's state by then is left out of it."""


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
class _Round:
    """The round in hand."""

    plan: RoundPlan
    state: ServerState
    tasks: Mapping[int, ClientTask]
    pending: set[int] = field(default_factory=set)  # have been sent their task
    done: set[int] = field(default_factory=set)  # reported, or refused for good
    refusals: dict[int, int] = field(default_factory=dict)  # how often each client has said no
    reports: list[Report] = field(default_factory=list)
    masked: set[int] = field(default_factory=set)  # have sent masked words instead of a report
    is_closed: bool = False  # no more masked words are taken
    is_dealt: bool = True  # clients can be sent their tasks; not before the groups of a secure sum are fixed
    opened: float = 0.0  # when it was begun, or the last client that was never there before was ready
    began: float = 0.0  # when the first task was sent
    seconds: list[float] = field(default_factory=list)  # after which each report came
    faults: list[Refusal] = field(default_factory=list)  # wrong answers
    usable: int = 0  # of `judged` reports
    unusable: list[Refusal] = field(default_factory=list)
    judged: int = 0

    @property
    def came(self) -> int:
        """How many reports there are, or masked ones."""
        return len(self.reports) + len(self.masked)


class Distributed:
    """Runs a round with clients elsewhere.

    Args:
        transport: reaches them.
        downlink: what each client knows.
        rules: what a report must look like.
        settings: of every setup message.
        base_hash: of the server's base weights.
        theta_hash: of the initial theta that clients can derive.
        num_clients: of the federation.
        min_clients: usable reports without which a round cannot be closed.
        report_size: bytes that a report may have.
        deadline: seconds after which a round closes with those who have reported; None for one by measurement.
        tries: how often a round is run that has too few usable reports.
        secure: sums the reports so that nobody sees any; None to have them.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        transport: Transport,
        downlink: Downlink,
        *,
        rules: ReportRules,
        settings: Mapping[str, Any],
        base_hash: str,
        theta_hash: str,
        num_clients: int,
        min_clients: int,
        report_size: int,
        deadline: float | None = None,
        tries: int = 1,
        secure: SecureSums | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._downlink = downlink
        self._rules = rules
        self._settings = settings
        self._hashes = (base_hash, theta_hash)
        self._min_clients = min_clients
        self._report_size = report_size
        self._patience = Patience(deadline)
        self._most_tries = tries
        self._tries = 0  # of the plan's round
        self._plan: RoundPlan | None = None
        self._met: set[int] = set()  # clients that have been ready since this process began
        self._secure = secure
        self._clock = clock
        self._peers = {client: Peer() for client in range(num_clients)}
        self._bytes_down: dict[int, int] = {}
        self._bytes_up: dict[int, int] = {}
        self._quiet_seconds = 0.0
        self._round: _Round | None = None
        self._reported: list[int] = []  # in the last round

    @property
    def is_waiting(self) -> bool:
        """Whether a round cannot begin for want of clients: none of them has a task of it, or has reported."""
        this = self._round
        return this is not None and not this.pending and not this.came

    def barred(self, round_index: int) -> Set[int]:
        """The clients that are barred from a round."""
        return {client for client, peer in self._peers.items() if peer.is_barred(round_index)}

    def run_round(self, plan: RoundPlan, state: ServerState) -> RoundResult:
        """Send the plan to the cohort and collect its reports.

        Raises:
            RunError: so many clients cannot take part at all that the rest are too few.
        """
        tasks = {task.client: task for task in plan.tasks()}
        this = self._round = _Round(plan, state, tasks, opened=self._clock())
        self._note_try(this)
        if self._secure is not None:
            self._gather(this, self._secure)
        for client, peer in self._peers.items():
            if peer.is_idle and self._may(this, client):  # its bar has ended
                self._set_up(this, client)
        for client in plan.cohort:
            self._send_task(this, client)
        while not self._complete(this):
            self._wait(this)
        if self._secure is not None:
            self._unmask(this, self._secure)
        self._round = None
        return self._result(this)

    def gives_up(self) -> bool:
        """Whether the round in hand has been tried as often as it may be."""
        return self._tries >= self._most_tries or self._secure is not None  # two sums of one round would tell of both

    def recall(self, records: Sequence[RoundRecord]) -> None:
        """Bar whom the closed rounds of an earlier process have barred: every wrong answer stands in them."""
        for record in records:
            for refusal in record.refusals:
                if refusal.client in self._peers:  # a journal may be forged
                    self._peers[refusal.client].strike(record.round)
            for part in record.contributions:
                if part.client in self._peers:
                    self._peers[part.client].praise()

    def close_round(self, plan: RoundPlan, record: RoundRecord) -> None:
        """Remember a committed round; only those who reported are sure to know the state it started from."""
        refused = {refusal.client for refusal in record.refusals}
        self._downlink.close(record, [client for client in self._reported if client not in refused])

    def _wait(self, this: _Round) -> None:
        """Wait for news, and take it."""
        arrival = self._transport.receive(1.0)
        if arrival is None:
            self._notice_waiting(this)
        else:
            self._take(this, arrival)

    def _gather(self, this: _Round, secure: SecureSums) -> None:
        """Wait until all of the cohort who can be reached are ready, and fix the groups of the round's sums."""
        this.is_dealt = False
        if secure.is_stale:
            secure.renew()
            for client, peer in self._peers.items():
                if peer.contact is Contact.HERE and not peer.excluded and self._may(this, client):
                    self._set_up(this, client)
        while not self._has_gathered(this):
            self._wait(this)
        ready = {client for client in this.plan.cohort if self._peers[client].ready is not None}
        this.done |= set(this.plan.cohort) - secure.deal(this.plan, ready)
        this.is_dealt = True

    def _has_gathered(self, this: _Round) -> bool:
        peers = [self._peers[client] for client in this.plan.cohort]
        ready = sum(peer.ready is not None for peer in peers)
        awaited = any(peer.ready is None and peer.is_awaited for peer in peers)
        if ready < max(self._min_clients, SMALLEST_GROUP):
            return False
        return not awaited or self._clock() - this.opened >= self._patience.deadline(0.0)

    def _unmask(self, this: _Round, secure: SecureSums) -> None:
        """Ask the clients for what it takes to see the sums, until they are made or lost."""
        secure.close()
        this.is_closed = True
        while True:
            began = self._clock()
            for client, question in secure.questions():
                self._send(client, question, self._report_size)
            if not secure.waits_for:
                return
            while secure.waits_for and self._clock() - began < SECONDS_OF_GRACE:
                self._wait(this)
                for client in secure.waits_for:
                    if self._peers[client].contact is Contact.AWAY:
                        secure.leave(client)
            for client in secure.waits_for:
                logger.warning("round %d: client %d does not help with the sum", this.plan.round, client)
                secure.leave(client)

    def _note_try(self, this: _Round) -> None:
        """Count the tries of a round, and take reports that were asked for in the last one, if it was the same plan."""
        before, self._plan = self._plan, this.plan
        again = before is not None and before.round == this.plan.round
        self._tries = self._tries + 1 if again else 1
        for client, peer in self._peers.items() if again else ():
            if peer.owes_round != this.plan.round:
                continue
            if before == this.plan:
                this.pending.add(client)
            else:
                self._set_up(this, client)

    def _result(self, this: _Round) -> RoundResult:
        if self._secure is not None:
            return self._result_of_sums(this, self._secure)
        self._reported = [report.client for report in this.reports]
        if self._usable(this) >= self._min_clients:
            self._patience.learn(this.seconds)
        else:  # the round fails for those
            this.faults += this.unusable
            refused = {refusal.client for refusal in this.unusable}
            this.reports = [report for report in this.reports if report.client not in refused]
        for refusal in this.unusable:
            self._strike(this, refusal)
        down, up = self._bytes_down, self._bytes_up
        self._bytes_down, self._bytes_up = {}, {}
        batches = [
            min(ready.num_batches, report.num_examples)  # a batch has an example at least
            for report in this.reports
            if (ready := self._peers[report.client].ready)
        ]
        return RoundResult(tuple(this.reports), down, up, sum(batches), tuple(this.faults))

    def _result_of_sums(self, this: _Round, secure: SecureSums) -> RoundResult:
        self._reported = sorted(this.masked)
        self._patience.learn(this.seconds)
        down, up = self._bytes_down, self._bytes_up
        self._bytes_down, self._bytes_up = {}, {}
        batches = sum(ready.num_batches for client in this.masked if (ready := self._peers[client].ready))
        return RoundResult((), down, up, batches, tuple(this.faults), secure.tallies())

    def _may(self, this: _Round, client: int) -> bool:
        """Whether the client may take part: who is barred only if the round needs it."""
        return this.plan.includes(client) or not self._peers[client].is_barred(this.plan.round)

    def _complete(self, this: _Round) -> bool:
        open_ = [client for client in this.plan.cohort if client not in this.done]
        if not open_:
            return True
        awaited = [client for client in open_ if self._peers[client].is_awaited]
        if self._usable(this) < self._min_clients:
            if not self._is_over(this):
                return False
            awaited = [client for client in awaited if client in this.pending and this.came]
        elif awaited and self._in_time(this):
            return False
        for client in awaited:
            self._give_up(this, client)
        return True

    def _usable(self, this: _Round) -> int:
        """How many of the reports so far can be used; of masked ones nobody can tell."""
        if self._secure is not None:
            return len(this.masked)
        if this.judged < len(this.reports):
            plan, state = this.plan, this.state
            usable, this.unusable = sort_reports(plan, state.hash, this.reports, self._rules, state.histories)
            this.usable, this.judged = len(usable), len(this.reports)
        return this.usable

    def _in_time(self, this: _Round) -> bool:
        return not this.seconds or self._clock() - this.began < self._patience.deadline(this.seconds[-1])

    def _is_over(self, this: _Round) -> bool:
        """Whether a round with too few reports is to be tried again; a run whose clients never were there waits."""
        if len(self._met) < self._min_clients:
            return False
        last = this.seconds[-1] if this.seconds else 0.0
        return self._clock() - this.opened >= self._patience.deadline(last) * Patience.growth(self._tries)

    def _give_up(self, this: _Round, client: int) -> None:
        """Wait no longer for a client; one that is still loading its model has done nothing wrong."""
        why = "it has not reported by the round's deadline"
        if client in this.pending:
            self._strike(this, Refusal(client, why))
            this.faults.append(Refusal(client, why))
        self._peers[client].trusted = False
        logger.warning("round %d does not wait for client %d: %s", this.plan.round, client, why)

    def _take(self, this: _Round, arrival: Arrival) -> None:
        peer = self._peers[arrival.client]
        if arrival.answer is not None:
            _add(self._bytes_up, arrival.client, len(arrival.answer))
            if peer.contact is not Contact.AWAY and self._may(this, arrival.client):
                self._take_answer(this, arrival.client, arrival.answer)
            return
        if arrival.contact is not peer.contact:
            self._log_contact(arrival)
        peer.contact = arrival.contact
        peer.forget()
        this.pending.discard(arrival.client)
        if arrival.contact is Contact.HERE:
            peer.excluded = ""
            if self._may(this, arrival.client):
                self._set_up(this, arrival.client)

    def _take_answer(self, this: _Round, client: int, answer: bytes) -> None:
        if self._secure is not None and self._take_of_sums(this, client, answer, self._secure):
            return
        try:
            message = decode_joining(answer) or decode_report(answer)
            if message.client != client:
                raise RunError(f"it speaks for client {message.client}")
        except RunError as error:
            self._wrong(this, client, f"sent what is no answer of its own: {one_line(str(error))}")
            return
        if isinstance(message, Ready):
            self._take_ready(this, client, message)
        elif isinstance(message, RefusedTask):
            self._take_refusal(this, client, message)
        else:
            self._take_report(this, client, message)

    def _take_of_sums(self, this: _Round, client: int, answer: bytes, secure: SecureSums) -> bool:
        """Take an answer that only secure sums have; returns whether it was one."""
        try:
            words = secure.words_in(client, answer)
            if words is not None:
                self._take_words(this, client, words[0], words[1], secure)
            elif client in secure.waits_for:
                secure.take_told(client, answer)
            else:
                return False
        except RunError as error:
            if client in secure.waits_for:
                secure.leave(client)
            self._wrong(this, client, f"sent what cannot be summed: {one_line(str(error))}")
        return True

    def _take_words(self, this: _Round, client: int, round_index: int, masked: Masked, secure: SecureSums) -> None:
        peer = self._peers[client]
        if self._is_late(this, client, round_index):
            return
        if client not in this.pending or round_index != this.plan.round:
            raise RunError("masked words without a task")
        this.pending.discard(client)
        this.done.add(client)
        peer.owes_round = None
        if this.is_closed:  # too late for the sum
            return
        secure.take_words(client, masked)
        this.masked.add(client)
        this.seconds.append(self._clock() - this.began)
        peer.praise()

    def _take_ready(self, this: _Round, client: int, ready: Ready) -> None:
        peer = self._peers[client]
        if not peer.owes_ready or ready.num_examples < 1 or ready.num_batches < 1:
            self._wrong(this, client, "says that it is ready, out of turn or without data")
            return
        if self._secure is not None:
            try:
                self._secure.meet(client, ready.public_key)
            except RunError as error:
                self._wrong(this, client, str(error))
                return
        peer.ready, peer.owes_ready = ready, False
        if client not in self._met:
            self._met.add(client)
            this.opened = self._clock()
        self._downlink.learn(client, ready.known_round if 0 <= ready.known_round <= this.plan.round else None)
        self._send_task(this, client)

    def _take_report(self, this: _Round, client: int, report: Report) -> None:
        peer = self._peers[client]
        if self._is_late(this, client, report.round):
            return
        if client not in this.pending or self._secure is not None:
            self._wrong(this, client, "reports without a task, or unmasked")
            return
        if (fault := report_fault(report, this.plan, this.state.hash, self._rules)) is not None:
            self._wrong(this, client, f"sent a report that cannot be: {fault}")
            return
        this.pending.discard(client)
        this.done.add(client)
        this.reports.append(report)
        this.seconds.append(self._clock() - this.began)
        peer.owes_round = None
        peer.praise()

    def _take_refusal(self, this: _Round, client: int, refusal: RefusedTask) -> None:
        peer, said = self._peers[client], one_line(refusal.text)
        if peer.owes_ready:  # it refuses the setup
            peer.owes_ready = False
            peer.excluded = said
            logger.warning("client %d cannot take part: %s", client, said)
            self._require_enough()
            return
        if self._is_late(this, client, refusal.round):
            return
        if refusal.round != this.plan.round or client not in this.pending:
            self._wrong(this, client, "refuses a task that it does not have")
            return
        peer.owes_round = None
        this.refusals[client] = this.refusals.get(client, 0) + 1
        last = this.refusals[client] >= _MAX_REFUSALS
        if refusal.reason is Reason.NOT_SET_UP and not last:
            this.pending.discard(client)
            self._set_up(this, client)
        elif refusal.reason is Reason.OTHER_STATE and not last:
            self._downlink.learn(client, None)
            self._send_task(this, client)
        else:
            logger.warning("round %d: client %d is left out: %s", this.plan.round, client, said)
            this.pending.discard(client)
            this.done.add(client)

    def _is_late(self, this: _Round, client: int, round_index: int) -> bool:
        """Whether an answer is one to a task of an earlier round; its client is welcome back and gets the next task."""
        peer = self._peers[client]
        if peer.owes_round is None or peer.owes_round == this.plan.round or peer.owes_round != round_index:
            return False
        peer.owes_round, peer.trusted = None, True
        self._send_task(this, client)
        return True

    def _wrong(self, this: _Round, client: int, why: str) -> None:
        """Set a client up again that has answered wrongly, or bar it."""
        logger.warning("round %d: client %d %s", this.plan.round, client, why)
        refusal = Refusal(client, why)
        this.faults.append(refusal)
        if not self._strike(this, refusal):
            self._set_up(this, client)

    def _strike(self, this: _Round, refusal: Refusal) -> bool:
        """Note a wrong answer; returns whether its client is barred for it."""
        client = refusal.client
        rounds = self._peers[client].strike(this.plan.round)
        if rounds:
            logger.warning("client %d is barred for %d rounds", client, rounds)
            this.pending.discard(client)
            this.done.add(client)
        return rounds > 0

    def _set_up(self, this: _Round, client: int) -> None:
        """Ask a client to load what the run needs, and to say what it knows of it."""
        base, theta = self._hashes
        self._peers[client].forget()
        self._peers[client].owes_ready = True
        session = "" if self._secure is None else self._secure.session.hex()
        self._send(client, encode_setup(Setup(client, this.plan.round, base, theta, self._settings, session)), 0)

    def _send_task(self, this: _Round, client: int) -> None:
        """Send a client its task, if it is there for it and has answered the one before."""
        plan, peer, task = this.plan, self._peers[client], this.tasks.get(client)
        if task is None or client in this.done or peer.ready is None or peer.owes_round is not None:
            return
        if not this.is_dealt:
            return
        message = encode_task(task, this.state.hash, self._downlink.way(client, this.state))
        message = message if self._secure is None else self._secure.wrap(client, message)
        if not this.pending and this.came < self._min_clients:
            this.began = self._clock()  # anew if all were away in between
        this.pending.add(client)
        peer.owes_round = plan.round
        self._send(client, message, self._report_size)

    def _send(self, client: int, message: bytes, answer_size: int) -> None:
        _add(self._bytes_down, client, len(message))
        self._transport.send(client, message, answer_size)

    def _require_enough(self) -> None:
        excluded = {client: peer.excluded for client, peer in self._peers.items() if peer.excluded}
        if len(self._peers) - len(excluded) < self._min_clients:
            why = "; ".join(f"client {client}: {text}" for client, text in excluded.items())
            raise RunError(f"too few sites can take part (federate.min_clients is {self._min_clients}). {why}")

    def _log_contact(self, arrival: Arrival) -> None:
        words = {Contact.AWAY: "cannot be reached", Contact.COMING: "is expected", Contact.HERE: "is here"}
        level = logging.WARNING if arrival.contact is Contact.AWAY else logging.INFO
        logger.log(level, "client %d %s", arrival.client, words[arrival.contact])

    def _notice_waiting(self, this: _Round) -> None:
        open_ = [self._peers[client] for client in this.plan.cohort if client not in this.done]
        is_at_work = any(peer.contact is Contact.HERE for peer in open_)
        if is_at_work and (self._in_time(this) or this.came >= self._min_clients):
            self._quiet_seconds = 0.0
            return
        if self._quiet_seconds % _SECONDS_BETWEEN_NOTICES == 0:
            if self.is_waiting:
                logger.info("round %d begins when clients that can take part are here", this.plan.round)
            else:
                logger.warning(
                    "round %d waits: %d of at least %d clients have reported, the others are away or do not answer",
                    this.plan.round,
                    this.came,
                    self._min_clients,
                )
        self._quiet_seconds += 1.0


def _add(totals: dict[int, int], client: int, count: int) -> None:
    totals[client] = totals.get(client, 0) + count
