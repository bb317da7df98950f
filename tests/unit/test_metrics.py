"""metrics.jsonl reads back what was written."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.errors import RunError
from fedmezo.results.metrics import (
    EVENT_AND_UNIT,
    METRICS_FILE,
    Metric,
    MetricsFile,
    _line,
    _parse,
    cut_after,
    measured,
    read_metrics,
)


def written(run_dir: Path, metrics: list[Metric]) -> Path:
    sink = MetricsFile(run_dir)
    sink.write(metrics)
    sink.close()
    return run_dir / METRICS_FILE


def three_rounds() -> list[Metric]:
    """Values that float32 holds exactly, as TensorBoard stores them."""
    return [
        measured("val_loss", 2.5, round_index=0),
        measured("train_loss", 2.375, round_index=1, client=0),
        measured("bytes_up", 67, round_index=1),
        measured("train_loss", 2.25, round_index=2, client=0),
        measured("val_loss", 2.125, round_index=2),
    ]


def test_a_line_has_the_documented_keys_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path, [measured("val_loss", 2.5, round_index=0), measured("bytes_up", 67, round_index=1, client=2)]
    )
    assert path.read_text() == (
        '{"event": "eval", "round": 0, "client": null, "name": "val_loss", "value": 2.5, "unit": "nats/token"}\n'
        '{"event": "traffic", "round": 1, "client": 2, "name": "bytes_up", "value": 67, "unit": "B"}\n'
    )


@given(
    st.builds(
        Metric,
        event=st.text(),
        round=st.integers(0, 2**40),
        client=st.none() | st.integers(0, 10**6),
        name=st.text(),
        value=st.integers(0, 2**60) | st.floats(allow_nan=False, allow_infinity=False),
        unit=st.text(),
    )
)
def test_every_finite_metric_reads_back_equal(metric: Metric) -> None:
    line = _line(metric)
    assert line.count("\n") == 1
    back = _parse(line.encode(), "here")
    assert back == metric
    assert type(back.value) is type(metric.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_and_reads_back_as_nan(tmp_path: Path, value: float) -> None:
    path = written(tmp_path, [measured("train_loss", value, round_index=1)])
    assert json.loads(path.read_text())["value"] is None
    (back,) = read_metrics(path)
    assert math.isnan(back.value)


def test_the_module_docstring_lists_every_name_with_its_event_and_unit() -> None:
    import fedmezo.results.metrics

    rows = [[cell.strip() for cell in line.split("|")] for line in (fedmezo.results.metrics.__doc__ or "").splitlines()]
    listed = {
        name: (row[1], row[3]) for row in rows if len(row) > 4 for name in row[2].split(", ") if name in EVENT_AND_UNIT
    }
    assert listed == EVENT_AND_UNIT


def test_a_second_writer_appends(tmp_path: Path) -> None:
    metrics = three_rounds()
    written(tmp_path, metrics[:2])
    assert read_metrics(written(tmp_path, metrics[2:])) == metrics


def test_what_was_written_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path)
    sink.write(three_rounds())
    assert read_metrics(tmp_path / METRICS_FILE) == three_rounds()
    sink.close()


def test_a_cut_off_last_line_is_left_out_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, three_rounds())
    path.write_bytes(path.read_bytes()[:-30])
    assert read_metrics(path) == three_rounds()[:-1]
    assert caplog.messages == [f"{path}, line 5: cut off while it was written; left out"]


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    path = written(tmp_path, three_rounds())
    path.write_bytes(path.read_bytes()[:-1])
    assert read_metrics(path) == three_rounds()


def test_cut_after_drops_later_rounds_and_the_cut_off_line(tmp_path: Path) -> None:
    path = written(tmp_path, three_rounds())
    with path.open("a") as file:
        file.write('{"event": "tr')
    assert cut_after(path, 1) == three_rounds()[:3]
    assert read_metrics(path) == three_rounds()[:3]
    assert [entry.name for entry in tmp_path.iterdir()] == [METRICS_FILE]


def test_cut_after_leaves_a_damaged_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text("damaged\n")
    with pytest.raises(RunError):
        cut_after(path, 1)
    assert path.read_text() == "damaged\n"


GOOD = '{"event": "eval", "round": 0, "client": null, "name": "val_loss", "value": 2.5, "unit": "nats/token"}'
KEYS = "expected an object with the keys event, round, client, name, value, unit; the file is damaged"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object; the file is damaged"),
        ("", "not a JSON object; the file is damaged"),
        pytest.param("[" * 100_000, "not a JSON object; the file is damaged", id="deep"),
        ("[1]", KEYS),
        (GOOD.replace('"unit"', '"units"'), KEYS),
        (GOOD.replace("null", "-1"), "client cannot be -1; the file is damaged"),
        (GOOD.replace('"round": 0', '"round": null'), "round cannot be null; the file is damaged"),
        (GOOD.replace("2.5", '"2.5"'), 'value cannot be "2.5"; the file is damaged'),
        (GOOD.replace("2.5", "true"), "value cannot be true; the file is damaged"),
        (GOOD.replace('"eval"', "7"), "event cannot be 7; the file is damaged"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(RunError) as error:
        read_metrics(path)
    assert str(error.value) == f"{path}, line 2: {message}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        read_metrics(tmp_path / METRICS_FILE)
    assert str(error.value) == (
        f"{tmp_path}/metrics.jsonl: no such file; is {tmp_path} the directory of a run that has started?"
    )
