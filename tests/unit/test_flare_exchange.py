"""Relays, model worker and training loop put together in one process: what they hand each other, and when it is lost.

Everything but FLARE itself is real: the worker's socket, the two relays' halves, the link and the distributed engine.
"""

from __future__ import annotations

import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmezo.engines.distributed import Distributed
from fedmezo.engines.simulation import Simulation
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.joining import Setup
from fedmezo.federation.messages import decode_task
from fedmezo.federation.rates import RateStrategy
from fedmezo.federation.round import Federation, ServerState, close_round_, initial_state, plan_round
from fedmezo.machines.flare.exchange import Mailbox
from fedmezo.machines.flare.link import Link
from fedmezo.machines.frames import connect, listen, receive_frame, send_frame
from fedmezo.machines.site import Loaded, Site
from fedmezo.machines.worker import serve_one
from fedmezo.records import RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise
from tests.toy import SIZE, Quadratic, ToyData, toy_segments, two_point
from tests.waiting import PATIENCE

pytest.importorskip("nvflare")

from fedmezo.machines.flare import server_relay
from fedmezo.machines.flare.server_relay import ROOM_FOR_WORDS, Line

CLIENTS = 3
SEED = 11
ESTIMATOR = two_point(eps=0.01, queries=1, noise=Noise("gaussian"), clip=0.0)
THETA = torch.linspace(-1.0, 1.0, SIZE)
BASE_HASH = "ab" * 32


def federation(groups: int = 0) -> Federation:
    return Federation(
        seed=SEED,
        num_clients=CLIENTS,
        cohort_size=CLIENTS,
        min_clients=2,
        equal_weights=False,
        strategy=RateStrategy("frozen", 0.01, 0.005),
        rules=ReportRules("scalars", ESTIMATOR, 4, SIZE, most_examples=8),
        groups=groups,
        segments=toy_segments(),
    )


def work() -> ZerothOrderClients:
    return ZerothOrderClients(Quadratic(), ESTIMATOR, SEED, "scalars")


class Worker:
    """A site's model worker in a thread; `kill` it and `revive` it."""

    def __init__(self, path: Path, client: int) -> None:
        self.path, self.client = path, client
        self.loads = 0
        self.revive()

    def _load(self, setup: Setup) -> Loaded:
        self.loads += 1
        return Loaded(
            work(), ToyData(setup.client), BASE_HASH, THETA.clone, len(THETA), THETA.device, Course(SEED, ESTIMATOR)
        )

    def revive(self) -> None:
        self._site = Site(self._load)
        self._listener = listen(self.path)
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(PATIENCE)
                    serve_one(self._site, connection)

    def kill(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)


