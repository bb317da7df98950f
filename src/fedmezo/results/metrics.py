"""What is measured during a run, and the file that holds it: metrics.jsonl.

`metrics.jsonl` holds one JSON object per line with the keys event, round, client, name, value, unit in this order.
Round 0 is the model before training; client is null for a figure over all clients. A line about a direction group has
its number as a further key, group. A value that is not finite is
written as null, since JSON has no word for it, and read back as NaN; every other number reads back equal.

| event   | name                | unit       | of                | meaning                                             |
|---------|---------------------|------------|-------------------|-----------------------------------------------------|
| train   | train_loss          | nats/token | each client, all  | mean over the local steps of the round              |
| train   | rate                | 1          | each client, all  | learning rate of the round                          |
| train   | skipped_steps       | 1          | each client, all  | local steps whose loss was not finite               |
| train   | clients             | 1          | each group, all   | clients whose reports are in the sum                |
| train   | clipped_share       | 1          | all               | clients whose scalars were clipped, under noise     |
| train   | epsilon             | 1          | all               | what the run has spent of its privacy               |
| train   | refused_reports     | 1          | all               | reports that the aggregation did not accept         |
| train   | projected_gradient  | nats/token | each client, all  | mean of abs of the scalars: of g, or normalised     |
| eval    | val_loss, test_loss | nats/token | each client, all  | loss of the global model on that part               |
| eval    | val_accuracy        | 1          | each client, all  | share of right answers among candidates             |
| eval    | test_accuracy       | 1          | each client, all  | the same on the test part                           |
| traffic | bytes_up            | B          | each client, all  | encoded messages from client to server              |
| traffic | bytes_down          | B          | each client, all  | encoded messages from server to client              |
| traffic | bytes_full_adapters | B          | all               | both ways, had the round sent whole adapters        |
| traffic | bytes_full_models   | B          | all               | the same of a run without an adapter                |
| cost    | seconds             | s          | all               | wall-clock time of the round, evaluation included   |
| cost    | forward_passes      | 1          | all               | forward passes of single batches                    |
| cost    | peak_memory         | B          | all               | largest memory in use so far                        |
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from fedmezo.atomic import naming, read_whole, replacing
from fedmezo.config.strict import LONGEST_NAME
from fedmezo.errors import RunError

METRICS_FILE = "metrics.jsonl"

EVENT_AND_UNIT = {
    "train_loss": ("train", "nats/token"),
    "rate": ("train", "1"),
    "skipped_steps": ("train", "1"),
    "clients": ("train", "1"),
    "clipped_share": ("train", "1"),
    "epsilon": ("train", "1"),
    "refused_reports": ("train", "1"),
    "projected_gradient": ("train", "nats/token"),
    "val_loss": ("eval", "nats/token"),
    "test_loss": ("eval", "nats/token"),
    "val_accuracy": ("eval", "1"),
    "test_accuracy": ("eval", "1"),
    "bytes_up": ("traffic", "B"),
    "bytes_down": ("traffic", "B"),
    "bytes_full_adapters": ("traffic", "B"),
    "bytes_full_models": ("traffic", "B"),
    "seconds": ("cost", "s"),
    "forward_passes": ("cost", "1"),
    "peak_memory": ("cost", "B"),
}
"""Event and unit of each name in the table above."""

ACCURACY = "accuracy"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number; the fields are the keys of a line of metrics.jsonl."""

    event: str
    round: int  # 0 is the model before training
    client: int | None  # None is all clients together, or those of a group
    name: str
    value: float  # an int stays an int
    unit: str
    group: int | None = None  # of clients that share directions

    @property
    def is_overall(self) -> bool:
        """Whether it is of all clients together."""
        return self.client is None and self.group is None

    @property
    def tag(self) -> str:
        """Name in TensorBoard and the other trackers, such as `val_loss/all` or `train_loss/client_0`."""
        if self.group is not None:
            return f"{self.name}/group_{self.group}"
        return f"{self.name}/all" if self.client is None else f"{self.name}/client_{self.client}"


