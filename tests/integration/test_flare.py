"""A run on several machines, with real processes on this one: it is the simulation's run, and survives.

One cluster serves all tests of the module, since each of its processes takes seconds to start.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines import READY, SITES, WORKER, Machines, clients_of
from tests.waiting import PATIENCE, wait_until

pytest.importorskip("nvflare")

ROUNDS = 120
VICTIM = 1


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    cluster = Machines(tmp_path_factory.mktemp("machines"))
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def alone(machines: Machines) -> str:
    """What a server says that is interrupted once before any site is there."""
    server = machines.start("alone", "serve", machines.server.folder, machines.config("alone"))
    wait_until(lambda: "begins when clients" in machines.output("alone"), "the first round is due")
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 130
    return machines.output("alone")


def test_ctrl_c_while_no_site_is_there(machines: Machines, alone: str) -> None:
    [said] = [line for line in alone.splitlines() if "interrupted" in line]
    run = machines.root / "runs" / "alone"
    assert said == f"interrupted; no round was lost. To go on: fedmezo serve {machines.server.folder} {run}"
    assert "Traceback" not in alone


def test_the_server_shows_the_examples_it_knows_and_no_others(alone: str) -> None:
    """What the sites hold is not known before they report."""
    assert "nothing is evaluated: the server has no examples of its own (--held-out FILE)" in alone
    assert "Examples per client" not in alone


@pytest.fixture(scope="module")
def journal(machines: Machines) -> list[dict[str, Any]]:
    """A run of three sites, one of whose model workers is killed after a few rounds.

    Between its death and its return, the server holds still, so that a slow start costs no rounds.
    """
    config = machines.config("killed", **_changes())
    machines.run("partition", config, "--out", machines.root / "shares")
    server = machines.start("server", "serve", machines.server.folder, config)
    for kit in machines.sites:
        machines.start_site(kit)
    wait_until(lambda: len(machines.journal("killed")) >= 3, "the first rounds")
    machines.signal(SITES[VICTIM], signal.SIGKILL, WORKER)
    wait_until(lambda: VICTIM not in clients_of(machines.journal("killed")[-1]), "a round without the killed worker")
    server.send_signal(signal.SIGSTOP)
    wait_until(lambda: machines.output(SITES[VICTIM]).count(READY) == 2, "the worker's return")
    server.send_signal(signal.SIGCONT)
    assert server.wait(PATIENCE) == 0, machines.output("server")
    return machines.journal("killed")


def _changes() -> dict[str, Any]:
    return {
        "federate.total_round_num": ROUNDS,
        "federate.min_clients": 2,
        "train.local_update_steps": 20,
        "train.train_strategy": "round-wise",
        "eval.freq": 0,
    }


def test_every_round_is_there_once(journal: list[dict[str, Any]]) -> None:
    assert [line["round"] for line in journal] == list(range(ROUNDS))


def test_the_run_goes_on_without_the_killed_worker_and_takes_it_back(journal: list[dict[str, Any]]) -> None:
    took_part = [clients_of(line) for line in journal]
    assert took_part[0] == took_part[-1] == [0, 1, 2]
    assert [0, 2] in took_part
    assert all(clients in ([0, 1, 2], [0, 2]) for clients in took_part)


def test_the_end_state_is_what_the_journal_replays_to(machines: Machines, journal: list[dict[str, Any]]) -> None:
    """`replay` checks the state after every round."""
    out = machines.root / "replayed"
    machines.run("replay", machines.root / "runs" / "killed", "--out", out)
    adapter = machines.root / "runs" / "killed" / "adapter"
    assert (out / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()


def test_the_model_is_loaded_once_by_those_who_live(machines: Machines, journal: list[dict[str, Any]]) -> None:
    loads = [machines.output(site).count("joined as client") for site in SITES]
    assert loads == [1, 2, 1]


def test_nobody_else_can_use_the_keys(machines: Machines) -> None:
    files = [path for path in (machines.root / "kits").rglob("*") if path.is_file() and _is_secret(path)]
    assert len(files) == len(SITES) + 3  # the server's, the operator's, and the authority's file with all of them
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (machines.root / "kits").iterdir()} == {0o700}


def _is_secret(path: Path) -> bool:
    return b"PRIVATE KEY" in path.read_bytes()


def test_weights_give_the_simulations_journal_to_the_bit(machines: Machines, journal: list[dict[str, Any]]) -> None:
    """The same sites take part in another run, of back-propagation, with another setup."""
    changes = {
        "trainer.type": "llmtrainer",
        "federate.protocol": "weights",
        "federate.total_round_num": 3,
        "federate.min_clients": 3,
    }
    machines.run("serve", machines.server.folder, machines.config("several", **changes))
    machines.run("run", machines.config("one", **changes))
    several, one = (_without_chain(machines.journal(name)) for name in ("several", "one"))
    assert several == one


def _without_chain(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chain begins with the header, where the server has no hash of data it does not know."""
    return [{key: value for key, value in line.items() if key != "chain"} for line in journal]


def test_everything_on_this_machine_writes_the_simulations_journal(machines: Machines) -> None:
    for engine in ("simulation", "flare"):
        config = machines.config(engine, **{"federate.total_round_num": 3, "train.lanes": 1})
        machines.run("run", config, "--engine", engine)
    several, one = ((machines.root / "runs" / name / "journal.jsonl").read_bytes() for name in ("flare", "simulation"))
    assert several == one
    assert json.loads(one.splitlines()[-1])["kind"] == "end"
