"""FedMeZO from Python: the commands' own code, with a program's objects in place of names where it has some.

Everything here is also at the top of the package: `import fedmezo; fedmezo.run()`. A mistake raises the error that the
command prints (`fedmezo.errors`); the folder of a run is what `fedmezo run` writes, and every command takes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedmezo.config import Config, Loaded, flatten, load_config
from fedmezo.data.splitters import Splitter
from fedmezo.errors import ConfigError, ModelError, RunError
from fedmezo.federation.rates import Offsets
from fedmezo.federation.round import Weigh
from fedmezo.handover.source import folder_to_hand_over
from fedmezo.models.generate import Decoding, complete
from fedmezo.records import Example
from fedmezo.results.metrics import EVENT_AND_UNIT, METRICS_FILE, Metric, read_metrics
from fedmezo.results.summary import Summary, series, summarise
from fedmezo.runs.assemble import HandedBase
from fedmezo.runs.directory import CONFIG_FILE
from fedmezo.runs.experiment import new_folder, run_in
from fedmezo.runs.given import HANDED_OVER, Given, Rows, given_examples
from fedmezo.runs.journal import JOURNAL_FILE, Journal, read_journal
from fedmezo.runs.own import Listener, MakeEstimator, Measure, Own, RoundEvent
from fedmezo.runs.placement import Here
from fedmezo.runs.replay import replay as rebuild
from fedmezo.runs.resume import resume as go_on
from fedmezo.tasks.subject import AS_THE_RUN, Subject, load_subject

__all__ = ["RoundEvent", "Run", "check", "load_run", "replay", "resume", "run", "tune"]

Settings: TypeAlias = "str | Path | Mapping[str, Any] | None"
"""A configuration: a YAML file, or its content as nested or dotted keys; None is the bundled quickstart."""

Told: TypeAlias = "Listener | Sequence[Listener]"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, read when asked.

    Args:
        folder: that `run`, `tune` or the command made.
    """

    folder: Path

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return load_config(self.folder / CONFIG_FILE).config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every measured number as a row, for `pandas.DataFrame`: event, round, client, name, value, unit, group."""
        return [asdict(metric) for metric in self._metrics]

    @property
    def summary(self) -> Summary:
        """Totals, and the losses before and after."""
        return summarise(self._metrics, self.config.eval.best_res_update_round_wise_key)

    @property
    def journal(self) -> Journal:
        """Every rate, weight, scalar and state hash."""
        return read_journal(self.folder / JOURNAL_FILE)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; else `resume` goes on with it."""
        return (self.folder / JOURNAL_FILE).exists() and self.journal.ended

    @property
    def result(self) -> Path:
        """Folder of what came out: an adapter for `PeftModel.from_pretrained`, or a whole model for transformers.

        Raises:
            RunError: the run is not finished.
        """
        return folder_to_hand_over(self.folder, best=False)

    @property
    def best_result(self) -> Path:
        """The same of the best round. Raises RunError: the run is not finished, or evaluated nothing."""
        return folder_to_hand_over(self.folder, best=True)

    def values(self, name: str, client: int | None = None) -> dict[int, float]:
        """One metric by round, over all clients or of one: `run.values("val_loss")`."""
        return dict(series(self._metrics, name, client))

    def model(self, round_index: int | None = None) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
        """The tuned model in evaluation mode and its tokenizer, ready to generate.

        Args:
            round_index: the state after so many rounds; None for the last.

        Raises:
            ModelError: the base model cannot be loaded, or was handed over by a program, which then has it.
            RunError: the run is not finished, or its state after that round is not to be had.
        """
        subject = self._subject(round_index)
        return subject.model, subject.tokenizer

    def answer(
        self, instruction: str, about: str = "", *, max_new_tokens: int = 128, round_index: int | None = None
    ) -> str:
        """The tuned model's greedy answer, asked as in its training: the command `fedmezo generate`.

        Args:
            instruction: what is asked.
            about: what it is about, an example's `input`.
            max_new_tokens: longest answer.
            round_index: see `model`.

        Raises:
            FedMeZOError: see `model`.
        """
        subject = self._subject(round_index)
        prompt = subject.prompts.prompt(Example(instruction, about, "", ""))
        return complete(subject.model, subject.tokenizer, [prompt], Decoding(max_new_tokens))[0].strip()

    def _subject(self, round_index: int | None) -> Subject:
        if self.config.model.name == HANDED_OVER:
            raise ModelError(
                f"{self.folder}: its base model was handed over by a program; load that, and then: "
                f"PeftModel.from_pretrained(base, {str(self.result)!r})"
            )
        return load_subject(str(self.folder), AS_THE_RUN, round_index)

    @property
    def _metrics(self) -> list[Metric]:
        return read_metrics(self.folder / METRICS_FILE)


