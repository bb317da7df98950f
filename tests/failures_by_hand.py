"""Break things under a run on several machines, one after the other: `python -m tests.failures_by_hand FOLDER`.

It takes about ten minutes, prints what was done and what was seen, and ends with an error if the journal is not what
it must be: every round once, no round without enough reports, and replay giving every state.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.machines import (
    FLARE_CLIENT,
    FLARE_JOB,
    FLARE_SERVER,
    SITES,
    WORKER,
    Machines,
    clients_of,
)
from tests.waiting import PATIENCE, wait_until

Action = Callable[[], object]

VICTIM = 1
NAME = SITES[VICTIM]
ROUNDS = 100_000  # more than there is time for; it is stopped when everything has been tried
QUIET_SECONDS = 5.0


class Failures:
    """The cluster and what is done to it."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.kit = machines.sites[VICTIM]

    def rounds(self) -> int:
        """How many rounds are committed."""
        return len(self.machines.journal())

    def together(self) -> bool:
        """Whether all clients contributed to the last round."""
        journal = self.machines.journal()
        return bool(journal) and len(clients_of(journal[-1])) == len(SITES)

    def try_out(self, what: str, harm: Action, repair: Action, seconds: float) -> None:
        """Do harm, repair it after some seconds, and report."""
        wait_until(self.together, "all sites together")
        first = self.rounds()
        started = time.monotonic()
        harm()
        wait_until(lambda: self.rounds() > first + 1, f"{what}: the run goes on")
        stalled = time.monotonic() - started
        time.sleep(max(0.0, seconds - stalled))
        repaired = time.monotonic()
        repair()
        at = self.rounds()
        wait_until(lambda: self.rounds() > at + 1 and self.together(), f"{what}: together again")
        back = time.monotonic() - repaired
        without = [line for line in self.machines.journal()[first:] if len(clients_of(line)) < len(SITES)]
        print(
            f"{what}: next two rounds after {stalled:.1f} s, {len(without)} rounds without a site, "
            f"together again {back:.1f} s after the repair",
            flush=True,
        )
        time.sleep(QUIET_SECONDS)


def main() -> None:
    """Try everything."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="failures-"))
    machines = Machines(folder, through_proxies=True)
    changes: dict[str, Any] = {"federate.total_round_num": ROUNDS, "train.local_update_steps": 40, "eval.freq": 0}
    config = machines.config(**changes)
    machines.run("partition", config, "--out", folder / "shares")
    try:
        server = machines.start("server", "serve", machines.server.folder, config)
        for kit in machines.sites:
            machines.start_site(kit)
        print(f"folder {folder}; first round after {wait_until(lambda: bool(machines.journal()), 'start'):.1f} s")
        break_everything(machines, Failures(machines))
        machines.started["server"].send_signal(signal.SIGINT)
        assert machines.started["server"].wait(PATIENCE) == 130, server
        check(machines)
    finally:
        machines.close()


def break_everything(machines: Machines, failures: Failures) -> None:
    """All kinds of harm."""

    def send(number: signal.Signals, kind: str = "", name: str = NAME) -> Action:
        return partial(machines.signal, name, number, kind)

    kill, freeze, thaw = (partial(send, number) for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT))
    one = machines.proxies[NAME]
    start_site = partial(machines.start_site, failures.kit)
    cases: list[tuple[str, Action, Action, float]] = [
        ("model worker killed", kill(WORKER), nothing, 0),
        ("FLARE's client killed", kill(FLARE_CLIENT), nothing, 0),
        ("FLARE's job process on a site killed", kill(FLARE_JOB), nothing, 0),
        ("whole site killed, started again after 60 s", kill(), start_site, 60),
        ("site frozen for 30 s", freeze(), thaw(), 30),
        ("model worker alone frozen for 40 s", freeze(WORKER), thaw(), 40),
        ("network of one site cut for 30 s", one.cut, one.mend, 30),
        ("network of all sites cut for 30 s", partial(cut_all, machines), nothing, 0),
        ("FLARE's server killed", kill(FLARE_SERVER, "server"), nothing, 0),
        ("whole server killed, started again after 20 s", partial(restart_server, machines), nothing, 0),
    ]
    for what, harm, repair, seconds in cases:
        failures.try_out(what, harm, repair, seconds)


def nothing() -> None:
    """Repair nothing: the run must help itself."""


def cut_all(machines: Machines) -> None:
    """Cut every site off for 30 s."""
    for proxy in machines.proxies.values():
        proxy.cut()
    time.sleep(30)
    for proxy in machines.proxies.values():
        proxy.mend()


def restart_server(machines: Machines) -> None:
    """Kill all of the server, and go on with the run 20 s later."""
    machines.signal("server", signal.SIGKILL)
    machines.started["server"].wait()
    time.sleep(20)
    machines.start("server", "serve", machines.server.folder, machines.root / "runs" / "run")


def check(machines: Machines) -> None:
    """The journal is what it must be."""
    journal = machines.journal()
    assert [line["round"] for line in journal] == list(range(len(journal)))
    assert all(clients_of(line) == sorted(set(clients_of(line))) for line in journal)
    counts = {count: sum(len(clients_of(line)) == count for line in journal) for count in (1, 2, 3)}
    print(f"{len(journal)} rounds: {counts} by the number of clients")
    print(machines.run("replay", machines.root / "runs" / "run", seconds=600).strip().split("\n")[-1])


if __name__ == "__main__":
    main()