_LARGEST = sys.float_info.max
KEYS = tuple(field.name for field in fields(Metric) if field.name != "group")


def is_accuracy(name: str) -> bool:
    """Whether a metric is a share of right answers, and so the better the higher it is."""
    return name.endswith(f"_{ACCURACY}")


def measured(
    name: str, value: float, *, round_index: int, client: int | None = None, group: int | None = None
) -> Metric:
    """Return the metric of this name with its event and unit. KeyError for a name that the module does not list."""
    event, unit = EVENT_AND_UNIT[name]
    return Metric(event, round_index, client, name, value, unit, group)


def evaluated(name: str, value: float, *, round_index: int) -> Metric:
    """Return the metric of an evaluation, which may be one of a program's own that the module does not list."""
    return measured(name, value, round_index=round_index) if name in EVENT_AND_UNIT else _own(name, value, round_index)


def _own(name: str, value: float, round_index: int) -> Metric:
    return Metric("eval", round_index, None, name, value, "1")


class Sink(Protocol):
    """Somewhere metrics go. A run holds a plain list of sinks."""

    def write(self, metrics: Sequence[Metric]) -> None:
        """Take metrics of one or more rounds, rounds in ascending order."""
        ...

    def close(self) -> None:
        """Write out what is still held; nothing is written afterwards."""
        ...


class MetricsFile:
    """Appends to metrics.jsonl. What a call to `write` was given is on disk when it returns."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._file = self._path.open("a", encoding="utf-8", newline="\n")

    def write(self, metrics: Sequence[Metric]) -> None:
        """Append one line for each metric."""
        with naming(self._path):
            self._file.write("".join(map(_line, metrics)))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with naming(self._path):
            self._file.close()


def read_metrics(path: Path) -> list[Metric]:
    """Read metrics.jsonl; a last line that was cut off while it was written is left out with a notice.

    Raises:
        RunError: no such file, or a line that is not one of ours.
    """
    try:
        lines = read_whole(path).split(b"\n")
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; is {path.parent} the directory of a run that has started?") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    metrics = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]
    if lines[-1]:
        try:
            metrics.append(_parse(lines[-1], str(path)))
        except RunError:
            logger.warning("%s, line %d: cut off while it was written; left out", path, len(lines))
    return metrics


def cut_after(path: Path, round_index: int) -> list[Metric]:
    """Drop the lines of later rounds, and a cut-off last line, from metrics.jsonl; return the metrics that are left.

    Raises:
        RunError: no such file, or a line that is not one of ours; the file is then left as it is.
    """
    kept = [metric for metric in read_metrics(path) if metric.round <= round_index]
    with replacing(path) as file:
        file.writelines(_line(metric).encode() for metric in kept)
    return kept


def _line(metric: Metric) -> str:
    value = metric.value if math.isfinite(metric.value) else None
    row = asdict(metric) | {"value": value}
    if metric.group is None:
        del row["group"]
    return json.dumps(row, allow_nan=False) + "\n"


def _parse(line: bytes, where: str) -> Metric:
    """Return the metric of a line. RunError, with `where`, if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise RunError(f"{where}: not a JSON object; the file is damaged") from None
    if not isinstance(row, dict) or tuple(row) not in (KEYS, (*KEYS, "group")):
        raise RunError(f"{where}: expected an object with the keys {', '.join(KEYS)}; the file is damaged")
    wrong = [key for key in row if not _fits(key, row[key])]
    if wrong:
        raise RunError(f"{where}: {wrong[0]} cannot be {json.dumps(row[wrong[0]])[:60]}; the file is damaged")
    return Metric(**row | {"value": math.nan if row["value"] is None else row["value"]})


def _fits(key: str, value: object) -> bool:
    if key in ("event", "name", "unit"):
        return isinstance(value, str) and len(value) <= LONGEST_NAME
    if key == "value":
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return value is None or is_number
    if value is None:
        return key == "client"
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