def run(
    config: Settings = None,
    *,
    splitter: Splitter | None = None,
    strategy: Offsets | None = None,
    estimator: MakeEstimator | None = None,
    weigh: Weigh | None = None,
    metrics: Mapping[str, Measure] | None = None,
    on_round: Told = (),
    on_evaluation: Told = (),
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Train as a configuration says: the command `fedmezo run`.

    Example: `fedmezo.run("my.yaml", seed=1, **{"train.optimizer.lr": 1e-5})`

    Args:
        config: see `Settings`.
        splitter: who holds which share of each category, instead of `data.splitter`.
        strategy: offsets Phi of the clients' rates, instead of `train.train_strategy`.
        estimator: makes the clients' estimator from `fedmezo.zo.estimators.protocol.Settings`; `train.zo.estimator`
            still says where its scalars lead, so that the journal replays without it.
        weigh: the weight of each report in the average, instead of its number of examples.
        metrics: functions of (model, tokenizer), measured at each evaluation under their names.
        on_round: called with a `RoundEvent` after each round that is committed; one function, or several.
        on_evaluation: the same after each evaluation, that before the first round included.
        quiet: show nothing; log.txt has all of it.
        keys: keys to change, dotted ones in a dict behind `**`.

    Raises:
        FedMeZOError: what the command would print, before anything is trained where that can be known.
        KeyboardInterrupt: interrupted twice; interrupted once, the round in hand is finished and the run returned.
    """
    loaded = _load(config, keys)
    own = _own(splitter, strategy, estimator, weigh, metrics, on_round, on_evaluation)
    return _run(loaded, Here(own), quiet)


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    clients: Sequence[Rows],
    validation: Rows = (),
    test: Rows = (),
    config: Settings = None,
    *,
    strategy: Offsets | None = None,
    estimator: MakeEstimator | None = None,
    weigh: Weigh | None = None,
    metrics: Mapping[str, Measure] | None = None,
    on_round: Told = (),
    on_evaluation: Told = (),
    resume: str | Path | None = None,
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Tune a model object over lists of examples or `datasets.Dataset`s, one for each client.

    The adapter is built into the model, which stays where it is and is left with the final adapter's values.

    Args:
        model: a causal language model of transformers.
        tokenizer: its fast tokenizer.
        clients: each client's training rows: `instruction` and `output`, `prompt` and `completion`, `messages` or
            `text`, as in data files.
        validation: rows that decide the best round.
        test: rows that are evaluated besides.
        config: see `Settings`; None is the defaults, not the quickstart. What it says of model and data is not used.
        strategy: see `run`, as for all that is not here.
        estimator: see `run`.
        weigh: see `run`.
        metrics: see `run`.
        on_round: see `run`.
        on_evaluation: see `run`.
        resume: the folder of a run to go on with, which was made with the same objects.
        quiet: see `run`.
        keys: see `run`.

    Raises:
        FedMeZOError: see `run`; DataError naming client, row and field; ModelError for a slow tokenizer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"tokenizer is a {type(tokenizer).__name__}; it must be a fast one (PreTrainedTokenizerFast)")
    own = _own(None, strategy, estimator, weigh, metrics, on_round, on_evaluation)
    place = Given(HandedBase(model, tokenizer), given_examples(clients, validation, test), own)
    if resume is not None:
        if config is not None or keys:
            raise ConfigError("resume goes on with a run's own configuration: leave out config and keys")
        go_on(Path(resume), place=place, console=_console(quiet))
        return Run(Path(resume))
    settings: dict[str, Any] = {} if config is None else _nested(config)
    handed = {
        "model.type": HANDED_OVER,
        "model.dtype": str(model.dtype).removeprefix("torch."),
        "data.type": HANDED_OVER,
        "federate.client_num": len(clients),
        "use_gpu": model.device.type == "cuda",
        "device": model.device.index if model.device.index is not None else -1,
    }
    defaults = {"llm.adapter.use": True} if "llm.adapter.use" not in flatten(settings) else {}
    return _run(_load(settings, defaults | keys | handed), place, quiet)


def resume(folder: str | Path, *, force: bool = False, quiet: bool = False) -> Run:
    """Go on with a run that was stopped: the command `fedmezo resume`. A run of `tune` goes on there.

    Raises:
        FedMeZOError: what the command would print.
    """
    go_on(Path(folder), force=force, console=_console(quiet))
    return Run(Path(folder))


def load_run(folder: str | Path) -> Run:
    """A run that is there already, finished or not.

    Raises:
        RunError: the folder is none of a run.
    """
    path = Path(folder)
    if not (path / CONFIG_FILE).is_file():
        raise RunError(f"{path}: no run's folder (it has no {CONFIG_FILE})")
    return Run(path)


def replay(folder: str | Path, *, to_round: int | None = None, out: str | Path | None = None) -> str:
    """Rebuild a run's adapter from its journal and check every state; returns the hash of the last.

    Args:
        folder: the run's folder.
        to_round: stop after so many rounds.
        out: where to write the adapter.

    Raises:
        RunError: naming the first state that differs, or the line that is damaged.
    """
    path = Path(folder)
    rebuild(path, to_round=to_round, out=None if out is None else Path(out), console=_console(True))
    return read_journal(path / JOURNAL_FILE, to_round).hashes[-1]


def check(config: Settings = None, **keys: Any) -> Config:
    """Read a configuration: the command `fedmezo check`.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _load(config, keys).config


def _run(loaded: Loaded, place: Here | Given, quiet: bool) -> Run:
    place.own.require_fitting(loaded.config)
    folder = new_folder(loaded.config)
    run_in(folder, loaded.config, _console(quiet), loaded.notices, place)
    return Run(folder)


def _console(quiet: bool) -> Console:
    return Console(quiet=quiet)


def _load(config: Settings, keys: Mapping[str, Any]) -> Loaded:
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for key, value in keys.items()]
    if not isinstance(config, Mapping):
        return load_config(None if config is None else Path(config), overrides)
    with tempfile.TemporaryDirectory(prefix="fedmezo-") as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(_nested(config)), encoding="utf-8")
        return load_config(path, overrides)


def _nested(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A file's or a mapping's keys, dotted ones taken apart."""
    if not isinstance(config, Mapping):
        return dict(load_config(Path(config)).config.model_dump(mode="json", exclude_defaults=True))
    nested: dict[str, Any] = {}
    for key, value in flatten(config).items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return nested


def _own(
    splitter: Splitter | None,
    strategy: Offsets | None,
    estimator: MakeEstimator | None,
    weigh: Weigh | None,
    metrics: Mapping[str, Measure] | None,
    on_round: Told,
    on_evaluation: Told,
) -> Own:
    for name in metrics or {}:
        if name in EVENT_AND_UNIT or not name.isidentifier():
            raise ConfigError(f"metrics: {name!r} cannot be the name of a metric: it is taken, or no identifier")
    return Own(splitter, strategy, estimator, weigh, metrics or {}, _listed(on_round), _listed(on_evaluation))


def _listed(listeners: Told) -> tuple[Callable[[RoundEvent], None], ...]:
    return (listeners,) if callable(listeners) else tuple(listeners)
