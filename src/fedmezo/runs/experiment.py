"""A run from its configuration to its results: start it, go on with it, finish it."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from torch import Tensor

from fedmezo.config import Config, flatten
from fedmezo.errors import INTERRUPTED, ConfigError, DataError, ModelError, RunError, StorageError, TrainingError
from fedmezo.federation.downlink import Downlink
from fedmezo.federation.round import ServerState, cohort_of, initial_state
from fedmezo.models.generate import answers
from fedmezo.models.hardware import AUTO
from fedmezo.records import RoundRecord
from fedmezo.results.console import (
    RoundProgress,
    RunLog,
    Sample,
    show_partition,
    show_samples,
    show_summary,
    work_progress,
)
from fedmezo.results.metrics import METRICS_FILE, Metric, MetricsFile, Sink, read_metrics
from fedmezo.results.summary import summarise
from fedmezo.results.trackers import MLflow, TensorBoard, WeightsAndBiases
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.budget import make_budget, with_noise
from fedmezo.runs.card import card_of_run, write_card
from fedmezo.runs.directory import (
    BEST,
    CONFIG_FILE,
    PARTITION_FILE,
    locked,
    new_run_directory,
    write_environment,
    write_text,
)
from fedmezo.runs.evaluate import Evaluation
from fedmezo.runs.journal import JOURNAL_FILE, JournalWriter, read_journal
from fedmezo.runs.own import Listener, Measure, Own, RoundEvent
from fedmezo.runs.placement import HERE, Placement
from fedmezo.runs.places import anchored
from fedmezo.runs.precision import settle, to_begin_with
from fedmezo.runs.snapshots import load_snapshot, snapshots_of
from fedmezo.runs.stopping import EarlyStopping
from fedmezo.runs.training import EvaluationPlan, Training
from fedmezo.runs.verify import check_saved
from fedmezo.zo.signal import Signal, describe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run whose parts are loaded and whose folder is locked."""

    config: Config
    folder: Path
    log: RunLog
    tuned: TunedModel
    holdings: Holdings
    theta: Tensor  # (d,) initial; all parameters are in memory once, and training changes them
    place: Placement

    def held(self) -> list[int]:
        """Training examples of each client, where this process knows them; zeros elsewhere."""
        return list(map(len, self.holdings.partition.train))

    def starting_theta(self) -> Tensor:
        """Theta (d,) before training, for the server to change."""
        return self.theta.clone() if self.config.llm.adapter.use else self.theta

    def initial_theta(self) -> Tensor:
        """Theta (d,) before training, at any time."""
        return self.theta if self.config.llm.adapter.use else assemble.load_model(self.config).theta


