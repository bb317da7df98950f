"""Programs that show metrics as they come: TensorBoard, Weights & Biases, MLflow. Each is a sink of a run."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from fedmezo.errors import ConfigError
from fedmezo.results.metrics import Metric

TENSORBOARD_FOLDER = "tensorboard"
_MLFLOW_METRICS, _MLFLOW_PARAMETERS, _MLFLOW_LETTERS = 1000, 100, 6000
"""What MLflow takes in one request, and of a parameter's value."""

logger = logging.getLogger(__name__)


class TensorBoard:
    """Writes TensorBoard event files, the round as the step.

    Args:
        run_dir: the run directory; the files go to its folder `tensorboard`.
        hide_after: on resume, the last round that counts; TensorBoard hides what earlier files hold of later rounds.
    """

    def __init__(self, run_dir: Path, hide_after: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / TENSORBOARD_FOLDER))
        if hide_after is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=hide_after + 1, session_log=start))

    def write(self, metrics: Sequence[Metric]) -> None:
        """Write one event for each round among the metrics."""
        for round_index, group in _by_round(metrics):
            values = [self._summary.Value(tag=metric.tag, simple_value=metric.value) for metric in group]
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=time.time(), step=round_index, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases, the round as the step, as the keys `wandb.*` of the reference ask.

    The history of a W&B run only grows, so a resumed run opens a new one in the same group and repeats there what
    counts of the rounds before.

    Args:
        run_dir: the run directory; W&B keeps its files there and its name is the run's.
        config: the resolved configuration, shown beside the curves.
        name_user: the W&B entity; empty for the default one of the account.
        name_project: the W&B project; empty for W&B's own default.
        online_track: log each round when it ends (True) or everything when the run ends (False).
        client_train_info: log the training metrics of each client too, not only those over all.
        earlier: on resume, the metrics that still count.

    Raises:
        ConfigError: the package wandb is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        name_user: str,
        name_project: str,
        online_track: bool,
        client_train_info: bool,
        earlier: Sequence[Metric] = (),
    ) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ConfigError(
                "wandb.use is True, but Weights & Biases is not installed: "
                "run `pip install 'fedmezo[wandb]'` or set wandb.use=False"
            ) from error
        self._online_track = online_track
        self._client_train_info = client_train_info
        self._held: list[Metric] = []
        self._run = wandb.init(
            entity=name_user or None,
            project=name_project or None,
            name=run_dir.name,
            group=_group(run_dir),
            dir=str(run_dir),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="round")
        self.write(earlier)

    def write(self, metrics: Sequence[Metric]) -> None:
        """Log the metrics now, or keep them for `close`."""
        wanted = [metric for metric in metrics if self._wants(metric)]
        if self._online_track:
            self._log(wanted)
        else:
            self._held += wanted

    def close(self) -> None:
        """Log what was kept and end the W&B run."""
        self._log(self._held)
        self._held = []
        self._run.finish()

    def _wants(self, metric: Metric) -> bool:
        return self._client_train_info or metric.event != "train" or metric.is_overall

    def _log(self, metrics: Sequence[Metric]) -> None:
        for round_index, group in _by_round(metrics):
            self._run.log({"round": round_index} | {metric.tag: metric.value for metric in group})


class MLflow:
    """Logs to MLflow, the round as the step, as the keys `mlflow.*` ask.

    What MLflow holds of a run is not cut: like with W&B, a resumed run opens a new one with the same group.

    Args:
        run_dir: the run directory, whose name is the MLflow run's.
        config: the resolved configuration in dots, as the run's parameters.
        tracking_uri: a server's address or a database such as sqlite:///mlflow.db; empty for MLflow's own default.
        experiment: its name in MLflow; made if it is not there.
        earlier: on resume, the metrics that still count.

    Raises:
        ConfigError: MLflow is not installed, or its server or database cannot be used.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        *,
        tracking_uri: str,
        experiment: str,
        earlier: Sequence[Metric] = (),
    ) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric as Entry
            from mlflow.entities import Param
            from mlflow.exceptions import MlflowException
        except ModuleNotFoundError as error:
            raise ConfigError(
                "mlflow.use is True, but MLflow is not installed: run `pip install 'fedmezo[mlflow]'` or set "
                "mlflow.use=False"
            ) from error
        self._entry, self._failure, self._is_lost = Entry, MlflowException, False
        try:
            self._client = MlflowClient(tracking_uri=tracking_uri or None)
            found = self._client.get_experiment_by_name(experiment)
            where = found.experiment_id if found else self._client.create_experiment(experiment)
            tags = {"fedmezo.group": _group(run_dir)}
            self._run = self._client.create_run(where, run_name=run_dir.name, tags=tags).info.run_id
            params = [Param(key, str(value)[:_MLFLOW_LETTERS]) for key, value in config.items()]
            for first in range(0, len(params), _MLFLOW_PARAMETERS):
                self._client.log_batch(self._run, params=params[first : first + _MLFLOW_PARAMETERS])
        except MlflowException as error:
            raise ConfigError(f"mlflow.tracking_uri {tracking_uri!r}: {str(error).splitlines()[0]}") from error
        self.write(earlier)

    def write(self, metrics: Sequence[Metric]) -> None:
        """Log the metrics of one or more rounds; a server that is lost costs its own copy of them, not the run."""
        now = round(time.time() * 1000)
        entries = [self._entry(metric.tag, metric.value, now, metric.round) for metric in metrics]
        for first in range(0, len(entries), _MLFLOW_METRICS):
            some = entries[first : first + _MLFLOW_METRICS]
            self._guarded(partial(self._client.log_batch, self._run, metrics=some))

    def close(self) -> None:
        """End the MLflow run."""
        self._guarded(partial(self._client.set_terminated, self._run))

    def _guarded(self, request: Callable[[], object]) -> None:
        if self._is_lost:  # its client would wait for a minute each time
            return
        try:
            request()
        except self._failure as error:
            self._is_lost = True
            reason = str(error).splitlines()[0]
            logger.warning("MLflow takes no more metrics (%s); metrics.jsonl and TensorBoard have all", reason)


def _by_round(metrics: Sequence[Metric]) -> Iterable[tuple[int, Iterable[Metric]]]:
    return groupby(metrics, key=lambda metric: metric.round)


def _group(run_dir: Path) -> str:
    """Same for every resumption of a run, different for runs of one name in different folders."""
    return f"{run_dir.name}-{hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]}"
