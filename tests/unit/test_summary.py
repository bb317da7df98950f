"""Totals of a run and the units people read."""

import math

import pytest

from fedmezo.results.metrics import Metric, measured
from fedmezo.results.summary import Row, Summary, human_bytes, human_seconds, series, summarise, summary_rows


def run_metrics() -> list[Metric]:
    """Two clients, two rounds; the figures of single clients must not be added to those over all."""
    return [
        measured("val_loss", 2.5, round_index=0),
        measured("test_loss", 2.6, round_index=0),
        measured("train_loss", 2.4, round_index=1, client=0),
        measured("bytes_up", 30, round_index=1, client=0),
        measured("bytes_up", 60, round_index=1),
        measured("bytes_down", 100, round_index=1),
        measured("bytes_full_adapters", 40_000, round_index=1),
        measured("seconds", 1.5, round_index=1),
        measured("peak_memory", 512_000_000, round_index=1),
        measured("val_loss", 2.0, round_index=1),
        measured("test_loss", 2.1, round_index=1),
        measured("bytes_up", 60, round_index=2),
        measured("bytes_down", 100, round_index=2),
        measured("bytes_full_adapters", 40_000, round_index=2),
        measured("seconds", 2.0, round_index=2),
        measured("forward_passes", 120, round_index=2),
        measured("peak_memory", 500_000_000, round_index=2),
        measured("val_loss", 2.25, round_index=2),
        measured("test_loss", 2.0, round_index=2),
        measured("val_loss", 1.0, round_index=2, client=1),
    ]


def test_totals_are_over_all_clients_and_rounds() -> None:
    summary = summarise(run_metrics())
    assert summary.rounds == 2
    assert (summary.bytes_up, summary.bytes_down, summary.bytes_full_adapters) == (120, 200, 80_000)
    assert (summary.seconds, summary.forward_passes, summary.peak_memory) == (3.5, 120, 512_000_000)


@pytest.mark.parametrize(("key", "best"), [("val_loss", (1, 2.0)), ("test_loss", (2, 2.0)), ("elsewhere", (1, 2.0))])
def test_the_key_decides_the_best_round(key: str, best: tuple[int, float]) -> None:
    assert summarise(run_metrics(), key).evaluations[0].best == best


def test_round_0_is_best_when_training_never_helped_and_nan_is_never_best() -> None:
    losses = [math.nan, 2.0, 2.0, 3.0, math.nan]
    metrics = [measured("val_loss", loss, round_index=index) for index, loss in enumerate(losses)]
    part = summarise(metrics).loss("val_loss")
    assert part is not None
    assert part.best == (1, 2.0)


def test_a_repeated_round_counts_once_with_its_last_value() -> None:
    metrics = [measured("bytes_up", value, round_index=1) for value in (10, 30)]
    assert series(metrics, "bytes_up") == [(1, 30)]


def test_the_final_table() -> None:
    assert summary_rows(summarise(run_metrics())) == [
        Row("rounds", "2"),
        Row("validation loss", "2.5000 -> 2.2500", "-10.0 %"),
        Row("test loss", "2.6000 -> 2.0000", "-23.1 %"),
        Row("best round", "1", "validation loss 2.0000"),
        Row("bytes up", "120 B"),
        Row("bytes down", "200 B"),
        Row("whole adapters would take", "80.0 kB", "250 times as much"),
        Row("forward passes", "120"),
        Row("peak memory", "512 MB"),
        Row("time", "3.5 s"),
    ]


def test_without_an_adapter_whole_models_would_be_sent() -> None:
    metrics = [measured("bytes_up", 100, round_index=1), measured("bytes_full_models", 40_000, round_index=1)]
    assert Row("whole models would take", "40.0 kB", "400 times as much") in summary_rows(summarise(metrics))


def test_what_was_not_measured_has_no_row() -> None:
    assert summarise([]) == Summary(0, (), None, None, None, None, None, None)
    assert summary_rows(summarise([])) == [Row("rounds", "0")]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (67, "67 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (85_100_000, "85.1 MB"),
        (2_500_000_000, "2.50 GB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (125.2, "2 min 05 s"), (3720, "1 h 02 min")],
)
def test_human_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("losses", "remark"),
    [
        ((16.0, 5.0, 9.6656), "diverged: it was 5.0000 after round 1"),
        ((0.28, 9.7, 9.6), "diverged: it was 0.2800 after round 0"),
        ((2.0, 1.0, math.nan), "diverged: no longer finite"),
        ((2.0, 1.0, math.inf), "diverged: no longer finite"),
        ((math.nan, 3.0, 2.0), ""),
        ((2.0, 1.0, 1.4), "-30.0 %"),
    ],
)
def test_a_loss_that_rose_again_is_not_reported_as_a_gain(losses: tuple[float, ...], remark: str) -> None:
    metrics = [measured("val_loss", loss, round_index=at) for at, loss in enumerate(losses)]
    (row,) = [row for row in summary_rows(summarise(metrics)) if row.heading == "validation loss"]
    assert row.remark == remark
