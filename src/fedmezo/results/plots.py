"""Pictures of metrics: loss against rounds and against bytes, of one run and of several.

Figures are made without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedmezo.results.metrics import Metric
from fedmezo.results.summary import (
    PART_OF_ACCURACY,
    PART_OF_LOSS,
    WHOLE,
    Evaluations,
    Summary,
    evaluations,
    human_bytes,
    series,
)

# Okabe and Ito (2008): told apart by people with any of the common colour vision deficiencies.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, FAINT = "#222222", "#777777", "#BBBBBB"
CURVE_COLOURS = {
    "val_loss": BLUE,
    "test_loss": VERMILION,
    "train_loss": GREY,
    "val_accuracy": BLUE,
    "test_accuracy": VERMILION,
}
RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
RUN_DASHES = ("-", "--", ":", "-.")
MAX_CLIENT_LINES = 10  # more would be a smear; a band shows them better
MAX_MARKERS = 40
LEGEND_CHARACTERS = 150  # fit beside each other below the picture
WORTH_SHOWING = 1.5  # whole adapters or models within this factor of what was sent would cover its curve
DIVERGED = 2.0  # a loss this many times the first one would flatten every other curve


def draw_run(metrics: Sequence[Metric], summary: Summary) -> Figure:
    """Return the picture of one run: loss against rounds (left) and against bytes that crossed the wire (right)."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    parts = summary.evaluations
    if summary.accuracies:
        figure.set_figwidth(15)
        _plot_accuracies(figure, summary)
    train = evaluations(metrics, "train_loss")
    _plot_clients(left, metrics)
    if train.rounds:
        left.plot(train.rounds, train.losses, color=GREY, lw=1.2, label="train, mean over clients")
    for part in parts:
        left.plot(part.rounds, part.losses, label=PART_OF_LOSS[part.name], **_bold(part))
    if parts and summary.decides is parts[0]:
        _mark_best(left, parts[0])
    _plot_bytes(right, metrics, parts or (train,))
    _limit_losses(left, [train.losses, *(part.losses for part in parts)])
    _finish_losses(left, right, "Loss")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    return figure


