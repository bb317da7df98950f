"""The pictures show the numbers they were given, and only as much as can be read."""

import math

import numpy as np
import pytest
from matplotlib.axes import Axes

from fedmezo.results.metrics import Metric, measured
from fedmezo.results.plots import draw_run, draw_runs, png
from fedmezo.results.summary import summarise

ROUNDS = range(1, 5)


def traffic(round_index: int, sent: int = 100) -> list[Metric]:
    return [
        measured("bytes_up", sent, round_index=round_index),
        measured("bytes_down", 2 * sent, round_index=round_index),
        measured("bytes_full_adapters", 30_000, round_index=round_index),
    ]


def run_metrics(clients: int = 2, sent: int = 100) -> list[Metric]:
    metrics = [measured("val_loss", 3.0, round_index=0)]
    for at in ROUNDS:
        metrics += [measured("train_loss", 3.0 - at / 4 + c / 100, round_index=at, client=c) for c in range(clients)]
        metrics += [measured("train_loss", 3.0 - at / 4, round_index=at), *traffic(at, sent)]
        metrics.append(measured("val_loss", 3.0 - at / 4 + (at == 4), round_index=at))
    return metrics


def panels(metrics: list[Metric]) -> tuple[Axes, Axes]:
    left, right = draw_run(metrics, summarise(metrics)).axes
    return left, right


def curve(axes: Axes, label: str) -> list[list[float]]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [list(point) for point in np.asarray(line.get_xydata())]


def test_loss_is_drawn_against_rounds_and_the_best_round_is_marked() -> None:
    left, _ = panels(run_metrics())
    assert curve(left, "validation loss") == [[0, 3.0], [1, 2.75], [2, 2.5], [3, 2.25], [4, 3.0]]
    assert curve(left, "train, mean over clients") == [[1, 2.75], [2, 2.5], [3, 2.25], [4, 2.0]]
    assert curve(left, "best round (3)") == [[3, 2.25]]


def test_loss_is_drawn_against_the_bytes_of_both_directions_so_far() -> None:
    _, right = panels(run_metrics())
    points = [np.asarray(line.get_xydata()).tolist() for line in right.lines]
    assert [[300, 2.75], [600, 2.5], [900, 2.25], [1200, 3.0]] in points
    assert curve(right, "had whole adapters been sent: 120 kB")[-1] == [120_000, 3.0]
    assert right.get_xscale() == "log"


def test_whole_adapters_are_not_drawn_over_the_same_curve() -> None:
    _, right = panels(run_metrics(sent=10_000))
    assert not any("adapters" in str(line.get_label()) for line in right.lines)


def test_few_clients_are_lines_and_many_are_a_band() -> None:
    few, _ = panels(run_metrics(clients=3))
    assert len(few.lines) == 3 + 3
    many, _ = panels(run_metrics(clients=300))
    assert len(many.lines) == 3
    assert len(many.collections) == 1


def test_a_diverged_loss_does_not_flatten_the_rest() -> None:
    left, _ = panels([*run_metrics(), measured("val_loss", 1e6, round_index=5)])
    assert left.get_ylim()[1] < 4


@pytest.mark.parametrize(
    "metrics",
    [
        [measured("val_loss", 3.0, round_index=0)],
        [measured("val_loss", math.nan, round_index=0), measured("val_loss", math.nan, round_index=1), *traffic(1)],
        [measured("train_loss", 3.0, round_index=1), *traffic(1)],
        [measured("train_loss", math.nan, round_index=1, client=0)],
        [measured("seconds", 3.0, round_index=1)],
    ],
    ids=["only round 0", "all nan", "no evaluation", "one nan client", "no loss"],
)
def test_what_is_missing_is_left_out(metrics: list[Metric]) -> None:
    assert png(draw_run(metrics, summarise(metrics))).startswith(b"\x89PNG")
    assert png(draw_runs([metrics, metrics], ["a", "b"])).startswith(b"\x89PNG")


def test_several_runs_share_the_loss_that_all_have() -> None:
    first, second = run_metrics(), [m for m in run_metrics() if m.name != "val_loss"]
    both = draw_runs([first, first], ["a", "b"]).axes[0]
    assert curve(both, "a") == curve(both, "b") == [[0, 3.0], [1, 2.75], [2, 2.5], [3, 2.25], [4, 3.0]]
    mixed = draw_runs([first, second], ["a", "b"]).axes[0]
    assert mixed.get_title(loc="left") == "Train loss against rounds"
    assert curve(mixed, "b") == [[1, 2.75], [2, 2.5], [3, 2.25], [4, 2.0]]


def test_no_two_of_twenty_runs_look_alike() -> None:
    axes = draw_runs([run_metrics()] * 20, [f"run {index}" for index in range(20)]).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_labels_are_taken_literally() -> None:
    figure = draw_runs([run_metrics()] * 2, ["_hidden", r"$\broken$"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_hidden", r"\$\broken\$"]
    png(figure)


def test_the_same_metrics_give_the_same_bytes() -> None:
    first, second = (png(draw_run(run_metrics(), summarise(run_metrics()))) for _ in range(2))
    assert first == second
    assert 20_000 < len(first) < 300_000


def test_a_run_that_has_sent_but_not_evaluated_since_can_be_drawn() -> None:
    metrics = [measured("val_loss", 2.0, round_index=0)]
    metrics += [measured(name, 10, round_index=1) for name in ("bytes_up", "bytes_down")]
    assert png(draw_run(metrics, summarise(metrics))).startswith(b"\x89PNG")
