"""metrics.jsonl reads back what was written; TensorBoard and Weights & Biases get the same numbers."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedmezo.errors import ConfigError, RunError
from fedmezo.results.metrics import (
    EVENT_AND_UNIT,
    METRICS_FILE,
    Metric,
    MetricsFile,
    TensorBoard,
    WeightsAndBiases,
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


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_gets_each_series_against_the_round(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.write(three_rounds())
    sink.close()
    assert scalars(tmp_path, "val_loss/all") == [(0, 2.5), (2, 2.125)]
    assert scalars(tmp_path, "bytes_up/all") == [(1, 67)]
    assert scalars(tmp_path, "train_loss/client_0") == [(1, 2.375), (2, 2.25)]


def test_tensorboard_hides_the_rounds_that_a_resume_repeats(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.write(three_rounds())
    sink.close()
    resumed = TensorBoard(tmp_path, hide_after=1)
    resumed.write([measured("val_loss", 2.0, round_index=2)])
    resumed.close()
    assert scalars(tmp_path, "val_loss/all") == [(0, 2.5), (2, 2.0)]
    assert scalars(tmp_path, "train_loss/client_0") == [(1, 2.375)]


class StubRun:
    """Stands for a W&B run: keeps what it is given."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.step_metric: dict[str, str] = {}
        self.logged: list[dict[str, float]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.step_metric[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[StubRun]:
    runs: list[StubRun] = []

    def init(**settings: Any) -> StubRun:
        runs.append(StubRun(**settings))
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]  # a stub module has no declared attributes
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def wandb_sink(run_dir: Path, **changes: Any) -> WeightsAndBiases:
    settings: dict[str, Any] = {
        "name_user": "me",
        "name_project": "mine",
        "online_track": True,
        "client_train_info": True,
    } | changes
    return WeightsAndBiases(run_dir, {"seed": 1}, **settings)


def test_wandb_is_told_the_keys_of_the_config(tmp_path: Path, wandb_runs: list[StubRun]) -> None:
    wandb_sink(tmp_path, name_user="").close()
    (run,) = wandb_runs
    assert run.settings["entity"] is None
    assert run.settings["project"] == "mine"
    assert run.settings["name"] == tmp_path.name
    assert run.settings["config"] == {"seed": 1}
    assert run.step_metric == {"*": "round"}
    assert run.finished


def test_wandb_online_track_logs_each_round_as_it_comes(tmp_path: Path, wandb_runs: list[StubRun]) -> None:
    sink = wandb_sink(tmp_path)
    sink.write(three_rounds()[:3])
    assert wandb_runs[0].logged == [
        {"round": 0, "val_loss/all": 2.5},
        {"round": 1, "train_loss/client_0": 2.375, "bytes_up/all": 67},
    ]


def test_wandb_without_online_track_logs_at_the_end(tmp_path: Path, wandb_runs: list[StubRun]) -> None:
    sink = wandb_sink(tmp_path, online_track=False)
    sink.write(three_rounds())
    assert wandb_runs[0].logged == []
    sink.close()
    assert [row["round"] for row in wandb_runs[0].logged] == [0, 1, 2]


def test_wandb_without_client_train_info_leaves_the_clients_training_out(
    tmp_path: Path, wandb_runs: list[StubRun]
) -> None:
    sink = wandb_sink(tmp_path, client_train_info=False)
    sink.write([*three_rounds(), measured("val_loss", 2.1, round_index=2, client=0)])
    assert wandb_runs[0].logged == [
        {"round": 0, "val_loss/all": 2.5},
        {"round": 1, "bytes_up/all": 67},
        {"round": 2, "val_loss/all": 2.125, "val_loss/client_0": 2.1},
    ]


def test_a_resumed_wandb_run_repeats_the_earlier_rounds_in_the_same_group(
    tmp_path: Path, wandb_runs: list[StubRun]
) -> None:
    wandb_sink(tmp_path).close()
    wandb_sink(tmp_path, earlier=three_rounds()[:1]).close()
    first, second = wandb_runs
    assert second.logged == [{"round": 0, "val_loss/all": 2.5}]
    assert first.settings["group"] == second.settings["group"]


def test_wandb_that_is_not_installed_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError) as error:
        wandb_sink(tmp_path)
    assert str(error.value) == (
        "wandb.use is True, but Weights & Biases is not installed: "
        "run `pip install 'fedmezo[wandb]'` or set wandb.use=False"
    )
