"""The command `fedmezo sweep`: one configuration, some keys over several values, every point with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedmezo.atomic import replacing
from fedmezo.campaign.grid import as_words, grid, short_label
from fedmezo.campaign.pictures import draw_points
from fedmezo.campaign.points import Point, read_point
from fedmezo.campaign.runs import Failure, Job, complete, job_for
from fedmezo.campaign.tables import point_table
from fedmezo.config import load_config
from fedmezo.errors import ConfigError
from fedmezo.results.console import show_table
from fedmezo.results.plots import png
from fedmezo.results.summary import PART_OF_LOSS

HEADINGS = ("last loss", "change", "best loss", "forward passes", "bytes", "time", "peak memory")


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What to sweep.

    Args:
        config: the configuration file; None for the bundled quickstart.
        words: `key=value` for all points, `key=a,b,c` to sweep.
        seeds: seeds of each point, counting from the configuration's.
        workers: runs at a time.
        out: folder of the runs, the table and the picture.
    """

    config: Path | None
    words: Sequence[str]
    seeds: int
    workers: int
    out: Path


def sweep(request: SweepRequest, console: Console) -> int:
    """Make the runs that are missing, then the table and the picture; returns the exit code.

    Raises:
        ConfigError: a point's configuration is wrong; no run is started then.
    """
    fixed, points = grid(request.words)
    jobs = {label: _jobs(request, label, fixed | point) for point in points if (label := short_label(point))}
    failures = complete([job for some in jobs.values() for job in some], request.workers, console)
    loss = jobs[short_label(points[0])][0].config.eval.best_res_update_round_wise_key
    found = [_point(label, some, failures) for label, some in jobs.items()]
    title = f"Sweep of {request.config.name if request.config else 'the quickstart'}, {request.seeds} seeds"
    table = point_table(f"{title}: {PART_OF_LOSS[loss]}", found, HEADINGS, loss)
    table.write(request.out, "sweep")
    with replacing(request.out / "sweep.png") as file:
        file.write(png(draw_points(found, loss, ("rounds",), _numbers(points), next(iter(points[0]), ""))))
    show_table(console, table.title, table.headings, table.rows)
    for remark in table.remarks:
        console.print(remark, markup=False, highlight=False)
    console.print(f"table, picture and runs are in {request.out}", highlight=False)
    return 1 if failures else 0


def _jobs(request: SweepRequest, label: str, settings: Mapping[str, str]) -> list[Job]:
    """A point's jobs, one for each seed."""
    config, _ = load_config(request.config, list(as_words(settings)))
    if not config.eval.active:
        raise ConfigError("eval.freq: nothing would be evaluated, so there would be nothing to compare; set it above 0")
    return [
        job_for(
            request.out / "runs",
            config.model_copy(update={"seed": config.seed + seed}),
            f"{label}, seed {config.seed + seed}",
        )
        for seed in range(request.seeds)
    ]


def _point(label: str, jobs: Sequence[Job], failures: Sequence[Failure]) -> Point:
    failed = {failure.folder: failure.text for failure in failures}
    finished = [job.folder for job in jobs if job.folder not in failed]
    texts = [f"seed {job.config.seed}: {failed[job.folder]}" for job in jobs if job.folder in failed]
    return read_point(label, finished, texts)


def _numbers(points: Sequence[Mapping[str, str]]) -> list[float]:
    """The values of the one key that is swept, if there is one and they are numbers."""
    if len(points) < 2 or len(points[0]) != 1:
        return []
    try:
        return [float(next(iter(point.values()))) for point in points]
    except ValueError:
        return []
