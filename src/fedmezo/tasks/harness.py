"""Any task of the Language Model Evaluation Harness (`pip install 'fedmezo[eval]'`), on the model as it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmezo.errors import ConfigError, DataError
from fedmezo.studies.intervals import Interval
from fedmezo.tasks.outcome import Outcome
from fedmezo.tasks.subject import Subject

_Z = 1.960  # 97.5 % quantile of the normal distribution: the harness gives standard errors

_SHARES = ("acc", "exact_match", "pass")


def harness_outcomes(
    subject: Subject, tasks: Sequence[str], task_folder: Path | None, limit: int | None, batch_size: int
) -> list[Outcome]:
    """Run tasks by their names in the harness; a group of tasks gives an outcome of its own beside its members'.

    Args:
        subject: the model.
        tasks: names of tasks or groups, such as `mmlu`.
        task_folder: a folder with further task files (.yaml).
        limit: take only so many items of each task.
        batch_size: items in a batch.

    Raises:
        ConfigError: the harness is not installed.
        DataError: a task is unknown, or its data cannot be had.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tasks of lm-evaluation-harness need it installed ({error.name} is missing): pip install 'fedmezo[eval]'"
        ) from error
    manager = TaskManager(include_path=str(task_folder) if task_folder else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise DataError(
            f"--tasks: {', '.join(unknown)}: no such task in lm-evaluation-harness; `lm-eval ls tasks` lists them, and "
            "--task-files names a folder with more"
        )
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    except (OSError, ConnectionError, ValueError) as error:
        raise DataError(f"--tasks {','.join(tasks)}: the harness cannot run them: {error}") from error
    return _outcomes(found)


def _outcomes(found: Mapping[str, Any]) -> list[Outcome]:
    outcomes = []
    for task, measures in found["results"].items():
        for key, value in measures.items():
            name, _, filtered = key.partition(",")
            if name.endswith("_stderr") or not filtered or not isinstance(value, int | float):
                continue
            error = measures.get(f"{name}_stderr,{filtered}")
            samples = found["samples"].get(task, [])
            interval = _interval(float(value), error)
            is_share = name.startswith(_SHARES)
            outcomes.append(Outcome(task, _measure(name, filtered), interval, _items(samples), is_share))
    return outcomes


def _measure(name: str, filtered: str) -> str:
    return name if filtered == "none" else f"{name} ({filtered})"


def _interval(value: float, error: object) -> Interval:
    if not isinstance(error, float):
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, value - _Z * error, value + _Z * error)


def _items(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    kept = ("doc_id", "doc", "target", "resps", "filtered_resps")
    return [{key: sample[key] for key in kept if key in sample} for sample in samples]