def run(config: Config, notices: Sequence[str] = (), place: Placement = HERE) -> int:
    """Start a run in a new folder and bring it to its end; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    return run_in(new_folder(config), config, Console(), notices, place)


def new_folder(config: Config) -> Path:
    """Make the folder of a run, if the run can begin at all.

    Raises:
        ConfigError: the optimiser does not take its keys.
        RunError: the folder cannot be made.
    """
    assemble.check_optimizer(config)
    return new_run_directory(Path(config.outdir), config.expname or _default_name(config))


def run_in(folder: Path, config: Config, console: Console, notices: Sequence[str] = (), place: Placement = HERE) -> int:
    """Start a run in a folder that `new_folder` made and bring it to its end; returns the exit code.

    Raises:
        FedMeZOError: whatever a user can act on.
    """
    config = anchored(config)
    try:
        with at_work(console, folder, place) as log:
            write_text(folder / CONFIG_FILE, config.to_yaml())  # first: all that a resume needs
            log.line(f"run {folder}")
            for notice in notices:
                logger.warning(notice)
            return start(config, folder, log, place)
    except (ConfigError, DataError, ModelError):
        if not (folder / JOURNAL_FILE).exists():  # what was asked for cannot be: there is nothing to go on with
            shutil.rmtree(folder)
        raise


@contextmanager
def at_work(console: Console, folder: Path, place: Placement = HERE) -> Iterator[RunLog]:
    """Hold a run's folder alone, with its log open, and say how to go on where something from outside ends the work.

    Raises:
        StorageError: a file could not be read or written.
        TrainingError, KeyboardInterrupt: as they came, with that message.
    """
    with locked(folder):
        try:
            with RunLog(console, folder) as log:
                yield log
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {_what_is_safe(folder, place)}") from None
        except TrainingError as error:
            if place is HERE:  # the same would happen again
                raise
            raise TrainingError(f"{error}; {_what_is_safe(folder, place)}") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise StorageError(f"{where}{error.strerror or error}; {_what_is_safe(folder, place)}") from error


def _what_is_safe(folder: Path, place: Placement) -> str:
    if not (folder / CONFIG_FILE).exists():
        return f"nothing had begun. {folder} can be removed"
    try:
        rounds = read_journal(folder / JOURNAL_FILE).next_round
    except RunError:
        rounds = 0
    kept = f"all up to round {rounds} is safe" if rounds else "no round was lost"
    return f"{kept}. To go on: {place.resume_command(folder)}"


def start(config: Config, folder: Path, log: RunLog, place: Placement = HERE) -> int:
    """Begin a run whose folder holds its configuration, and bring it to its end; returns the exit code."""
    this = load_parts(config, folder, log, place=place)
    signals: Sequence[Signal] = ()
    if config.model.dtype == AUTO:
        this, signals = _settle(this)
    this = _with_noise(this)
    config = this.config
    write_text(folder / PARTITION_FILE, this.holdings.partition.to_json() + "\n")
    description = assemble.environment_of(this.tuned.model)
    write_environment(folder, description, config.model_dump(mode="json"))
    with work_progress(log.console, "measuring how much of g is rounding"):  # minutes on a real model
        signals = signals or assemble.noise_of_g(config, this.tuned, this.holdings, this.theta)
    if signals:
        otherwise = assemble.finer_format(this.tuned)
        (log.line if signals[0].is_sound else logger.warning)(describe(signals, otherwise))
    header = assemble.make_header(config, this.tuned, this.holdings, this.theta)
    journal = JournalWriter.create(folder / JOURNAL_FILE, header)
    return train(this, journal, header.theta_hash, initial_state(this.starting_theta()))


def _settle(this: Run) -> tuple[Run, Sequence[Signal]]:
    """The run in the number format that `auto` stands for, which its file says from now on; and g's noise in it."""
    restored = this.theta if this.config.federate.restore_from else None
    settled = settle(this.config, this.tuned, this.holdings, restored)
    write_text(this.folder / CONFIG_FILE, settled.config.to_yaml())
    this.log.line(settled.reason)
    for notice in assemble.use_lanes(settled.config, settled.tuned, this.holdings.dataset):
        logger.warning(notice)
    theta = settled.tuned.theta if restored is None else restored
    return replace(this, config=settled.config, tuned=settled.tuned, theta=theta), settled.signals


def _with_noise(this: Run) -> Run:
    """The run with the noise that its epsilon stands for, which its file says from now on."""
    federation = assemble.make_federation(this.config, this.tuned.model, this.place.own)
    config = with_noise(this.config, federation, this.held(), by_plan=this.place.by_client)
    if config == this.config:
        return this
    write_text(this.folder / CONFIG_FILE, config.to_yaml())
    privacy = config.privacy
    this.log.line(
        f"noise multiplier {privacy.noise_multiplier:.4g}: all rounds together spend an epsilon of {privacy.epsilon:g} "
        f"at a delta of {privacy.delta:g}, for each {privacy.level}"
    )
    return replace(this, config=config)


def load_parts(
    config: Config, folder: Path, log: RunLog, initial: Tensor | None = None, place: Placement = HERE
) -> Run:
    """Load the model and the data, and show how they are divided; `initial` is theta (d,) where it is known."""
    tuned = place.model(to_begin_with(config))
    for notice in tuned.notices:
        logger.warning(notice)
    holdings = place.holdings(config, tuned, log.console)
    if holdings.dataset.dropped:
        logger.warning(
            "%d of %d examples have no answer within llm.tok_len %d and were dropped",
            holdings.dataset.dropped,
            holdings.dataset.dropped + len(holdings.dataset),
            config.llm.tok_len,
        )
    for notice in assemble.prompt_notices(holdings):
        logger.warning(notice)
    if place.by_client:
        show_partition(log.console, assemble.category_counts(holdings.partition))
    if config.federate.lone_client is not None:
        log.line(f"client {config.federate.lone_client} trains alone, on its own share (client_idx_for_local_train)")
    restored = config.federate.restore_from
    if initial is not None:
        theta = initial.cpu()
    else:
        theta = tuned.model.read(Path(restored)).cpu() if restored else tuned.theta
    return Run(config, folder, log, tuned, holdings, theta, place)


