"""The command `audit`: which clients, or groups of them, did a run good or harm, from its journal alone.

The journal is replayed with every state checked, each party's update is made again and held against the others', and
the run is replayed without each of them. Where the run's data are at hand, the loss of each of these runs is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedmezo.config import Config, load_config
from fedmezo.errors import DataError, RunError
from fedmezo.federation.course import Course
from fedmezo.records import RoundRecord
from fedmezo.results.console import work_progress
from fedmezo.runs import assemble
from fedmezo.runs.assemble import TunedModel
from fedmezo.runs.directory import CONFIG_FILE, write_numbers
from fedmezo.runs.evaluate import evaluate
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JOURNAL_FILE, read_journal
from fedmezo.runs.places import NOT_MOVED, Moved
from fedmezo.runs.replay import initial_theta, rebuild_, replaying_course, require_scalars
from fedmezo.runs.snapshots import snapshots_of
from fedmezo.studies.influence import Party, compare, remarks, replay_without
from fedmezo.studies.suspects import membership_of, show_membership

MOST_REPLAYS = 32
"""Parties that the run is replayed without: of more, those that agree least with the others."""
NUMBERS_FILE = "audit.json"

Loss = Callable[[Tensor], float]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Args:
        kind: `client` or `group`.
        loss: of the run with everybody; not a number where there was nothing to measure it on.
        parties: all of them.
        remarks: what is unlike the others about some, by number.
    """

    kind: str
    loss: float
    parties: tuple[Party, ...]
    remarks: dict[int, list[str]]


def audit(folder: Path, moved: Moved = NOT_MOVED, *, members: bool = False) -> int:
    """Audit a run, print what was found and write it into the run's folder; returns the exit code.

    Args:
        folder: the run's folder.
        moved: what is not where the run had it.
        members: also try to tell the clients' examples from held-out ones, by what the server saw.

    Raises:
        FedMeZOError: whatever a user can act on; RunError for a folder that holds no run, or one without scalars.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise RunError(f"{path}: no such file; is {folder} the folder of a run?")
    config, console = moved.applied(load_config(path).config), Console()
    journal = read_journal(folder / JOURNAL_FILE)
    require_scalars(journal.header, folder)
    if not journal.records:
        raise RunError(f"{folder / JOURNAL_FILE}: no round was committed yet, so there is nothing to audit")
    tuned = assemble.load_model(config)
    header = journal.header
    theta = initial_theta(tuned.model, header, snapshots_of(folder) if header.restored else None)
    course = replaying_course(header, journal.records, theta)
    with work_progress(console, "replaying rounds") as show_progress:
        rounds = len(journal.records)
        rebuild_(theta.clone(), header, journal.records, lambda done: show_progress(done, rounds))
    found = examine(header, journal.records, course, theta, loss_of(config, tuned, console), console)
    show(console, found)
    numbers = {"version": 1, **asdict(found)}
    if members:
        inferred = membership_of(config, tuned, header, journal.records, course, theta, console)
        if inferred is not None:
            show_membership(console, inferred, header)
            numbers["membership"] = asdict(inferred)
    write_numbers(folder / NUMBERS_FILE, numbers)
    console.print(f"Numbers are in {folder / NUMBERS_FILE}", soft_wrap=True, highlight=False)
    return 0


def loss_of(config: Config, tuned: TunedModel, console: Console) -> Loss | None:
    """Gives the loss of a theta (d,) on the run's held-out examples; None where there are none here."""
    try:
        holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    except DataError as error:
        console.print(f"no loss is measured, since the run's data are not here: {error}", soft_wrap=True)
        return None
    held_out = assemble.held_out(config, holdings.partition)
    if not held_out:
        console.print("no loss is measured: the run holds out no examples", soft_wrap=True)
        return None
    shards = held_out.get(config.eval.best_res_update_round_wise_key, next(iter(held_out.values())))
    return lambda theta: evaluate(tuned.model, theta, holdings.dataset, shards).value


def examine(
    header: Header,
    records: tuple[RoundRecord, ...],
    course: Course,
    theta: Tensor,
    loss: Loss | None,
    console: Console,
) -> Audit:
    """Compare the parties, and replay the run without each of them; theta (d,) is the state before round 0."""
    with work_progress(console, "comparing updates") as progress:
        parties = compare(records, course, theta, progress)
    with_all, chosen = math.nan, sorted(parties, key=_least_alike)[:MOST_REPLAYS]
    if loss is not None and len(parties) > 1:
        with_all = loss(replay_without(records, None, course, theta))
        measured: dict[int, float] = {}
        with work_progress(console, "replaying without each") as progress:
            for party in chosen:
                measured[party.number] = loss(replay_without(records, party.number, course, theta))
                progress(len(measured), len(chosen))
        parties = [replace(party, loss_without=measured.get(party.number, math.nan)) for party in parties]
    said = {party.number: remarks(party, parties, len(theta), with_all) for party in parties}
    kind = "group" if header.direction_groups else "client"
    return Audit(kind, with_all, tuple(parties), {number: words for number, words in said.items() if words})


def _least_alike(party: Party) -> float:
    return -math.inf if math.isnan(party.agreement) else party.agreement


def show(console: Console, found: Audit) -> None:
    """Print the table, and name who is unlike the others."""
    table = Table(box=box.SIMPLE_HEAD)
    headings = (found.kind, "rounds", "size of its update", "agreement", "loss without it", "what it brought")
    for heading in headings:
        table.add_column(heading, justify="right")
    for party in found.parties:
        table.add_row(
            str(party.number),
            str(party.rounds),
            f"{party.size:.3g}",
            _number(party.agreement, "+.3f"),
            _number(party.loss_without, ".4f"),
            _number(party.loss_without - found.loss, "+.4f"),
        )
    heading = "" if math.isnan(found.loss) else f", and the loss, {found.loss:.4f} with all of them"
    console.print(f"Each {found.kind} beside the others{heading}", style="bold")
    console.print(table)
    for number, words in found.remarks.items():
        console.print(f"{found.kind} {number}: {'; '.join(words)}", soft_wrap=True, highlight=False)
    if not found.remarks:
        console.print(f"no {found.kind} is unlike the others", highlight=False)


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