@dataclass
class Wire:
    """In FLARE's place: carries requests to mailboxes, keeps what it was handed, and can be cut."""

    mailboxes: list[Mailbox]
    handed: list[tuple[int, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)

    def ask(self, client: int, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if client in self.cut:
            return None
        reply = self.mailboxes[client].handle(request)
        self.handed.append((client, dict(request), reply))
        return None if client in self.cut else reply

    def messages(self) -> list[bytes]:
        """The bytes that went down and up."""
        both = [[request["message"], reply["answer"]] for _, request, reply in self.handed]
        return [message for message in itertools.chain.from_iterable(both) if message]


class Rig:
    """A training loop, three sites and a wire."""

    def __init__(self, folder: Path, *, snapshots: bool = False, groups: int = 0) -> None:
        self.federation = federation(groups)
        self.workers = [Worker(folder / f"w{client}", client) for client in range(CLIENTS)]
        self.wire = Wire([Mailbox(str(worker.path)) for worker in self.workers])
        names = [str(client) for client in range(CLIENTS)]
        self.link = Link(folder / "link", names)
        self.engine = Distributed(
            self.link,
            Downlink("scalars", SIZE, derivable=True, snapshots=snapshots),
            rules=federation().rules,
            settings={"seed": SEED},
            base_hash=BASE_HASH,
            theta_hash=state_hash(THETA),
            num_clients=CLIENTS,
            min_clients=2,
            report_size=0,
        )
        self.over = threading.Event()
        self._connection = connect(str(folder / "link"))
        self._sending = threading.Lock()
        self.lines = {name: self._line(name) for name in names}
        for line in self.lines.values():
            threading.Thread(target=line.run, args=(self.over.is_set,), daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        self.state = initial_state(THETA.clone())
        self.records: list[RoundRecord] = []

    def _line(self, name: str) -> Line:
        def tell(what: str, answer: bytes) -> None:
            with self._sending, suppress(OSError):
                send_frame(self._connection, {"site": name, "what": what}, answer)

        return Line(lambda request, _: self.wire.ask(int(name), request), tell)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                values, payload = receive_frame(self._connection)
                self.lines[values["site"]].send(payload, values["answer_size"])

    def round(self) -> list[int]:
        """Run a round; returns who contributed."""
        plan = plan_round(self.federation, self.state)
        result = self.engine.run_round(plan, self.state)
        self.state, record = close_round_(self.federation, self.state, plan, result.reports)
        self.engine.close_round(plan, record)
        self.records.append(record)
        return sorted(report.client for report in result.reports)

    def close(self) -> None:
        self.over.set()
        self.link.close()
        self._connection.close()
        for worker in self.workers:
            worker.kill()


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # a short path, as sockets need
        made = Rig(folder, **getattr(request, "param", {}))
        stack.callback(made.close)
        yield made


def simulated(rounds: int, chosen: Federation | None = None) -> tuple[ServerState, list[RoundRecord]]:
    chosen = chosen or federation()
    data = {client: ToyData(client) for client in range(CLIENTS)}
    engine = Simulation(work(), data, Downlink("scalars", SIZE, derivable=True))
    state, records = initial_state(THETA.clone()), []
    for _ in range(rounds):
        plan = plan_round(chosen, state)
        state, record = close_round_(chosen, state, plan, engine.run_round(plan, state).reports)
        engine.close_round(plan, record)
        records.append(record)
    return state, records


def replayed(records: list[RoundRecord]) -> str:
    from fedmezo.federation.round import replay_round_

    state = initial_state(THETA.clone())
    for record in records:
        state = replay_round_(federation(), state, record)
        assert state.hash == record.state_hash
    return state.hash


def test_rounds_are_those_of_the_simulation(rig: Rig) -> None:
    assert [rig.round() for _ in range(4)] == [[0, 1, 2]] * 4
    state, records = simulated(4)
    assert rig.records == records
    assert rig.state.hash == state.hash


@pytest.mark.parametrize("rig", [{"groups": groups} for groups in (1, 2)], indirect=True)
def test_sites_share_directions_as_the_simulation_does_and_one_that_was_away_comes_back(rig: Rig) -> None:
    assert [rig.round() for _ in range(2)] == [[0, 1, 2]] * 2
    state, records = simulated(2, rig.federation)
    assert rig.records == records
    assert rig.state.hash == state.hash
    rig.wire.cut.add(2)
    assert rig.round() == [0, 1]
    rig.wire.cut.clear()
    while 2 not in rig.round():
        pass
    assert replayed(rig.records) == rig.state.hash
    tasks = [decode_task(message) for message in rig.wire.messages() if message.startswith(b"FMZT")]
    assert all(task.group is not None for task, _, _ in tasks)
    assert [worker.loads for worker in rig.workers] == [1, 1, 1]


def test_the_model_is_loaded_once(rig: Rig) -> None:
    for _ in range(3):
        rig.round()
    assert [worker.loads for worker in rig.workers] == [1, 1, 1]


def test_a_dead_worker_is_left_out_and_taken_back(rig: Rig) -> None:
    rig.round()
    rig.workers[1].kill()
    assert rig.round() == [0, 2]
    assert rig.round() == [0, 2]
    rig.workers[1].revive()
    while 1 not in rig.round():
        pass
    assert rig.workers[1].loads == 2
    assert replayed(rig.records) == rig.state.hash


def test_a_site_that_is_cut_off_catches_up_without_loading_again(rig: Rig) -> None:
    rig.round()
    rig.wire.cut.add(2)
    assert rig.round() == [0, 1]
    rig.wire.cut.clear()
    while 2 not in rig.round():
        pass
    assert rig.workers[2].loads == 1
    assert replayed(rig.records) == rig.state.hash


def test_no_report_is_used_in_another_round(rig: Rig) -> None:
    """A site answers late, after its round was closed without it."""
    rig.round()
    rig.wire.cut.add(0)
    rig.round()
    rig.wire.cut.clear()
    while 0 not in rig.round():
        pass
    for record in rig.records:
        assert len({part.client for part in record.contributions}) == len(record.contributions)
        assert record.refusals == ()
    assert replayed(rig.records) == rig.state.hash


HEADS = {b"FMZS": 77, b"FMZT": 54, b"FMZY": 25, b"FMZR": 66, b"FMZN": 22}
"""Length in bytes of each kind of message before its body, as docs/several_machines.md lists them."""


def test_what_is_handed_to_flare_is_what_the_docs_list(rig: Rig) -> None:
    """Every byte: four kinds of message of known layout; beside them numbers and words of a fixed set."""
    for _ in range(3):
        rig.round()
    for _, request, reply in rig.wire.handed:
        assert set(request) == {"id", "message", "wait"}
        assert set(reply) == {"id", "state", "answer"}
        assert reply["state"] in {"idle", "working", "answered", "lost"}
    steps = ToyData(0).num_batches
    for message in rig.wire.messages():
        kind, body = message[:4], len(message) - HEADS[message[:4]]
        expected = {
            b"FMZS": len(b'{"seed":11}'),
            b"FMZY": 0,
            b"FMZR": 2 * steps,
            b"FMZT": 4 * SIZE if message[21] else 0,  # theta, which is shorter here than a round's scalars, or nothing
        }
        assert body == expected[kind]


def test_what_is_counted_is_what_was_handed_over(rig: Rig) -> None:
    plan = plan_round(federation(), rig.state)
    result = rig.engine.run_round(plan, rig.state)
    for client in range(CLIENTS):
        down = sum(len(request["message"]) for which, request, _ in rig.wire.handed if which == client)
        answers = {reply["answer"] for which, _, reply in rig.wire.handed if which == client}
        assert result.bytes_down[client] == down
        assert result.bytes_up[client] == sum(map(len, answers))


@pytest.mark.parametrize("rig", [{"snapshots": True}], indirect=True, ids=["snapshots"])
def test_with_snapshots_no_site_is_sent_what_another_reported(rig: Rig) -> None:
    for _ in range(3):
        rig.round()
    tasks = [message for message in rig.wire.messages() if message.startswith(b"FMZT")]
    assert {len(task) for task in tasks} == {HEADS[b"FMZT"] + 4 * SIZE}
    assert {task[21] for task in tasks} == {1}


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the relay's requests."""
    for name in ("SECONDS_BETWEEN_LOOKS", "SECONDS_BETWEEN_TRIES", "SECONDS_AT_SITE"):
        monkeypatch.setattr(server_relay, name, 0.1)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"id": 1, "state": "answered"},
        {"id": 1, "state": "answered", "answer": "text"},
        {"id": "1", "state": "answered", "answer": b""},
        {"id": 1, "state": "dancing", "answer": b""},
        {"id": 1, "state": ["answered"], "answer": b""},
        {"id": 1, "state": None, "answer": None},
    ],
)
def test_a_reply_that_is_none_of_ours_counts_as_being_away(reply: dict[str, Any]) -> None:
    assert told_by(lambda request: {"id": 0, "state": "idle", "answer": b""} if not request["id"] else reply)[:3] == [
        ("coming", b""),
        ("here", b""),
        ("away", b""),
    ]


