"""Brings many runs to their end, each in a folder that its configuration names: made, gone on with, or reused.

Every run has a process of its own, so that its memory is its own and a failure stays with it. The processes are forked
from a server that has imported the libraries, so that a run starts in well under a second.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from rich.console import Console

from fedmezo.config import Config
from fedmezo.errors import INTERRUPTED, FedMeZOError, RunError
from fedmezo.results.console import work_progress
from fedmezo.runs.directory import CONFIG_FILE, write_text
from fedmezo.runs.journal import JOURNAL_FILE, read_journal

UNTOLD_KEYS = frozenset({"outdir", "expname", "wandb", "mlflow", "workers"})
"""Keys and sections that do not say what a run computes."""
_DIGEST_CHARACTERS = 10
_PRELOADED = ["fedmezo.runs.resume"]


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is wanted."""

    config: Config
    folder: Path
    label: str  # what the user calls it


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that came to no end, and what it said."""

    folder: Path
    text: str


def job_for(root: Path, config: Config, label: str) -> Job:
    """The job whose folder under `root` is named by what the configuration computes: the same one, the same folder."""
    told = {key: value for key, value in config.model_dump(mode="json").items() if key not in UNTOLD_KEYS}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return Job(config, root / f"{Path(config.data.name).stem}-{config.trainer.type}-{digest}", label)


def is_finished(folder: Path) -> bool:
    """Whether a run's results were written."""
    try:
        return read_journal(folder / JOURNAL_FILE).ended
    except RunError:
        return False


def complete(jobs: Sequence[Job], workers: int, console: Console) -> list[Failure]:
    """Bring every job's run to its end, `workers` of them at a time; returns those that failed.

    Raises:
        KeyboardInterrupt: asked to stop; the runs in hand have finished their round and can be gone on with.
    """
    wanted = {job.folder: job for job in jobs}
    todo = [job for job in wanted.values() if not is_finished(job.folder)]
    if len(todo) < len(wanted):
        console.print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there already", highlight=False)
    if not todo:
        return []
    with work_progress(console, "runs") as show:
        return _Crew(todo, workers, console).work(show)


class _Crew:
    """The processes at work.

    Args:
        jobs: what is to be done.
        workers: processes at a time.
        console: where each run's end is shown.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, console: Console) -> None:
        self._waiting = list(jobs)
        self._total = len(jobs)
        self._workers = workers
        self._console = console
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._busy: dict[int, tuple[ForkServerProcess, Job]] = {}
        self._failures: list[Failure] = []
        self._interrupted = False

    def work(self, show: Callable[[int, int | None], None]) -> list[Failure]:
        """Start jobs while there are any and wait for all of them."""
        show(0, self._total)
        earlier = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._waiting or self._busy:
                while self._waiting and len(self._busy) < self._workers:
                    self._start(self._waiting.pop(0))
                self._collect()
                show(self._total - len(self._waiting) - len(self._busy), self._total)
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        if self._interrupted:
            raise KeyboardInterrupt("interrupted; give the same command again to go on")
        return self._failures

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Start no more runs and pass the signal on: once, a run finishes its round; twice, it drops it."""
        self._interrupted = True
        self._waiting.clear()
        for process, _ in list(self._busy.values()):
            if process.pid is not None:
                os.kill(process.pid, number)

    def _start(self, job: Job) -> None:
        threads = max(1, usable_cores() // self._workers)
        process = self._context.Process(target=_run, args=(job.config, job.folder, threads))
        process.start()
        self._busy[process.sentinel] = (process, job)

    def _collect(self) -> None:
        """Wait for the end of one process or more."""
        for sentinel in wait(list(self._busy)):
            assert isinstance(sentinel, int), "of a process"
            process, job = self._busy.pop(sentinel)
            process.join()
            self._take(job, process.exitcode or 0)

    def _take(self, job: Job, code: int) -> None:
        said = _output(job.folder)
        if code == INTERRUPTED or (self._interrupted and code < 0):
            self._interrupted = True
            self._waiting.clear()
        elif code:
            text = said.read_text(errors="replace").strip().splitlines() if said.exists() else []
            self._failures.append(Failure(job.folder, text[-1] if text else f"ended with exit code {code}"))
            self._console.print(f"failed: {job.label}: {self._failures[-1].text}", markup=False, highlight=False)
        else:
            said.unlink(missing_ok=True)
            self._console.print(f"done: {job.label}", markup=False, highlight=False)


def usable_cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _output(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.out")


def _run(config: Config, folder: Path, threads: int) -> None:
    """Body of a process: a run from wherever it stands to its end; what it prints goes to a file beside its folder."""
    os.setsid()  # Ctrl-C reaches it through the parent alone
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_output(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from fedmezo.runs.places import anchored
    from fedmezo.runs.resume import resume

    torch.set_num_threads(threads)
    if not (folder / CONFIG_FILE).exists():
        write_text(folder / CONFIG_FILE, anchored(config).to_yaml())
    try:
        code = resume(folder)
    except FedMeZOError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
