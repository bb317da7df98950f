"""What FLARE runs on the server: a relay between the training loop's socket and the sites. It imports no torch.

For each site there is a thread that has at most one request on its way. It delivers the site's newest message, asks
for the answer until it is there, and in between sees whether the site can be reached.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedmezo.machines.flare.exchange import ANSWERED, IDLE, LOST, SERVER_SOCKET, TOPIC, WORKING
from fedmezo.machines.frames import connect, number, receive_frame, send_frame, word
from fedmezo.machines.orphans import exit_with_parent

SECONDS_TO_REPLY = 5.0
"""What a request may take beyond the time that its payload needs and that the site may wait."""
SECONDS_AT_SITE = 2.0
SECONDS_BETWEEN_LOOKS = 5.0
"""How often a site without work is asked whether it is there."""
SECONDS_BETWEEN_TRIES = 1.0
SECONDS_TO_COME = 60.0
"""How long a site of the job may take to answer at all, before it is away."""
SLOWEST_BYTES_PER_SECOND = 500_000
"""What a large message may be carried at before its site is taken for away."""

ROOM_FOR_WORDS = 1 << 16
"""Bytes that any answer may have: a ready message, or a refusal with its reason."""

MOST_TRIES = 5
"""How often a site is sent a message that it says it does not know."""

COMING, HERE, AWAY = "coming", "here", "away"

_STATES = (IDLE, WORKING, ANSWERED, LOST)

Ask = Callable[[Mapping[str, Any], float], Mapping[str, Any] | None]
Tell = Callable[[str, bytes], None]


@dataclass(slots=True, eq=False)
class _Message:
    """A message on its way to a site."""

    id: int
    payload: bytes
    answer_size: int
    seconds: float  # that carrying it or its answer may take
    delivered: bool = False
    tries: int = 0  # how often the site did not know it


@dataclass(eq=False)
class Line:
    """The relay's end of the line to one site.

    Args:
        ask: makes one request with a time limit; None is no reply.
        tell: passes on where the site is now, or with ANSWERED its answer.
    """

    ask: Ask
    tell: Tell
    seconds_to_come: float = SECONDS_TO_COME
    contact: str = COMING
    _count: int = 0
    _message: _Message | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)

    def send(self, payload: bytes, answer_size: int) -> None:
        """Put a message in place of the one that is not answered."""
        with self._news:
            self._count += 1
            seconds = (len(payload) + answer_size) / SLOWEST_BYTES_PER_SECOND
            self._message = _Message(self._count, payload, answer_size + ROOM_FOR_WORDS, seconds)
            self._news.notify()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Look after the site until stopped."""
        until = time.monotonic() + self.seconds_to_come
        self.tell(COMING, b"")
        while not stopped():
            message, asked = self._message, time.monotonic()
            reply = self.ask(*self._request(message if self.contact == HERE else None))
            if reply is not None:
                self._take(message, reply)
            elif self.contact == HERE or (self.contact == COMING and time.monotonic() > until):
                self._move(AWAY)
            self._rest(message, asked)

    def _request(self, message: _Message | None) -> tuple[dict[str, Any], float]:
        if message is None:
            return {"id": 0, "message": b"", "wait": 0.0}, SECONDS_TO_REPLY
        payload = b"" if message.delivered else message.payload
        limit = SECONDS_TO_REPLY + SECONDS_AT_SITE + message.seconds
        return {"id": message.id, "message": payload, "wait": SECONDS_AT_SITE}, limit

    def _take(self, message: _Message | None, reply: Mapping[str, Any]) -> None:
        state = reply["state"] if is_sound(reply) else LOST
        if self.contact != HERE:
            if state == LOST:
                return
            self._drop(message)  # it belongs to the time before; whoever sent it hears that the site is here anew
            self._move(HERE)
            return
        if message is None:
            if state == LOST:
                self._move(AWAY)
            return
        if state != LOST and (reply["id"] != message.id or state == IDLE):  # it does not know the message
            message.tries += 1
            state = IDLE if message.tries < MOST_TRIES else LOST
        message.delivered = state == WORKING  # else the site gets it once more
        if state == ANSWERED:
            self._drop(message)
            answer = reply["answer"]
            self.tell(ANSWERED, answer if len(answer) <= message.answer_size else b"")  # which nobody can read
        elif state == LOST:
            self._drop(message)
            self._move(AWAY)

    def _drop(self, message: _Message | None) -> None:
        with self._news:
            if self._message is message:
                self._message = None

    def _move(self, contact: str) -> None:
        self.contact = contact
        self.tell(contact, b"")

    def _rest(self, message: _Message | None, asked: float) -> None:
        """Wait before the next request, unless there is a new message to look after.

        An honest site that works on the message has waited itself.
        """
        with self._news:
            if self.contact != HERE:
                self._news.wait(SECONDS_BETWEEN_TRIES)
            elif message is not None and self._message is message:
                self._news.wait_for(lambda: self._message is not message, asked + SECONDS_AT_SITE - time.monotonic())
            else:
                self._news.wait_for(lambda: self._message is not None, SECONDS_BETWEEN_LOOKS)


def is_sound(reply: Mapping[str, Any]) -> bool:
    """Whether a reply is what a site's relay of ours would send; what else runs there is the site's secret."""
    exchange, state, answer = (reply.get(key) for key in ("id", "state", "answer"))
    return type(exchange) is int and state in _STATES and isinstance(answer, bytes)


class ServerRelay(Controller):  # type: ignore[misc]  # nvflare has no types
    """Runs until the training loop closes its socket, says that the segment is over, or the job is aborted."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Connect to the training loop."""
        exit_with_parent()
        self._connection = connect(os.environ[SERVER_SOCKET])
        self._sending = threading.Lock()

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Relay."""
        over = threading.Event()
        lines = {client.name: self._line(client.name, fl_ctx) for client in fl_ctx.get_engine().get_clients()}
        threads = [threading.Thread(target=line.run, args=(over.is_set,), daemon=True) for line in lines.values()]
        threads.append(threading.Thread(target=self._listen, args=(lines, over), daemon=True))
        for thread in threads:
            thread.start()
        while not over.wait(0.2) and not abort_signal.triggered:
            pass
        over.set()

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Let the training loop know that this segment is over."""
        self._connection.close()

    def _line(self, site: str, fl_ctx: FLContext) -> Line:
        engine = fl_ctx.get_engine()

        def ask(request: Mapping[str, Any], limit: float) -> Mapping[str, Any] | None:
            with engine.new_context() as context:
                replies = engine.send_aux_request([site], TOPIC, Shareable(request), limit, context, optional=True)
            reply = (replies or {}).get(site)
            return reply if reply is not None and reply.get_return_code() == ReturnCode.OK else None

        def tell(what: str, answer: bytes) -> None:
            with self._sending:
                send_frame(self._connection, {"site": site, "what": what}, answer)

        return Line(ask, tell)

    def _listen(self, lines: Mapping[str, Line], over: threading.Event) -> None:
        """Take the training loop's messages."""
        try:
            while not over.is_set():
                values, payload = receive_frame(self._connection)
                line = lines.get(word(values, "site"))
                if line is not None:
                    line.send(payload, number(values, "answer_size"))
        except OSError:
            pass  # the training loop ended the segment, or itself
        finally:
            over.set()
