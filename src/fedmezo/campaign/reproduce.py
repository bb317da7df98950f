"""The command `fedmezo reproduce`: an item's runs made, gone on with or reused, and its table and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedmezo.atomic import replacing
from fedmezo.campaign.catalogue import ItemSpec, PointSpec, Scale, choose, read_scale
from fedmezo.campaign.downstream import downstream_table
from fedmezo.campaign.pictures import draw_points
from fedmezo.campaign.points import Point, read_point
from fedmezo.campaign.runs import Failure, Job, complete, job_for
from fedmezo.campaign.tables import Table, cell
from fedmezo.config import Config, load_config
from fedmezo.results.console import show_table
from fedmezo.results.plots import png
from fedmezo.results.summary import series
from fedmezo.runs.directory import write_text

PAPER_ROUNDS = 500
PAPER_LEVEL = 90
"""Of the paper's intervals, in per cent."""
LARGER_MODEL = "meta-llama/Llama-2-7b-hf"
RESULTS_PAGE = "results.md"


@dataclass(frozen=True, slots=True)
class ReproduceRequest:
    """What to reproduce.

    Args:
        item: its name, or `all`.
        scale: `small` or `paper`.
        words: further `key=value` settings for every run.
        model: another model; None for the scale's.
        own_model: where the scale's model lies; None where its configuration says so.
        larger_model: of the points that compare a larger model.
        data_root: folder of the data files; None for the scale's.
        seeds: seeds of each point; None for the scale's.
        workers: runs at a time.
        out: folder of everything.
    """

    item: str
    scale: str
    words: Sequence[str]
    model: str | None
    data_root: Path | None
    seeds: int | None
    workers: int
    out: Path
    own_model: str | None = None
    larger_model: str = LARGER_MODEL


@dataclass(frozen=True, slots=True)
class _Plan:
    """A point with its jobs, one for each seed."""

    spec: PointSpec
    jobs: tuple[Job, ...]

    @property
    def config(self) -> Config:
        """Of the first seed."""
        return self.jobs[0].config


def reproduce(request: ReproduceRequest, console: Console) -> int:
    """Make the runs that are missing, then each item's table and picture; returns the exit code.

    Raises:
        ConfigError: there is no such item, or a configuration is wrong; no run is started then.
    """
    scale = read_scale(request.scale)
    plans = {item.name: [_plan(request, scale, spec) for spec in item.points] for item in choose(scale, request.item)}
    jobs = [job for some in plans.values() for plan in some for job in plan.jobs]
    failures = complete(jobs, request.workers, console)
    for name, some in plans.items():
        _write_item(request, scale.items[name], some, failures, console)
    _write_page(request, scale)
    console.print(f"tables, pictures and runs are in {request.out}; all of it on {request.out / RESULTS_PAGE}")
    return 1 if failures else 0


def _plan(request: ReproduceRequest, scale: Scale, spec: PointSpec) -> _Plan:
    words = [f"{key}={json.dumps(value)}" for key, value in spec.settings.items()]
    model = request.larger_model if spec.is_larger else request.model or request.own_model
    words += [f"model.type={model}"] if model else []
    words += [f"data.root={request.data_root}"] if request.data_root else []
    config, _ = load_config(scale.base, [*words, *request.words])
    seeds = range(config.seed, config.seed + (request.seeds or scale.seeds))
    root = request.out / "runs"
    jobs = (job_for(root, config.model_copy(update={"seed": s}), f"{spec.label}, seed {s}") for s in seeds)
    return _Plan(spec, tuple(jobs))


def _write_item(
    request: ReproduceRequest, item: ItemSpec, plans: Sequence[_Plan], failures: Sequence[Failure], console: Console
) -> None:
    """Write the item's tables as Markdown and CSV, and its picture."""
    failed = {failure.folder: failure.text for failure in failures}
    points = [_point(plan, failed) for plan in plans]
    loss = plans[0].config.eval.best_res_update_round_wise_key
    preface = f"{item.about}\n\n    {_command(request, item.name)}"
    tables = [_table(item, plans, points, loss, preface)]
    if item.downstream:
        specs, configs = [plan.spec for plan in plans], [plan.config for plan in plans]
        tables.append(downstream_table(item, specs, points, configs, request.out / "downstream", console))
    for number, table in enumerate(tables):
        table.write(request.out, item.name if number == 0 else f"{item.name}-downstream")
        show_table(console, f"{item.name}: {table.title}", table.headings, table.rows)
    if item.against and any(point.runs for point in points):
        swept = [_number(plan.config, item.swept) for plan in plans] if item.swept else []
        picture = draw_points(points, loss, item.against, swept, item.swept)
        with replacing(request.out / f"{item.name}.png") as file:
            file.write(png(picture))