def draw_runs(runs: Sequence[Sequence[Metric]], labels: Sequence[str]) -> Figure:
    """Return the picture of several runs: loss against rounds (left) and against bytes (right), one colour a run."""
    columns = max(1, LEGEND_CHARACTERS // (max(map(len, labels)) + 8))
    figure = Figure(figsize=(11, 4.4 + 0.22 * ceil(len(runs) / columns)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    name = _common_loss(runs)
    curves = [evaluations(run, name) for run in runs]
    for index, (run, curve, label) in enumerate(zip(runs, curves, labels, strict=True)):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        dash = RUN_DASHES[index // len(RUN_COLOURS) % len(RUN_DASHES)]
        left.plot(curve.rounds, curve.losses, dash, color=colour, lw=1.8, label=label)
        _plot_against(right, curve, _traffic(run), dash, color=colour, lw=1.8)
    _limit_losses(left, [curve.losses for curve in curves])
    _finish_losses(left, right, PART_OF_LOSS.get(name, "train loss").capitalize())
    literal = [label.replace("$", r"\$") for label in labels]  # a pair of dollars would mean a formula
    figure.legend(
        left.lines, literal, loc="outside lower left", frameon=False, fontsize=9, ncols=min(columns, len(runs))
    )
    return figure


def png(figure: Figure) -> bytes:
    """Return the picture; the same figure gives the same bytes with the same version of matplotlib."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_figure(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _plot_clients(axes: Axes, metrics: Sequence[Metric]) -> None:
    """Draw each client's train loss faintly, or each group's; the middle 80 % as a band where there are many."""
    finite = [m for m in metrics if m.name == "train_loss" and not m.is_overall and np.isfinite(m.value)]
    kind = "group" if any(m.group is not None for m in finite) else "client"
    by_client: dict[str, dict[int, float]] = {}
    by_round: dict[int, list[float]] = {}
    for metric in finite:
        by_client.setdefault(metric.tag, {})[metric.round] = metric.value
        by_round.setdefault(metric.round, []).append(metric.value)
    if len(by_client) > MAX_CLIENT_LINES:
        low, high = np.transpose([np.quantile(losses, (0.1, 0.9)) for losses in by_round.values()])
        label = f"train, middle 80 % of {kind}s"
        axes.fill_between(list(by_round), low, high, color=FAINT, alpha=0.5, lw=0, label=label)
        return
    for index, curve in enumerate(by_client.values()):
        first = f"train, each {kind}" if index == 0 else None
        axes.plot(list(curve), list(curve.values()), color=FAINT, lw=0.8, alpha=0.8, label=first)


def _plot_accuracies(figure: Figure, summary: Summary) -> None:
    """Move the two pictures of losses to the left, and draw the share of right answers beside them."""
    grid = figure.add_gridspec(1, 3)
    for number, axes in enumerate(figure.axes):
        axes.set_subplotspec(grid[number])
    axes = figure.add_subplot(grid[2])
    for part in summary.accuracies:
        axes.plot(part.rounds, [100 * share for share in part.losses], label=PART_OF_ACCURACY[part.name], **_bold(part))
    if summary.decides in summary.accuracies:
        at, share = summary.accuracies[0].best
        axes.plot([at], [100 * share], "*", color=INK, ms=10, label=f"best: round {at:,}")
    axes.set_xlabel("Round")
    axes.set_ylabel("Right answers, %")
    axes.legend(frameon=False, fontsize=9)


def _bold(part: Evaluations) -> dict[str, Any]:
    marker = "o" if len(part.rounds) <= MAX_MARKERS else None
    return {"color": CURVE_COLOURS[part.name], "lw": 2.2, "marker": marker, "ms": 3.5}


def _mark_best(axes: Axes, part: Evaluations) -> None:
    at, loss = part.best
    colour = CURVE_COLOURS[part.name]
    label = f"best round ({at})"
    axes.plot([at], [loss], ls="", marker="*", ms=15, color=colour, mec="white", mew=1.2, zorder=5, label=label)


def _plot_bytes(axes: Axes, metrics: Sequence[Metric], parts: Sequence[Evaluations]) -> None:
    """Draw losses against what was sent, and the deciding loss against what whole adapters or models would take."""
    sent = _traffic(metrics)
    if not sent:
        axes.text(0.5, 0.5, "no traffic measured", transform=axes.transAxes, ha="center", color=GREY)
        return
    axes.plot([], [], color=INK, lw=2.2, label=f"as sent: {human_bytes(max(sent.values()))} in all")
    for part in parts:
        _plot_against(axes, part, sent, "-", **_bold(part))
    for name, what in WHOLE.items():
        full = _cumulative(series(metrics, name))
        if full and max(full.values()) > WORTH_SHOWING * max(sent.values()):
            label = f"had {what} been sent: {human_bytes(max(full.values()))}"
            _plot_against(axes, parts[0], full, "--", color=GREY, lw=1.5, label=label)


def _plot_against(axes: Axes, part: Evaluations, sent: Mapping[int, float], dash: str, **line: Any) -> None:
    """Draw losses against the bytes sent until their round; a round before which nothing was sent has no place."""
    points = [(sent[at], loss) for at, loss in zip(part.rounds, part.losses, strict=True) if sent.get(at, 0) > 0]
    if points:
        axes.plot(*zip(*points, strict=True), dash, **line)


def _traffic(metrics: Sequence[Metric]) -> dict[int, float]:
    """Return the bytes sent in both directions until the end of each round."""
    down = dict(series(metrics, "bytes_down"))
    up = dict(series(metrics, "bytes_up"))
    return _cumulative([(at, up.get(at, 0) + down.get(at, 0)) for at in sorted(up.keys() | down.keys())])


def _cumulative(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    return dict(zip((at for at, _ in points), accumulate(value for _, value in points), strict=True))


def _limit_losses(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Show these curves in full, but for what diverged; single clients may leave the picture."""
    finite = [[loss for loss in curve if np.isfinite(loss)] for curve in curves]
    top = DIVERGED * max((curve[0] for curve in finite if curve), default=0.0)
    losses = [loss for curve in finite for loss in curve if loss <= top]
    if losses and max(losses) > min(losses):
        margin = 0.08 * (max(losses) - min(losses))
        axes.set_ylim(min(losses) - margin, max(losses) + margin)


def _finish_losses(left: Axes, right: Axes, what: str) -> None:
    titles = (f"{what} against rounds", f"{what} against bytes that crossed the wire")
    for axes, title in zip((left, right), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        axes.grid(color="#E6E6E6", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    left.set_xlabel("round")
    left.set_ylabel("loss (nats per token)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    right.set_xlabel("bytes up and down, all clients together (log scale)")
    if any(np.size(line.get_xdata()) for line in right.lines):  # a line for the legend alone has no points
        _make_byte_axis(right)


def _make_byte_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(_round_bytes))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _round_bytes(count: float, _position: int) -> str:
    return human_bytes(count).replace(".00", "").replace(".0 ", " ")


def _common_loss(runs: Sequence[Sequence[Metric]]) -> str:
    """Return the loss to compare: the first that all runs have evaluated, else the train loss."""
    return next((name for name in PART_OF_LOSS if all(evaluations(run, name).rounds for run in runs)), "train_loss")
