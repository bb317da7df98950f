"""What a site finds out about its way to the server, beside FLARE, which tells nobody: is it there, ours, and alone?

FLARE tries for ever to reach a server, whatever is wrong, and writes it to its log. Two sites with one kit throw each
other out for ever, since a server keeps one connection for each kit. Their owners can only be told on their terminals.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections import deque
from pathlib import Path

from fedmezo.machines.flare.project import Kit

SECONDS_TO_CONNECT = 5.0
SECONDS_BETWEEN_LOOKS = 10.0
CLOSED_TIMES = 3
"""So often within `SECONDS_OF_CLOSING` a server closes a connection that is not a kit's only one."""
SECONDS_OF_CLOSING = 240.0
_CLOSED = re.compile(rb"Connection \[CN\d+ [^]]*\] is closed PID: (\d+)")


def connection_fault(host: str, port: int) -> str | None:
    """Why there is no connection to the server now; None if there is."""
    try:
        socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def authority_fault(kit: Kit) -> str | None:
    """What is wrong with the certificates, of which each side must have one of the same authority; None if nothing is.

    Raises:
        OSError: there is no server, or it does not answer.
    """
    if kit.plaintext:
        return None
    startup = kit.folder / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.check_hostname = False  # FLARE's certificates name parties, not hosts
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    with socket.create_connection((kit.host, kit.port), timeout=SECONDS_TO_CONNECT) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                connection.recv(1)  # the server's verdict on our certificate comes after the handshake
        except ssl.SSLCertVerificationError as error:
            return f"the server there has a kit of another authority than this one ({error.verify_message})"
        except ssl.SSLError as error:
            if error.reason and ("ALERT" in error.reason or "UNKNOWN_CA" in error.reason):
                return "the server there refuses the certificate of this kit"
            raise
    return None


class Doorstep:
    """Watches the way to the server and says each thing once, when it is found out.

    Args:
        kit: the site's.
        log: FLARE's output.
    """

    def __init__(self, kit: Kit, log: Path) -> None:
        self._kit = kit
        self._log = log
        self._at = log.stat().st_size if log.exists() else 0
        self._next_look = 0.0
        self._reached = False
        self._closings: deque[float] = deque(maxlen=CLOSED_TIMES)
        self._said: set[str] = set()

    def look(self, now: float, flare: int) -> list[str]:
        """What there is to tell that is new.

        Args:
            now: in seconds from any origin.
            flare: process number of FLARE's client, whose connection counts; a job has one of its own.
        """
        closed = self._count_closings(flare)
        if not closed and (self._reached or now < self._next_look):
            return []
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        try:
            fault = authority_fault(self._kit)
        except OSError:
            self._closings.clear()  # there is no server at all: no wonder that the connection is closed
            return []
        self._reached = fault is None
        if fault is not None:
            return self._once(f"{fault}: both need kits of one `fedmezo provision`")
        self._closings.extend([now] * closed)
        if len(self._closings) < CLOSED_TIMES or now - self._closings[0] > SECONDS_OF_CLOSING:
            return []
        return self._once(
            "the server closes this site's connection again and again: another `fedmezo site` seems to run with the "
            f"kit of {self._kit.party}, which is for one site at a time"
        )

    def _once(self, text: str) -> list[str]:
        if text in self._said:
            return []
        self._said.add(text)
        return [text]

    def _count_closings(self, flare: int) -> int:
        """How often FLARE's client has lost its connection since the last look."""
        if not self._log.exists():
            return 0
        with self._log.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._at += whole
        return sum(int(match[1]) == flare for match in _CLOSED.finditer(text[:whole]))
