"""Tasks after some rounds of a run: evaluated once and kept, then shown beside the paper's percentages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fedmezo.campaign.catalogue import DownstreamSpec, ItemSpec, PointSpec
from fedmezo.campaign.points import Point
from fedmezo.campaign.tables import Table
from fedmezo.config import Config
from fedmezo.errors import FedMeZOError
from fedmezo.studies.intervals import mean_interval
from fedmezo.tasks.examine import RESULTS_FILE, Request, examine

PAPER_ROUNDS = 500
_ACCURACY = "-accuracy"
"""What a task's name ends in that is accuracy on a data set with candidate answers."""


def downstream_table(
    item: ItemSpec,
    specs: Sequence[PointSpec],
    points: Sequence[Point],
    configs: Sequence[Config],
    out: Path,
    console: Console,
) -> Table:
    """Evaluate the runs of each point at the item's rounds, and set the paper's figures beside ours.

    Args:
        item: what is asked for; has downstream tasks.
        specs: its points.
        points: the same, with the runs that came to their end.
        configs: the same, of any of a point's runs.
        out: where the evaluations are kept.
        console: where progress is shown.
    """
    wanted = item.downstream
    assert wanted is not None, "the caller asks for items with downstream tasks"
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for spec, point, config in zip(specs, points, configs, strict=True):
        folders = point.folders if wanted.every_seed else point.folders[:1]
        root = Path(config.data.root)
        by_round: list[list[dict[str, float]]] = []
        for at in wanted.rounds:
            requests = [_request(folder, _ours(at, config), wanted, root, out) for folder in folders]
            by_round.append([_scores(request, console, remarks) for request in requests])
        for task, name in wanted.tasks.items() if folders else ():
            rows.append((f"{spec.label}, {name}", *(_mean(scores, task, point.level) for scores in by_round)))
            if task in spec.downstream:
                padded = [f"{value:.2f}" for value in spec.downstream[task]]
                padded += ["-"] * (len(wanted.rounds) - len(padded))
                rows.append((f"{spec.label}, {name}, paper", *padded))
    headings = ("", *(_heading(at, configs) for at in wanted.rounds))
    return Table(item.title, headings, tuple(rows), tuple(dict.fromkeys(remarks)))


def _ours(at: int, config: Config) -> int:
    """The round that is the same share of all rounds as the paper's."""
    return at * config.federate.total_round_num // PAPER_ROUNDS


def _heading(at: int, configs: Sequence[Config]) -> str:
    """The round, which methods that make different numbers of rounds do not share."""
    ours = {_ours(at, config) for config in configs}
    return f"round {ours.pop()} (paper: {at})" if len(ours) == 1 else f"after {at / PAPER_ROUNDS:.0%} of the rounds"


def _mean(scores: Sequence[Mapping[str, float]], task: str, level: int) -> str:
    """The mean over the runs that have a score, in per cent, with half of its interval where there are several."""
    found = [100 * score[task] for score in scores if task in score]
    if not found:
        return "-"
    interval = mean_interval(found, level)
    spread = "" if math.isnan(interval.low) else f" ± {interval.half_width:.2f}"
    return f"{interval.value:.2f}{spread}"


def _scores(request: Request, console: Console, remarks: list[str]) -> dict[str, float]:
    """Each task's score; an evaluation that is there already is read."""
    assert request.out is not None, "every evaluation has a folder of its own"
    if not (request.out / RESULTS_FILE).exists():
        try:
            examine(request, console)
        except FedMeZOError as error:  # say a data set that cannot be had: the other items go on
            remarks.append(str(error))
            return {}
    scores = json.loads((request.out / RESULTS_FILE).read_text(encoding="utf-8"))["scores"]
    return {score["task"]: score["value"] for score in scores}


def _request(run: Path, round_index: int, wanted: DownstreamSpec, root: Path, out: Path) -> Request:
    tasks = list(wanted.tasks)
    return Request(
        target=str(run),
        round_index=round_index,
        data=[task.removesuffix(_ACCURACY) for task in tasks if task.endswith(_ACCURACY)],
        data_root=root,
        match=any(task.endswith("-match") for task in tasks),
        mmlu="mmlu" in tasks,
        humaneval="humaneval" in tasks,
        gsm8k=[task for task in tasks if task.startswith("gsm8k")],
        limit=wanted.limit,
        out=out / f"{run.name}-round{round_index}",
    )
