"""The two sides of an exchange over FLARE: one message to a site, one answer back, however long the work takes.

The server's relay asks; the site's relay replies within a second or two, with the answer or with word that work is
going on, and is asked again. So no request waits longer than the wires do, and silence means that a site is away.
Only bytes, small numbers and words are handed to FLARE. A request has `id` (0 only asks whether the worker is there),
`message` (a new one, or empty) and `wait` (seconds the reply may take); a reply has `id`, `state` and `answer`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fedmezo.machines.frames import connect, receive_frame, send_frame, word

TOPIC = "fedmezo"
WORKER_SOCKET = "FEDMEZO_WORKER_SOCKET"
"""Environment variable that tells a site's relay where its model worker listens."""
SERVER_SOCKET = "FEDMEZO_SERVER_SOCKET"
"""Environment variable that tells the server's relay where the training loop listens."""

IDLE = "idle"
WORKING = "working"
ANSWERED = "answered"
LOST = "lost"  # the worker died, hangs, or is not there

SECONDS_WITHOUT_SIGN = 20.0
"""After which a model worker that should say that it works is taken for dead."""

LONGEST_WAIT = 60.0
"""Seconds that a request may ask a site to wait with its reply."""

_SECONDS_TO_GREET = 2.0


def is_request(request: Mapping[str, Any]) -> bool:
    """Whether a request holds what one of the server's relay does."""
    number, message, wait = (request.get(key) for key in ("id", "message", "wait"))
    return (
        type(number) is int
        and number >= 0
        and isinstance(message, bytes)
        and isinstance(wait, int | float)
        and 0 <= wait <= LONGEST_WAIT
    )


class Mailbox:
    """The site's side: hands each new message to the model worker and keeps the answer until the next one.

    Args:
        socket_path: where the worker listens.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._id = 0
        self._state = IDLE
        self._answer = b""
        self._changed = threading.Condition()

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Reply to a request of the server's relay; one without a number only asks whether the worker is there.

        What is no such request, as a relay of ours sends it, is replied to as if the worker were lost.
        """
        if not is_request(request):
            return {"id": 0, "state": LOST, "answer": b""}
        if not request["id"]:
            return {"id": 0, "state": IDLE if self._is_worker_there() else LOST, "answer": b""}
        with self._changed:
            if request["message"] and request["id"] != self._id:  # a message that is repeated is not done twice
                self._id, self._state, self._answer = request["id"], WORKING, b""
                work = threading.Thread(target=self._work, args=(self._id, request["message"]), daemon=True)
                work.start()
            self._changed.wait_for(lambda: self._state != WORKING, request["wait"])
            return {"id": self._id, "state": self._state, "answer": self._answer}

    def _work(self, number: int, message: bytes) -> None:
        try:
            state, answer = ANSWERED, self._ask(message)
        except OSError:
            state, answer = LOST, b""
        with self._changed:
            if number == self._id:  # else a newer message has taken its place
                self._state, self._answer = state, answer
                self._changed.notify_all()

    def _is_worker_there(self) -> bool:
        try:
            with connect(self._socket_path, _SECONDS_TO_GREET) as connection:
                send_frame(connection, {})
                receive_frame(connection)
        except OSError:
            return False
        return True

    def _ask(self, message: bytes) -> bytes:
        with connect(self._socket_path, SECONDS_WITHOUT_SIGN) as connection:
            send_frame(connection, {}, message)
            while True:
                values, answer = receive_frame(connection)
                if word(values, "state") == "answer":
                    return answer
