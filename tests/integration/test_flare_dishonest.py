"""A real FLARE site that cheats, beside two that do not: after each attack their run ends, replays, and names it.

The sites are started once; several attacks share a run, in which each but the first bars the site for some rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.attacks import LIAR, WRONG
from tests.dishonest_site import ATTACKS_FILE
from tests.machines import Machines, clients_of

pytest.importorskip("nvflare")

RUNS: dict[str, list[str]] = {
    "identity": [
        "reports as a client that does not exist",
        "reports as another client",
        "counts as many examples as fit",
        "sends scalars a thousand times as large",
    ],
    "progress": ["answers a setup with noise", "has a loss that overflows", "reports of another round"],
    "silence": ["never reports"],
}
ROUNDS = 40  # the second attack bars for 10 rounds, the third for 20, and there is one more after it
DEADLINE = 15.0  # of the run that has a silent site; the honest need a fraction of a second


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    cluster = Machines(tmp_path_factory.mktemp("dishonest"))
    try:
        cluster.run("partition", cluster.config("shares"), "--out", cluster.root / "shares")
        for kit in cluster.sites:
            cluster.start_site(kit, module="tests.dishonest_site" if kit.client == LIAR else "fedmezo")
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize("name", RUNS)
def test_the_run_ends_replays_and_names_who_cheats(machines: Machines, name: str) -> None:
    changes: dict[str, Any] = {
        "federate.total_round_num": ROUNDS,
        "federate.min_clients": 2,
        "train.train_strategy": "five-round",
        "train.zo.clip": 0,
        "eval.freq": 0,
    }
    if name == "silence":
        changes["federate.round_deadline"] = DEADLINE
    attacks = machines.root / "shares" / ATTACKS_FILE
    attacks.write_text("".join(f"{attack}\n" for attack in RUNS[name]))
    machines.run("serve", machines.server.folder, machines.config(name, **changes))
    journal = machines.journal(name)
    assert len(journal) == ROUNDS
    assert all([client for client in clients_of(line) if client != LIAR] == [0, 1] for line in journal)
    refusals = [refusal for line in journal for refusal in line["refused"]]
    assert {refusal["client"] for refusal in refusals} == {LIAR}
    for attack in RUNS[name]:
        # a report of another round may come when its site is not waited for, and is then wrong for that alone
        untimely = ("reports without a task",) if attack == "reports of another round" else ()
        reasons = (WRONG[attack][1], *untimely)
        assert any(reason in refusal["reason"] for refusal in refusals for reason in reasons), (attack, refusals)
    machines.run("replay", machines.root / "runs" / name)  # which checks every state