def train(
    this: Run,
    journal: JournalWriter,
    initial_hash: str,
    state: ServerState,
    records: Sequence[RoundRecord] = (),
    metrics: Sequence[Metric] = (),
) -> int:
    """Run the rounds that are left and finish; returns the exit code.

    Args:
        this: the run.
        journal: open for appending.
        initial_hash: state hash before round 0.
        state: after the last closed round.
        records: the closed rounds.
        metrics: of the closed rounds.
    """
    config = this.config
    with ExitStack() as stack:
        sinks = _sinks(this, metrics)
        for sink in sinks:
            stack.callback(sink.close)
        hashes = [initial_hash, *(record.state_hash for record in records)]
        training = _training(this, journal, hashes, state, sinks, records)
        training.evaluations += [
            (m.round, training.evaluation.cost(m.value))
            for m in metrics
            if m.is_overall and m.name == training.evaluation.key
        ]
        progress = stack.enter_context(RoundProgress(this.log, config.federate.total_round_num, state.round))
        interrupted = stack.enter_context(_interruption(this.place))
        training.run(progress, interrupted)
    if not training.finished:
        this.log.line(f"stopped after round {training.state.round}; to go on: {this.place.resume_command(this.folder)}")
        return INTERRUPTED
    saved = finish(this, training)
    journal.end(training.state.round)
    for place, theta in saved.items():
        loss, count = check_saved(place, config, this.tuned, this.holdings, theta)
        loader = this.tuned.model.loader
        this.log.line(f"checked: {loader} loads {place}, with the run's loss: {loss:.4f} on {count} examples")
    return 0


def finish(this: Run, training: Training) -> dict[Path, Tensor]:
    """Write the adapters and the report, and show what came out.

    Returns:
        What lies where in the run's folder: theta (d,) of the last round, and of the best one if that is another.
    """
    from fedmezo.results.report import (
        write_report,  # matplotlib takes most of a second, which the first step need not wait for
    )

    config, model, console = this.config, this.tuned.model, this.log.console
    state = training.state
    summary = summarise(read_metrics(this.folder / METRICS_FILE), config.eval.best_res_update_round_wise_key)
    card = card_of_run(config, summary)
    if training.is_spent and state.round < config.federate.total_round_num:
        this.log.line(f"stopped after round {state.round}: one more would spend more than privacy.epsilon")
    elif state.round < config.federate.total_round_num:
        this.log.line(f"stopped early after round {state.round}: {training.evaluation.key} no longer improves")
    last, best = this.folder / model.folder, this.folder / f"{model.folder}{BEST}"
    places = {last: state.theta}
    if config.federate.save_to:
        places[Path(config.federate.save_to)] = state.theta
    if training.evaluations:
        places[best] = _best_theta(this, training)
    for place, theta in places.items():
        model.save(theta, place)
        write_card(card, place)
    write_report(this.folder)
    if config.eval.samples:
        show_samples(console, _samples(this, state.theta))
    show_summary(console, summary, this.folder)
    differ = training.evaluations and training.best_round != state.round
    return {place: places[place] for place in ((last, best) if differ else (last,))}


def _training(
    this: Run,
    journal: JournalWriter,
    hashes: list[str],
    state: ServerState,
    sinks: Sequence[Sink],
    records: Sequence[RoundRecord],
) -> Training:
    config, tuned = this.config, this.tuned
    federation = assemble.make_federation(config, tuned.model, this.place.own)
    restored = bool(config.federate.restore_from)
    downlink = Downlink(
        federation.rules.protocol,
        federation.rules.num_parameters,
        derivable=not restored,
        snapshots=config.federate.downlink == "snapshot",
    )
    for record in records:
        downlink.close(record, record.cohort or cohort_of(federation, record.round))
    estimator = federation.rules.estimator
    engine = this.place.engine(config, tuned, this.holdings, federation, downlink)
    engine.recall(records)
    return Training(
        run_dir=this.folder,
        rounds=config.federate.total_round_num,
        federation=federation,
        engine=engine,
        model=tuned.model,
        evaluation=_evaluation_plan(this),
        save_freq=config.federate.save_freq,
        keep_initial=restored,
        forward_passes_per_batch=estimator.passes if estimator else 1,
        whole=f"bytes_full_{tuned.model.folder}s",
        journal=journal,
        sinks=sinks,
        listeners=_listeners(this.place.own),
        state=state,
        hashes=hashes,
        budget=make_budget(config, federation, this.held(), by_plan=this.place.by_client),
    )


