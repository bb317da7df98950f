"""Scores of tasks after training: the mean over seeds, and what stands beside it."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from fedmezo.campaign.catalogue import ItemSpec, read_scale
from fedmezo.campaign.downstream import downstream_table
from fedmezo.campaign.points import Point
from fedmezo.campaign.tables import Table
from fedmezo.config import Config, load_config

BOOLQ = "boolq_dev.jsonl-accuracy"


def keep(out: Path, run: str, round_index: int, task: str, value: float) -> None:
    """What an evaluation leaves."""
    folder = out / f"{run}-round{round_index}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"scores": [{"task": task, "value": value}]}))


def table(item: ItemSpec, rounds: list[int], out: Path) -> Table:
    """Of an item whose points have runs `0-0`, `0-1` and so on, and so many rounds."""
    scale = read_scale("laptop")
    points = [
        Point(spec.label, tuple(Path(f"{number}-{seed}") for seed in range(3)), ((), (), ()), level=90)
        for number, spec in enumerate(item.points)
    ]
    configs: list[Config] = [load_config(scale.base, [f"federate.total_round_num={n}"]).config for n in rounds]
    return downstream_table(item, item.points, points, configs, out, Console(quiet=True))


def test_accuracy_over_seeds_of_methods_with_different_numbers_of_rounds(tmp_path: Path) -> None:
    rounds = [12, 12, 6, 6, 6]
    for number, last in enumerate(rounds):
        for seed in range(3):
            keep(tmp_path, f"{number}-{seed}", last, BOOLQ, 0.5 + 0.1 * number + 0.05 * (seed - 1))
    made = table(read_scale("laptop").items["boolq"], rounds, tmp_path)
    assert made.headings == ("", "after 100% of the rounds")
    assert made.rows[0] == ("FedMeZO, the paper's rate and eps, BoolQ dev, right answers, %", "50.00 ± 8.43")
    assert [row[1] for row in made.rows[1:]] == [f"{value}.00 ± 8.43" for value in (60, 70, 80, 90)]


def test_where_generation_is_dear_the_first_seed_alone_is_asked(tmp_path: Path) -> None:
    for number in range(5):
        keep(tmp_path, f"{number}-0", 12, "gsm8k-zero-shot", 0.03125)
    made = table(read_scale("laptop").items["gsm8k"], [12] * 5, tmp_path)
    assert made.headings == ("", "round 12 (paper: 500)")
    assert {row[1] for row in made.rows} == {"3.12"}