def _point(plan: _Plan, failed: Mapping[Path, str]) -> Point:
    finished = [job.folder for job in plan.jobs if job.folder not in failed]
    texts = [f"seed {job.config.seed}: {failed[job.folder]}" for job in plan.jobs if job.folder in failed]
    return read_point(plan.spec.label, finished, texts, PAPER_LEVEL)


def _table(item: ItemSpec, plans: Sequence[_Plan], points: Sequence[Point], loss: str, preface: str) -> Table:
    """The item's figures beside the paper's."""
    remarks = tuple(f"{point.label}: {text}" for point in points for text in point.failures)
    if item.by_round:
        headings, rows = _rounds(plans, points, loss)
    else:
        headings, rows = _columns(item, plans, points, loss)
    return Table(item.title, headings, rows, remarks, preface)


def _columns(
    item: ItemSpec, plans: Sequence[_Plan], points: Sequence[Point], loss: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    compared = [heading for heading in item.columns if any(heading in plan.spec.paper for plan in plans)]
    headings = ("setting (rate)", *item.columns, *(f"paper: {heading}" for heading in compared))
    rows = [
        (
            f"{plan.spec.label} ({plan.config.train.optimizer.rate:g})",
            *(cell(point, heading, loss) for heading in item.columns),
            *(f"{plan.spec.paper[heading]:,}" if heading in plan.spec.paper else "-" for heading in compared),
        )
        for plan, point in zip(plans, points, strict=True)
    ]
    return headings, tuple(rows)


def _rounds(
    plans: Sequence[_Plan], points: Sequence[Point], loss: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Loss by round, ours at the evaluated round that is nearest to the same share of all rounds."""
    theirs = sorted({at for plan in plans for at in plan.spec.loss})
    evaluated = [at for at, _ in series(next((p.runs[0] for p in points if p.runs), ()), loss)]
    total = plans[0].config.federate.total_round_num
    ours = {at: min(evaluated, key=lambda r: abs(r - at * total / PAPER_ROUNDS), default=0) for at in theirs}
    rows: list[tuple[str, ...]] = []
    for plan, point in zip(plans, points, strict=True):
        curve = point.curve(loss)
        by_round = dict(zip(curve.rounds, curve.mean, strict=True))
        rows.append((plan.spec.label, *(_loss(by_round.get(ours[at])) for at in theirs)))
        rows.append((f"{plan.spec.label}, paper", *(_loss(plan.spec.loss.get(at)) for at in theirs)))
    return ("", *(f"round {ours[at]} (paper: {at})" for at in theirs)), tuple(rows)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _number(config: Config, key: str) -> float:
    value: Any = config.model_dump()
    for word in key.split("."):
        value = value[word]
    return float(value)


def _write_page(request: ReproduceRequest, scale: Scale) -> None:
    """Write one page of every item that has been made in this folder."""
    parts = [
        f"# Results at {scale.name} scale\n\nOn {scale.about}. ± is half of the {PAPER_LEVEL} % interval over seeds."
    ]
    for item in scale.items.values():
        tables = [request.out / f"{item.name}{end}.md" for end in ("", "-downstream")]
        if not tables[0].exists():
            continue
        parts.append(f"## {item.name}: {item.title}")
        parts += [table.read_text(encoding="utf-8").partition("\n\n")[2].strip() for table in tables if table.exists()]
        if (request.out / f"{item.name}.png").exists():
            parts.append(f"![{item.title}]({item.name}.png)")
    write_text(request.out / RESULTS_PAGE, "\n\n".join(parts) + "\n")


def _command(request: ReproduceRequest, name: str) -> str:
    words = [f"fedmezo reproduce {name} --scale {request.scale}", *request.words]
    words += [f"--model {request.model}"] if request.model else []
    words += [f"--seeds {request.seeds}"] if request.seeds else []
    return " ".join(words)
