"""Tasks after some rounds of a run: evaluated once and kept, then shown beside the paper's percentages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmezo.campaign.catalogue import ItemSpec, PointSpec
from fedmezo.campaign.tables import Table
from fedmezo.config import Config
from fedmezo.errors import FedMeZOError
from fedmezo.tasks.examine import RESULTS_FILE, Request, examine

PAPER_ROUNDS = 500


def downstream_table(
    item: ItemSpec,
    specs: Sequence[PointSpec],
    folders: Sequence[Path | None],
    config: Config,
    out: Path,
    console: Console,
) -> Table:
    """Evaluate the first run of each point at the item's rounds, and set the paper's figures beside ours.

    Args:
        item: what is asked for; has downstream tasks.
        specs: its points.
        folders: of each point, its first run; None where it failed.
        config: of any of the runs.
        out: where the evaluations are kept.
        console: where progress is shown.
    """
    wanted = item.downstream
    assert wanted is not None, "the caller asks for items with downstream tasks"
    total = config.federate.total_round_num
    ours = {at: at * total // PAPER_ROUNDS for at in wanted.rounds}
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for spec, folder in zip(specs, folders, strict=True):
        if folder is None:
            continue
        found = {at: _scores(folder, ours[at], list(wanted.tasks), out, console, remarks) for at in wanted.rounds}
        for task, name in wanted.tasks.items():
            rows.append((f"{spec.label}, {name}", *(found[at].get(task, "-") for at in wanted.rounds)))
            if task in spec.downstream:
                padded = [f"{value:.2f}" for value in spec.downstream[task]]
                padded += ["-"] * (len(wanted.rounds) - len(padded))
                rows.append((f"{spec.label}, {name}, paper", *padded))
    headings = ("", *(f"round {ours[at]} (paper: {at})" for at in wanted.rounds))
    return Table(item.title, headings, tuple(rows), tuple(dict.fromkeys(remarks)))


def _scores(
    run: Path, round_index: int, tasks: Sequence[str], out: Path, console: Console, remarks: list[str]
) -> dict[str, str]:
    """Each task's score in per cent after so many rounds; an evaluation that is there already is read."""
    folder = out / f"{run.name}-round{round_index}"
    if not (folder / RESULTS_FILE).exists():
        try:
            examine(_request(run, round_index, tasks, folder), console)
        except FedMeZOError as error:  # say a data set that cannot be had: the other items go on
            remarks.append(str(error))
            return {}
    scores = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["scores"]
    return {score["task"]: f"{100 * score['value']:.2f}" for score in scores}


def _request(run: Path, round_index: int, tasks: Sequence[str], out: Path) -> Request:
    return Request(
        target=str(run),
        round_index=round_index,
        match=any(task.endswith("-match") for task in tasks),
        mmlu="mmlu" in tasks,
        humaneval="humaneval" in tasks,
        gsm8k=[task for task in tasks if task == "gsm8k"],
        out=out,
    )
