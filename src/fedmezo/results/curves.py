"""Curves that the reader of a page can choose, hide, read and enlarge, in a page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from itertools import accumulate

from fedmezo.results.metrics import Metric
from fedmezo.results.plots import CURVE_COLOURS, RUN_COLOURS
from fedmezo.results.summary import PART_OF_LOSS, series

_NAMES = {**PART_OF_LOSS, "train_loss": "train loss"}
_AXES = {
    "rounds": (),
    "bytes sent": ("bytes_up", "bytes_down"),
    "forward passes": ("forward_passes",),
    "seconds": ("seconds",),
}
"""The horizontal axes, and the metrics that are added up along each; none for the rounds themselves."""
_DASHES = ("", "7 4", "2 3", "9 3 2 3")

STYLE = """
#curves svg { width: 100%; height: auto; touch-action: pan-y; user-select: none; }
#curves path { fill: none; stroke-width: 2; }
#curves text { font-size: 12px; fill: #555; }
#curves .grid { stroke: #e5e5e5; }
#curves .cursor { stroke: #999; stroke-dasharray: 3 3; display: none; }
#curves .zoom { fill: #0072B2; opacity: .12; width: 0; }
#curves output { display: block; min-height: 1.5em; color: #555; font-size: 13px; }
#curves output span { margin-left: 1em; }
#curves button { font: inherit; font-size: 13px; background: none; border: 0; cursor: pointer; padding: .2em .8em 0 0; }
#curves button[aria-pressed=false] { opacity: .4; }
#curves button i { display: inline-block; width: 1.6em; margin-right: .5em; vertical-align: middle; }
"""


def curves_of_run(metrics: Sequence[Metric]) -> str:
    """The losses of one run as a part of a page; "" where there is none."""
    found = [
        _curve("loss", _NAMES[name], CURVE_COLOURS[name], "", metrics, name) for name in _NAMES if series(metrics, name)
    ]
    return _part(found, [metrics])


def curves_of_runs(runs: Sequence[Sequence[Metric]], labels: Sequence[str]) -> str:
    """Each loss that any of the runs has, a curve for each run, as a part of a page."""
    found = []
    for name, words in _NAMES.items():
        for index, (metrics, label) in enumerate(zip(runs, labels, strict=True)):
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            dash = _DASHES[index // len(RUN_COLOURS) % len(_DASHES)]
            if series(metrics, name):
                found.append(_curve(words, label, colour, dash, metrics, name))
    return _part(found, runs)


def _curve(group: str, label: str, colour: str, dash: str, metrics: Sequence[Metric], name: str) -> dict[str, object]:
    points = series(metrics, name)
    along = {axis: _along(metrics, parts, [at for at, _ in points]) for axis, parts in _AXES.items()}
    values = [value if math.isfinite(value) else None for _, value in points]
    return {"group": group, "label": label, "colour": colour, "dash": dash, "y": values, "x": along}


def _along(metrics: Sequence[Metric], parts: Sequence[str], rounds: Sequence[int]) -> list[float]:
    """Where the rounds lie on an axis: what its metrics add up to by then."""
    if not parts:
        return list(rounds)
    amounts: dict[int, float] = {0: 0.0}
    for name in parts:
        for at, value in series(metrics, name):
            amounts[at] = amounts.get(at, 0.0) + value
    sums = dict(zip(sorted(amounts), accumulate(amounts[at] for at in sorted(amounts)), strict=True))
    return [max((total for at, total in sums.items() if at <= wanted), default=0.0) for wanted in rounds]


def _part(curves: Sequence[dict[str, object]], runs: Sequence[Sequence[Metric]]) -> str:
    if not curves:
        return ""
    names = {metric.name for metrics in runs for metric in metrics}
    axes = [axis for axis, parts in _AXES.items() if not parts or names.intersection(parts)]
    groups = list(dict.fromkeys(str(curve["group"]) for curve in curves))
    data = json.dumps({"groups": groups, "axes": axes, "curves": curves}, allow_nan=False)
    data = data.replace("</", "<\\/")  # within a script element nothing is escaped, and only this ends it
    script = (resources.files("fedmezo") / "results" / "curves.js").read_text(encoding="utf-8")
    return f"""<div id="curves"></div>
<script type="application/json" id="curves-data">{data}</script>
<script>{script}</script>"""