def _evaluation_plan(this: Run) -> EvaluationPlan:
    config = this.config
    stop = config.early_stop
    return EvaluationPlan(
        freq=config.eval.freq,
        measures=_measures(this),
        key=config.eval.best_res_update_round_wise_key,
        stopping=EarlyStopping(stop.patience, stop.delta, stop.improve_indicator_mode),
        by_client=this.place.by_client and not config.federate.direction_groups,
    )


def _measures(this: Run) -> dict[str, Callable[[Tensor], Evaluation]]:
    """What the configuration has measured, and what a program has besides."""
    model, tokenizer = this.tuned.model, this.tuned.tokenizer

    def own(measure: Measure, theta: Tensor) -> Evaluation:
        return Evaluation(float(measure(model.at(theta), tokenizer)), {})

    measures = assemble.measures(this.config, this.tuned, this.holdings)
    return measures | {name: partial(own, measure) for name, measure in this.place.own.metrics.items()}


def _listeners(own: Own) -> list[Listener]:
    """Whom the rounds are told to; some hear only of those that were evaluated."""

    def when_evaluated(listener: Listener, event: RoundEvent) -> None:
        if any(metric.event == "eval" for metric in event.metrics):
            listener(event)

    return [*own.on_round, *(partial(when_evaluated, listener) for listener in own.on_evaluation)]


def _sinks(this: Run, metrics: Sequence[Metric]) -> list[Sink]:
    """Where metrics go; `metrics` are those that earlier processes wrote and that still count."""
    last = max((metric.round for metric in metrics), default=None)
    sinks: list[Sink] = [MetricsFile(this.folder), TensorBoard(this.folder, hide_after=last)]
    wandb, mlflow = this.config.wandb, this.config.mlflow
    if wandb.use:
        config = this.config.model_dump()
        sinks.append(
            WeightsAndBiases(
                this.folder,
                config,
                name_user=wandb.name_user,
                name_project=wandb.name_project,
                online_track=wandb.online_track,
                client_train_info=wandb.client_train_info,
                earlier=metrics,
            )
        )
    if mlflow.use:
        keys = flatten(this.config.model_dump(mode="json"))
        place = {"tracking_uri": mlflow.tracking_uri, "experiment": mlflow.experiment}
        sinks.append(MLflow(this.folder, keys, **place, earlier=metrics))
    return sinks


def _best_theta(this: Run, training: Training) -> Tensor:
    """Theta of the best round: the present one, the initial one, or a snapshot that was kept."""
    best = training.best_round
    if best == training.state.round:
        return training.state.theta
    if best == 0:
        return this.initial_theta()
    return load_snapshot(snapshots_of(this.folder), best, training.hashes[best])


def _samples(this: Run, theta: Tensor) -> list[Sample]:
    """Answers before and after training to instructions held out from it, one of each category in turn."""
    parts, examples = assemble.parts_in_use(this.config, this.holdings.partition), this.holdings.examples
    held_out = [index for part in ("test", "val") for shard in parts[part] for index in shard.tolist()]
    first_of = {examples[index].category: index for index in reversed(held_out)}
    ordered = sorted(first_of.values()) + [index for index in held_out if index not in first_of.values()]
    chosen = [examples[index] for index in ordered[: this.config.eval.samples]]
    limit = this.config.llm.chat.max_len
    prompts = [this.holdings.prompts.prompt(example) for example in chosen]
    before = answers(this.tuned.model, this.tuned.tokenizer, this.initial_theta(), prompts, limit)
    after = answers(this.tuned.model, this.tuned.tokenizer, theta, prompts, limit)
    return [
        Sample(f"{example.instruction}\n{example.input}".strip(), example.output, old, new)
        for example, old, new in zip(chosen, before, after, strict=True)
    ]


@contextmanager
def _interruption(place: Placement) -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C or SIGTERM asked to stop after the round in hand; a second one drops that round.

    While the round only waits for clients, the first one ends the work.
    """
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked or place.is_waiting():
            raise KeyboardInterrupt
        asked = True
        logger.warning("finishing the round in hand; once more (%s) to drop it", signal.Signals(number).name)

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _default_name(config: Config) -> str:
    data = Path(config.data.name).stem
    return f"{data}-{config.trainer.type}-{time.strftime('%Y%m%d-%H%M%S')}"
