"""TensorBoard, Weights & Biases and MLflow get the numbers that metrics.jsonl holds."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedmezo.errors import ConfigError
from fedmezo.results.metrics import Metric, measured
from fedmezo.results.trackers import MLflow, TensorBoard, WeightsAndBiases
from tests.unit.test_metrics import three_rounds

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


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


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def mlflow_sink(run_dir: Path, uri: str, earlier: tuple[Metric, ...] = ()) -> MLflow:
    return MLflow(run_dir, {"train.zo.eps": 0.01}, tracking_uri=uri, experiment=run_dir.name, earlier=earlier)


def mlflow_runs(uri: str, experiment: str) -> list[Any]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def test_mlflow_gets_each_series_against_the_round(tmp_path: Path, database: str) -> None:
    sink = mlflow_sink(tmp_path, database)
    sink.write(three_rounds())
    sink.close()
    (run,) = mlflow_runs(database, tmp_path.name)
    assert run.data.params == {"train.zo.eps": "0.01"}
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")
    history = MlflowClient(tracking_uri=database).get_metric_history(run.info.run_id, "val_loss/all")
    assert [(entry.step, entry.value) for entry in history] == [(0, 2.5), (2, 2.125)]


def test_a_resumed_mlflow_run_repeats_the_earlier_rounds_in_the_same_group(tmp_path: Path, database: str) -> None:
    mlflow_sink(tmp_path, database).close()
    mlflow_sink(tmp_path, database, earlier=tuple(three_rounds()[:1])).close()
    first, second = mlflow_runs(database, tmp_path.name)
    assert second.data.metrics == {"val_loss/all": 2.5}
    assert first.data.tags["fedmezo.group"] == second.data.tags["fedmezo.group"]


def test_mlflow_that_is_lost_does_not_end_the_run(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(*_args: object, **_kwargs: object) -> None:
        raise MlflowException("the server went away")

    sink = mlflow_sink(tmp_path, database)
    monkeypatch.setattr(MlflowClient, "log_batch", lose)
    with caplog.at_level(logging.WARNING):
        sink.write(three_rounds())
        sink.write(three_rounds())
        sink.close()
    assert caplog.text.count("the server went away") == 1


def test_mlflow_that_cannot_be_used_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"mlflow\.tracking_uri 'nothing://x'"):
        mlflow_sink(tmp_path, "nothing://x")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedmezo\[mlflow\]'"):
        mlflow_sink(tmp_path, "")
