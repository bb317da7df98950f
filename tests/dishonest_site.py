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
from tests.attacks import WRONG

ATTACKS_FILE = "attacks.txt"
SECONDS_OF_SILENCE = 30.0


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
            self.names, self.played = self.names[1:], False
            self.attacks.write_text("".join(f"{name}\n" for name in self.names))
        if not self.names:
            return honest
        dishonest = WRONG[self.names[0]][0](message, honest)
        if dishonest != honest:
            self.played = True
        if dishonest is None:
            time.sleep(SECONDS_OF_SILENCE)
        return dishonest or honest


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
