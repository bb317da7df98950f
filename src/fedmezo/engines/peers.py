"""A client elsewhere as the server sees it: where it is, what it owes, and what its conduct has earned it.

A first wrong answer costs a client only that it is set up again and that no round waits for it until it has reported.
A second one bars it for ten rounds, each further one for twice as many as the one before. A hundred good reports make
up for one wrong answer, so that a mishap now and then never adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fedmezo.federation.joining import Ready

ROUNDS_BARRED = 10
MOST_DOUBLINGS = 20
REPORTS_TO_FORGIVE = 100


class Contact(Enum):
    """What a transport knows of a client."""

    AWAY = "away"  # it cannot be reached
    COMING = "coming"  # it is expected, and has not answered yet
    HERE = "here"


@dataclass(slots=True, eq=False)
class Peer:
    """One client."""

    contact: Contact = Contact.AWAY
    ready: Ready | None = None  # since it was last HERE
    owes_ready: bool = False  # it was sent a setup that it has not answered
    owes_round: int | None = None  # of the task that it has not answered
    excluded: str = ""  # why it cannot take part at all, in its own words
    trusted: bool = True  # rounds wait for it
    strikes: int = 0
    barred_before: int = 0  # it takes part again in this round
    good_reports: int = 0

    @property
    def is_awaited(self) -> bool:
        """Whether a round waits for its answer."""
        return self.contact is not Contact.AWAY and self.trusted and not self.excluded

    @property
    def is_idle(self) -> bool:
        """Whether it is here without having been set up."""
        return self.contact is Contact.HERE and self.ready is None and not self.owes_ready and not self.excluded

    def forget(self) -> None:
        """Expect no answer to anything."""
        self.ready, self.owes_ready, self.owes_round = None, False, None

    def is_barred(self, round_index: int) -> bool:
        """Whether it is not to take part in a round."""
        return round_index < self.barred_before

    def strike(self, round_index: int) -> int:
        """Note a wrong answer in a round; returns how many rounds it is barred for."""
        self.trusted = False
        self.strikes += 1
        self.good_reports = 0
        if self.strikes == 1:
            return 0
        rounds = ROUNDS_BARRED << min(self.strikes - 2, MOST_DOUBLINGS)
        self.barred_before = round_index + 1 + rounds
        self.forget()
        return rounds

    def praise(self) -> None:
        """Note a good report."""
        self.trusted = True
        self.good_reports += 1
        if self.strikes and self.good_reports % REPORTS_TO_FORGIVE == 0:
            self.strikes -= 1
