"""A real FLARE site that cheats, beside two that do not: after each attack their run ends, replays, and names it.

The sites are started once. Many attacks share a run, in which each but the first bars the site for some rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.attacks import FLOOD, LIAR, WRONG
from tests.dishonest_site import ATTACKS_FILE
from tests.machines import Machines, clients_of

pytest.importorskip("nvflare")

SILENT = "never reports"
DEADLINE = 15.0  # the honest need a fraction of a second


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


def test_a_site_that_is_needed_plays_every_attack_and_the_run_ends(machines: Machines) -> None:
    """The round is tried again after each, as it needs all three sites; in the end this one reports what it should."""
    attacks = [SILENT, *(attack for attack in WRONG if attack != SILENT)]  # first: each try may take twice as long
    changes = {"federate.min_clients": 3, "federate.round_tries": 40, "federate.round_deadline": DEADLINE}
    refusals = run_with(machines, "needed", [*attacks, FLOOD], 3, changes)
    assert (machines.root / "shares" / ATTACKS_FILE).read_text() == ""  # each was played and noticed
    require_named(attacks, refusals)


def test_a_site_that_is_not_needed_is_barred(machines: Machines) -> None:
    attacks = ["reports as another client", "counts as many examples as fit", "has a loss that overflows"]
    refusals = run_with(machines, "barred", attacks, 40, {"federate.min_clients": 2})
    require_named(attacks, refusals)
    assert len(refusals) == 3  # the second bars for 10 rounds, the third for 20, and then it has no more


def require_named(attacks: Sequence[str], refusals: Sequence[dict[str, Any]]) -> None:
    assert {refusal["client"] for refusal in refusals} == {LIAR}
    for attack in attacks:
        assert any(WRONG[attack][1] in refusal["reason"] for refusal in refusals), (attack, refusals)


def run_with(
    machines: Machines, name: str, attacks: Sequence[str], rounds: int, changes: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run and replay; the honest must have contributed to every round. Returns what was refused."""
    settings: dict[str, Any] = {
        "federate.total_round_num": rounds,
        "train.train_strategy": "five-round",
        "train.zo.clip": 0,
        "eval.freq": 0,
        **changes,
    }
    (machines.root / "shares" / ATTACKS_FILE).write_text("".join(f"{attack}\n" for attack in attacks))
    machines.run("serve", machines.server.folder, machines.config(name, **settings))
    journal = machines.journal(name)
    assert len(journal) == rounds
    assert all([client for client in clients_of(line) if client != LIAR] == [0, 1] for line in journal)
    machines.run("replay", machines.root / "runs" / name)  # which checks every state
    return [refusal for line in journal for refusal in line["refused"]]