@pytest.mark.usefixtures("short_pauses")
def test_an_answer_that_is_too_long_is_not_passed_on() -> None:
    def site(request: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": request["id"], "state": "answered", "answer": b"x" * (ROOM_FOR_WORDS + 1)}

    assert told_by(site)[:3] == [("coming", b""), ("here", b""), ("answered", b"")]


def told_by(site: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[tuple[str, bytes]]:
    """What a line tells of a site, from three requests of which the last carries a message."""
    told: list[tuple[str, bytes]] = []
    asked = itertools.count()
    line = Line(lambda request, _: site(request), lambda what, answer: told.append((what, answer)))
    line.send(b"before it is here", 0)

    def stopped() -> bool:
        if told and told[-1][0] == "here":
            line.send(b"task", 0)
        return next(asked) >= 2

    line.run(stopped)
    return told


@pytest.mark.usefixtures("short_pauses")
def test_a_site_that_says_at_once_that_it_works_is_not_asked_all_the_time() -> None:
    asked: list[float] = []

    def ask(request: Mapping[str, Any], _limit: float) -> dict[str, Any]:
        asked.append(time.monotonic())
        return {"id": request["id"], "state": "working" if request["id"] else "idle", "answer": b""}

    line = Line(ask, lambda what, answer: line.send(b"task", 0) if what == "here" else None)
    line.run(lambda: len(asked) >= 4)  # the first greets, the second delivers
    assert asked[3] - asked[1] >= 2 * server_relay.SECONDS_AT_SITE


def test_a_new_message_is_delivered_although_a_site_says_that_it_works() -> None:
    delivered: list[bytes] = []

    def ask(request: Mapping[str, Any], _limit: float) -> dict[str, Any]:
        if request["message"]:
            delivered.append(request["message"])
            threading.Timer(0.1, line.send, (b"another", 0)).start()
        return {"id": request["id"], "state": "working" if request["id"] else "idle", "answer": b""}

    line = Line(ask, lambda what, answer: line.send(b"task", 0) if what == "here" else None)
    line.run(lambda: len(delivered) >= 2)
    assert delivered == [b"task", b"another"]
