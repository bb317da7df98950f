"""Curves, totals and tables of several seeds, against hand-made metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedmezo.campaign.pictures import draw_points
from fedmezo.campaign.points import Point
from fedmezo.campaign.tables import Table, cell, point_table
from fedmezo.results.metrics import Metric, measured
from fedmezo.results.plots import png


def run(losses: dict[int, float], seconds: float = 1.0) -> tuple[Metric, ...]:
    metrics = [measured("test_loss", loss, round_index=at) for at, loss in losses.items()]
    for at in range(1, max(losses) + 1):
        for name, value in (("bytes_up", 10), ("bytes_down", 30), ("forward_passes", 6), ("peak_memory", 100 + at)):
            metrics.append(measured(name, value, round_index=at))
        metrics.append(measured("bytes_up", 10, round_index=at, client=0))
        metrics.append(measured("seconds", seconds * at, round_index=at))
    return tuple(metrics)


POINT = Point("p", (), (run({0: 3.0, 2: 1.0, 4: 2.0}), run({0: 5.0, 2: 3.0, 4: 2.0})))


def test_a_curve_is_the_mean_and_its_range() -> None:
    curve = POINT.curve("test_loss")
    assert curve.rounds == (0, 2, 4)
    assert curve.mean == (4.0, 2.0, 2.0)
    assert (curve.low, curve.high) == ((3.0, 1.0, 2.0), (5.0, 3.0, 2.0))
    alone = Point("q", (), POINT.runs[:1]).curve("test_loss")
    assert alone.low == alone.mean == alone.high == (3.0, 1.0, 2.0)


def test_only_rounds_that_every_run_has() -> None:
    stopped = Point("p", (), (run({0: 3.0, 2: 1.0}), run({0: 5.0, 2: 3.0, 4: 2.0})))
    assert stopped.curve("test_loss").rounds == (0, 2)


def test_figures() -> None:
    first, last, best, change = (getattr(POINT, name)("test_loss") for name in ("first", "last", "best", "change"))
    assert (first.value, last.value, best.value, change.value) == (4.0, 2.0, 1.5, -2.0)
    # -1 and -3: standard deviation sqrt(2), t(1) = 12.706, so 12.706 sqrt(2) / sqrt(2)
    assert change.half_width == pytest.approx(12.706)
    assert POINT.total("bytes_up", "bytes_down").value == 160  # type: ignore[union-attr]  # there are runs
    assert POINT.spent(["bytes_up", "bytes_down"]) == {1: 40.0, 2: 80.0, 3: 120.0, 4: 160.0}
    assert POINT.peak_memory().value == 104  # type: ignore[union-attr]  # the same
    assert POINT.seconds_per_round().value == 3.0  # type: ignore[union-attr]  # of 1, 2, 3, 4: the upper median


def test_cells() -> None:
    assert cell(POINT, "change", "test_loss") == "-2.0000 ± 12.7060"
    assert cell(POINT, "bytes", "test_loss") == "160 B"
    assert cell(POINT, "last loss", "val_loss") == "-"
    assert cell(Point("q", (), POINT.runs[:1]), "last loss", "test_loss") == "2.0000"


def test_a_table_says_what_failed_and_reads_as_markdown_and_csv(tmp_path: Path) -> None:
    table = point_table("T", [POINT, Point("a|b", (), (), ("seed 1: no",))], ["forward passes"], "test_loss", "x")
    assert table.markdown() == "| x | forward passes |\n|---|---|\n| p | 24 |\n| a\\|b | - |\n\na|b: seed 1: no\n"
    assert table.csv() == "x,forward passes\np,24\na|b,-\n"
    Table("T", ("x",), (("1",),), (), "about").write(tmp_path, "t")
    assert (tmp_path / "t.md").read_text() == "# T\n\nabout\n\n| x |\n|---|\n| 1 |\n"


def test_pictures_leave_out_what_has_no_runs_and_what_diverged() -> None:
    wild = Point("wild", (), (run({0: 3.0, 2: math.nan, 4: 1e9}),))
    points = [POINT, Point("none", (), ()), wild]
    figure = draw_points(points, "test_loss", ("rounds", "bytes"), (0.1, 1.0, 10.0), "lr")
    rounds, _, last = figure.axes
    assert [line.get_label() for line in rounds.lines] == ["p", "wild"]
    assert rounds.get_ylim()[1] < 100
    assert last.get_xscale() == "log"
    assert last.get_xlabel() == "lr"
    assert png(figure).startswith(b"\x89PNG")
