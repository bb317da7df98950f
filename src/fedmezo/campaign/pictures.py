"""Pictures of points: mean curves with the range over seeds, and last losses beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedmezo.campaign.points import Point
from fedmezo.results.plots import DIVERGED, INK, RUN_COLOURS, RUN_DASHES
from fedmezo.results.summary import PART_OF_LOSS, human_bytes

AXES = {
    "rounds": ((), "round"),
    "forward passes": (("forward_passes",), "forward passes of a batch, all clients together"),
    "bytes": (("bytes_up", "bytes_down"), "bytes up and down, all clients together (log scale)"),
    "seconds": (("seconds",), "seconds of computation"),
}
"""What a loss can be drawn against: the metrics that are added up, and the name of the axis."""

MAX_PANELS_IN_A_ROW = 3
SPREAD_FOR_LOG = 8
CHARACTERS_PER_INCH = 14  # of a legend


def draw_points(
    points: Sequence[Point], loss: str, against: Sequence[str], swept: Sequence[float] = (), key: str = ""
) -> Figure:
    """Draw the mean loss of each point, and the range over its seeds, against one cost or several.

    Args:
        points: those to draw; one without a finished run is left out.
        loss: name of the metric.
        against: keys of `AXES`, a panel each.
        swept: for each point the value of the one number that differs; adds a panel of last losses against it.
        key: what that number is called.
    """
    panels = len(against) + bool(swept)
    rows = 1 + (panels > MAX_PANELS_IN_A_ROW)
    columns = math.ceil(panels / rows)
    width = max(5.2 * columns, 8.0)
    labels = [point.label.replace("$", r"\$") for point in points if point.runs]
    legend_columns = max(1, int(width * CHARACTERS_PER_INCH / (max(map(len, labels), default=1) + 8)))
    size = (width, 3.9 * rows + 0.25 * math.ceil(len(points) / legend_columns))
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for cost, panel in zip(against, axes, strict=False):
        _draw_curves(panel, points, loss, cost)
    if swept:
        _draw_last(axes[-1], points, loss, swept, key)
    for panel in axes[::columns]:
        panel.set_ylabel(f"{PART_OF_LOSS.get(loss, loss)} (nats per token)")
    figure.legend(axes[0].lines, labels, loc="outside lower left", frameon=False, fontsize=9, ncols=legend_columns)
    return figure


def _draw_curves(axes: Axes, points: Sequence[Point], loss: str, cost: str) -> None:
    names, title = AXES[cost]
    tops: list[float] = []
    bottoms: list[float] = []
    for index, point in enumerate(points):
        if not point.runs:
            continue
        curve, style = point.curve(loss), _style(index)
        spent = {0: 0.0} | point.spent(names) if names else dict(zip(curve.rounds, curve.rounds, strict=True))
        kept = [k for k, at in enumerate(curve.rounds) if at in spent and (cost != "bytes" or spent[at] > 0)]
        x = [spent[curve.rounds[k]] for k in kept]
        axes.plot(x, [curve.mean[k] for k in kept], label=point.label, lw=1.8, **style)
        low, high = [curve.low[k] for k in kept], [curve.high[k] for k in kept]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
        tops += curve.high[:1]
        bottoms += [value for value in (*curve.low, *curve.high) if math.isfinite(value)]
    _finish(axes, title, cost, tops, bottoms)


def _style(index: int) -> dict[str, Any]:
    colours = len(RUN_COLOURS)
    return {"color": RUN_COLOURS[index % colours], "ls": RUN_DASHES[index // colours % len(RUN_DASHES)]}


def _finish(axes: Axes, title: str, cost: str, first: Sequence[float], values: Sequence[float]) -> None:
    shown = [value for value in values if 0 <= value <= DIVERGED * max(first, default=0.0)]
    if shown and max(shown) > min(shown):
        margin = 0.08 * (max(shown) - min(shown))
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlabel(title)
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    if cost == "bytes" and axes.lines:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: human_bytes(count).replace(".00", "")))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif cost == "rounds":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _draw_last(axes: Axes, points: Sequence[Point], loss: str, swept: Sequence[float], key: str) -> None:
    """The last loss of each point with its interval against the value that was swept."""
    shown: list[float] = []
    for index, (point, value) in enumerate(zip(points, swept, strict=True)):
        last = point.last(loss)
        if last is None:
            continue
        shown.append(last.value)
        reach = 0.0 if math.isnan(last.low) else last.half_width
        axes.errorbar([value], [last.value], yerr=[reach], fmt="o", color=_style(index)["color"], capsize=3)
    if min(swept) > 0 and max(swept) / min(swept) >= SPREAD_FOR_LOG:
        axes.set_xscale("log")
    if shown and min(shown) > 0 and max(shown) / min(shown) >= SPREAD_FOR_LOG:
        axes.set_yscale("log")
    _finish(axes, key, "", (), ())
    axes.set_title("last loss", loc="left", fontsize=11, color=INK)
