"""The training loop's end of the line to the server's relay: the `Transport` of the distributed engine.

Relays come and go with FLARE's jobs; between two of them every client is away.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from fedmezo.engines.distributed import Arrival
from fedmezo.engines.peers import Contact
from fedmezo.machines.flare.exchange import ANSWERED
from fedmezo.machines.frames import listen, receive_frame, send_frame, word

logger = logging.getLogger(__name__)

_NEWS = (ANSWERED, *(contact.value for contact in Contact))


class Link:
    """Messages to sites by client number, and news of them.

    Args:
        path: where the server's relay finds the socket.
        sites: names in the order of the client numbers.
    """

    def __init__(self, path: Path, sites: Sequence[str]) -> None:
        self._sites = tuple(sites)
        self._news: queue.Queue[Arrival] = queue.Queue()
        self._lock = threading.Lock()
        self._contacts = dict.fromkeys(self._sites, Contact.AWAY)
        self._connection: socket.socket | None = None
        self._listener = listen(path)
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    @property
    def contacts(self) -> dict[str, Contact]:
        """Where each site is."""
        with self._lock:
            return dict(self._contacts)

    @property
    def connected(self) -> bool:
        """Whether there is a relay."""
        return self._connection is not None

    def send(self, client: int, message: bytes, answer_size: int) -> None:
        """Send a message in place of any that the client has not answered; it is lost if there is no relay."""
        connection = self._connection
        if connection is None:
            return
        try:
            send_frame(connection, {"site": self._sites[client], "answer_size": answer_size}, message)
        except OSError:
            logger.debug("the relay went away while a message was sent to client %d", client)

    def receive(self, seconds: float) -> Arrival | None:
        """Wait so long for news."""
        try:
            return self._news.get(timeout=seconds)
        except queue.Empty:
            return None

    def hang_up(self) -> None:
        """End the relay's segment."""
        connection = self._connection
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                logger.debug("the relay had gone already")

    def close(self) -> None:
        """Hang up and listen no more."""
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                self._connection = connection
                self._read(connection)
                self._connection = None
            for site in self._sites:
                self._note(site, Contact.AWAY)

    def _read(self, connection: socket.socket) -> None:
        while True:
            try:
                values, answer = receive_frame(connection)
                self._take(word(values, "site"), word(values, "what"), answer)
            except OSError as error:
                logger.debug("the relay is taken for gone: %s", error)
                return

    def _take(self, site: str, what: str, answer: bytes) -> None:
        if site not in self._sites or what not in _NEWS:
            raise ConnectionError(f"news that cannot be: {what!r} of {site!r}")
        if what == ANSWERED:
            self._news.put(Arrival(self._sites.index(site), Contact.HERE, answer))
        else:
            self._note(site, Contact(what))

    def _note(self, site: str, contact: Contact) -> None:
        with self._lock:
            if self._contacts[site] is Contact.AWAY and contact is Contact.AWAY:
                return
            self._contacts[site] = contact
        self._news.put(Arrival(self._sites.index(site), contact))
