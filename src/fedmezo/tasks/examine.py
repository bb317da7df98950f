"""The command `fedmezo eval`: which tasks on which subject, what is shown and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from fedmezo.atomic import replacing
from fedmezo.data.prompt import Format
from fedmezo.data.sources import AS_NAMED, Reading, load_examples
from fedmezo.errors import ConfigError
from fedmezo.models.generate import TOKENS_PER_BATCH, Decoding, OnItems
from fedmezo.records import Example
from fedmezo.results.console import show_table, work_progress
from fedmezo.runs import assemble
from fedmezo.tasks import gsm8k, humaneval
from fedmezo.tasks.answering import exact_match
from fedmezo.tasks.choices import accuracy
from fedmezo.tasks.harness import harness_outcomes
from fedmezo.tasks.losses import data_loss
from fedmezo.tasks.outcome import Outcome, write_items
from fedmezo.tasks.subject import AS_THE_RUN, Hardware, Subject, load_subject

RESULTS_FILE = "results.json"
FORMAT_VERSION = 1
MAX_NEW_TOKENS = 128
"""Of an answer to an instruction, where neither the command nor the run says it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to examine, and by which tasks.

    Args:
        target: a run's folder, an adapter's folder, or a model.
        round_index: of a run; None for its final adapter.
        hardware: where and how precisely.
        data: data sets (`data.type`) whose loss is wanted.
        data_root: folder of the data files; None for the run's, else `data`.
        tok_len: longest example in tokens; None for the run's, else 1024.
        match: whether greedy answers to these data sets, or the run's held-out part, are to be judged as well.
        gsm8k: its forms that are wanted: `gsm8k` with worked examples, `gsm8k-zero-shot` without.
        mmlu, humaneval: whether to run these.
        shots: worked examples for GSM8K instead of those of Wei et al.
        tasks: names in lm-evaluation-harness.
        task_folder: further task files for it.
        limit: only so many items of each task.
        max_new_tokens: of an answer; None for the task's own.
        tokens_per_batch: of a batch of answers.
        with_base: run the tasks on the base model without the adapter as well.
        prompt_format: how the model is asked; None is as the run has it, else the Alpaca prompt.
        out: folder for the results; None for `eval` in the run's folder, else `evaluations/NAME`.
    """

    target: str
    round_index: int | None = None
    hardware: Hardware = AS_THE_RUN
    data: Sequence[str] = ()
    data_root: Path | None = None
    tok_len: int | None = None
    match: bool = False
    gsm8k: Sequence[str] = ()
    mmlu: bool = False
    humaneval: bool = False
    shots: Path | None = None
    tasks: Sequence[str] = ()
    task_folder: Path | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH
    with_base: bool = False
    prompt_format: Format | None = None
    out: Path | None = None


Task = Callable[[Subject, OnItems], Outcome]


def examine(request: Request, console: Console) -> int:
    """Run the tasks, show the scores, and write the results; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    subject = load_subject(request.target, request.hardware, request.round_index, request.prompt_format)
    if request.tok_len:
        subject = replace(subject, tok_len=request.tok_len)
    for notice in subject.notices:
        console.print(f"notice: {notice}", markup=False, highlight=False)
    tasks = _tasks(request, subject, console)
    harness = (*request.tasks, *(["mmlu"] if request.mmlu else []))
    if not tasks and not harness:
        raise ConfigError(
            f"{request.target} is no run with examples of its own to evaluate: name a task, as {_CHOICES}"
        )
    outcomes = {"tuned" if subject.is_tuned else "base": _run(subject, tasks, harness, request, console)}
    if request.with_base and subject.is_tuned:
        with subject.untuned():
            outcomes["base"] = _run(subject, tasks, harness, request, console)
    folder = request.out or _folder(subject)
    write_results(folder, subject, outcomes)
    show_table(console, f"Evaluation of {subject.name}", ("task", *outcomes), _score_rows(outcomes))
    console.print(f"every item and the scores are in {folder}", highlight=False)
    return 0


def held_out_examples(subject: Subject, console: Console) -> dict[str, list[Example]]:
    """The run's own validation and test examples, by the name of their loss; none where it is no run."""
    if subject.config is None:
        return {}
    holdings = assemble.load_holdings(subject.config, subject.tokenizer, console)
    parts = assemble.held_out(subject.config, holdings.partition)
    return {
        name: [holdings.examples[i] for shard in shards for i in sorted(shard.tolist())]
        for name, shards in parts.items()
        if any(len(shard) for shard in shards)
    }


