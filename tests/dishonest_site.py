"""A site that cheats: as `python -m fedmezo site`, but its model worker plays the attacks that a file names.

The file is `attacks.txt` beside the site's data; its first line is struck out when the server has noticed that attack.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from fedmezo.cli import main as command
from fedmezo.federation.joining import is_setup
from fedmezo.machines import worker
from fedmezo.machines.settings import WorkerOptions
from fedmezo.machines.site import Site
from tests.attacks import FLOOD, WRONG, on_task

ATTACKS_FILE = "attacks.txt"
SECONDS_OF_SILENCE = 20.0
ATTACKS = {name: attack for name, (attack, _) in WRONG.items()} | {
    FLOOD: on_task(lambda message, answer: bytes(1 << 23))
}


class Cheat(Site):
    """Plays an attack until the server has noticed, and sets it up again."""

    attacks = Path()
    names: tuple[str, ...] = ()
    played = False

    def answer(self, message: bytes) -> bytes:
        """The honest answer, or another."""
        honest = super().answer(message)
        names = tuple(self.attacks.read_text().splitlines()) if self.attacks.exists() else ()
        if names != self.names:  # they are of a new run
            self.names, self.played = names, False
        if is_setup(message) and self.played:
            self.strike_out()
        is_first = not is_setup(message) and not any(message[5:9])  # a task of round 0, when not all sites may be there
        if not self.names or is_first:
            return honest
        dishonest = ATTACKS[self.names[0]](message, honest)
        if dishonest != honest:
            self.played = True
        if dishonest is None:
            time.sleep(SECONDS_OF_SILENCE)
            self.strike_out()
        return honest if dishonest is None else dishonest

    def strike_out(self) -> None:
        """Go on to the next attack."""
        self.names, self.played = self.names[1:], False
        self.attacks.write_text("".join(f"{name}\n" for name in self.names))


def _command(self: WorkerOptions) -> list[str]:
    return [sys.executable, "-m", "tests.dishonest_site", json.dumps(asdict(self))]


def main() -> int:
    """Be the site, or its model worker."""
    if not sys.argv[1].startswith("{"):
        WorkerOptions.command = _command  # type: ignore[method-assign]
        return command(sys.argv[1:])
    import fedmezo.machines.site

    Cheat.attacks = Path(json.loads(sys.argv[1])["data"]).with_name(ATTACKS_FILE)
    fedmezo.machines.site.Site = Cheat  # type: ignore[misc]
    worker.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