def write_results(folder: Path, subject: Subject, outcomes: dict[str, list[Outcome]]) -> None:
    """Write a file of items for each task and state, and `results.json`."""
    rows = []
    for state, of_state in outcomes.items():
        for outcome in of_state:
            name = f"{outcome.task}.{state}".replace("/", "_")
            if outcome.items:
                write_items(folder, name, outcome.items)
            score = {"value": outcome.score.value, "low": outcome.score.low, "high": outcome.score.high}
            finite = {key: value if math.isfinite(value) else None for key, value in score.items()}
            rows.append(
                {
                    "task": outcome.task,
                    "state": state,
                    "measure": outcome.measure,
                    "items": len(outcome.items),
                    **finite,
                }
            )
    document = {"version": FORMAT_VERSION, "subject": subject.name, "scores": rows}
    with replacing(folder / RESULTS_FILE) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())


def _score_rows(outcomes: dict[str, list[Outcome]]) -> list[tuple[str, ...]]:
    by_state = list(outcomes.values())
    return [
        (f"{some[0].task}, {some[0].measure} ({len(some[0].items):,})", *(outcome.text() for outcome in some))
        for some in zip(*by_state, strict=True)
    ]


def _run(
    subject: Subject, tasks: dict[str, Task], harness: Sequence[str], request: Request, console: Console
) -> list[Outcome]:
    outcomes = []
    for name, task in tasks.items():
        with work_progress(console, name) as show:
            outcomes.append(task(subject, show))
    if harness:
        rows = max(1, request.tokens_per_batch // 1024)
        outcomes += harness_outcomes(subject, harness, request.task_folder, request.limit, rows)
    return outcomes


def _tasks(request: Request, subject: Subject, console: Console) -> dict[str, Task]:
    """The tasks by name; their data is read now, so that what is missing is said at once."""
    sets = _example_sets(request, subject, console)
    tasks: dict[str, Task] = {}
    for name, examples in sets.items():
        tasks |= _data_tasks(name, examples[: request.limit], request, subject)
    if request.gsm8k:
        tasks |= _gsm8k_tasks(request, console)
    if request.humaneval:
        tasks["humaneval"] = _humaneval_task(request, console)
    return tasks


def _example_sets(request: Request, subject: Subject, console: Console) -> dict[str, list[Example]]:
    if request.data:
        root = request.data_root or (Path(subject.config.data.root) if subject.config else Path("data"))
        return {name: load_examples(name, root, reading=_reading(subject, name)) for name in request.data}
    asked = request.gsm8k or request.humaneval or request.mmlu or request.tasks
    return {} if asked and not request.match else held_out_examples(subject, console)


def _reading(subject: Subject, name: str) -> Reading:
    """The run's own data set is read as the run reads it."""
    config = subject.config
    return assemble.reading_of(config) if config is not None and config.data.type == name else AS_NAMED


def _data_tasks(name: str, examples: Sequence[Example], request: Request, subject: Subject) -> dict[str, Task]:
    tasks: dict[str, Task] = {name: lambda subject, show: data_loss(subject, name, examples, show)}
    if any(example.choices for example in examples):
        accuracy_name = f"{name.removesuffix('_loss')}-accuracy"
        tasks[accuracy_name] = lambda subject, show: accuracy(subject, accuracy_name, examples, show)
    if request.match:
        longest = subject.config.llm.chat.max_len if subject.config else MAX_NEW_TOKENS
        decoding = _decoding(request, longest)
        match_name = f"{name.removesuffix('_loss')}-match"
        tasks[match_name] = lambda subject, show: exact_match(subject, match_name, examples, decoding, show)
    return tasks


def _gsm8k_tasks(request: Request, console: Console) -> dict[str, Task]:
    with work_progress(console, "reading gsm8k", is_bytes=True) as show:
        questions = gsm8k.load_questions(request.data_root or Path("data"), show)[: request.limit]
    shots = gsm8k.read_questions(request.shots or gsm8k.SHOTS_FILE)
    decoding = _decoding(request, gsm8k.MAX_NEW_TOKENS)
    forms: dict[str, Task] = {
        "gsm8k": lambda subject, show: gsm8k.few_shot(subject, questions, shots, decoding, show),
        "gsm8k-zero-shot": lambda subject, show: gsm8k.zero_shot(subject, questions, decoding, show),
    }
    return {form: forms[form] for form in request.gsm8k}


def _humaneval_task(request: Request, console: Console) -> Task:
    with work_progress(console, "reading humaneval", is_bytes=True) as show:
        problems = humaneval.load_problems(request.data_root or Path("data"), show)[: request.limit]
    decoding = _decoding(request, humaneval.MAX_NEW_TOKENS)
    return lambda subject, show: humaneval.human_eval(subject, problems, decoding, show)


def _decoding(request: Request, default: int) -> Decoding:
    return Decoding(request.max_new_tokens or default, tokens_per_batch=request.tokens_per_batch)


def _folder(subject: Subject) -> Path:
    name = subject.name.replace(" ", "").replace(",", "-")
    return subject.run / "eval" / name if subject.run else Path("evaluations") / name


_CHOICES = "--data TYPE, --gsm8k, --gsm8k-zero-shot, --humaneval, --mmlu, --tasks NAMES"
