"""The model that is examined: a run at some round, a saved adapter, or a base model alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from fedmezo.config import Config, load_config
from fedmezo.data.prompt import ALPACA, Format, Prompts, prompts_for
from fedmezo.errors import ModelError, RunError
from fedmezo.federation.aggregate import SCALARS
from fedmezo.models.adapter_limits import bound_saved_
from fedmezo.models.checksum import check_adapter
from fedmezo.models.fitness import require_causal
from fedmezo.models.foreign import explained
from fedmezo.models.hardware import choose_device, choose_dtype
from fedmezo.models.label_loss import LossPath, choose_path
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.loading import load_base
from fedmezo.models.pickles import require_no_code
from fedmezo.models.quantised import NONE
from fedmezo.models.vocabulary import settle_special_tokens
from fedmezo.runs import assemble
from fedmezo.runs.directory import ADAPTER_FOLDER, CONFIG_FILE, MODEL_FOLDER
from fedmezo.runs.journal import JOURNAL_FILE, Journal, read_journal
from fedmezo.runs.places import NOT_MOVED, Moved
from fedmezo.runs.replay import initial_theta, rebuild_
from fedmezo.runs.snapshots import load_snapshot, snapshot_rounds, snapshots_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADAPTER_CONFIG = "adapter_config.json"
TOK_LEN = 1024
"""Longest example in tokens where no run says it."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model as the tasks see it."""

    name: str
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerFast
    losses: LossPath
    tok_len: int  # longest example in tokens
    run: Path | None  # the run's folder, if it is one
    config: Config | None  # the run's
    notices: tuple[str, ...] = ()
    base: Callable[[], PreTrainedModel] | None = None  # loads what it was before, where all of it was trained
    prompts: Prompts = ALPACA  # how the model is asked

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def is_tuned(self) -> bool:
        """Whether there is an adapter, or another model that this one was before."""
        return isinstance(self.model, PeftModel) or self.base is not None

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Within the block the model is the base alone."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        elif self.base is not None:
            before = self.base()
            _exchange(self.model, before)
            try:
                yield
            finally:
                _exchange(self.model, before)
        else:
            yield


def _exchange(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let two models of one kind take each other's weights."""
    for own, its in zip(model.parameters(), other.parameters(), strict=True):
        own.data, its.data = its.data, own.data


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where from and to a model is loaded, and how precisely; None is what the run says, or the plain way."""

    use_gpu: bool | None = None
    dtype: str | None = None
    moved: Moved = NOT_MOVED


AS_THE_RUN = Hardware()


def load_subject(
    target: str, hardware: Hardware, round_index: int | None = None, prompt_format: Format | None = None
) -> Subject:
    """Load what `target` names.

    Args:
        target: a run's folder, an adapter's folder, or a model as `model.type` names it.
        hardware: where and how precisely.
        round_index: of a run, the state after so many rounds instead of its final adapter.
        prompt_format: how the model is asked; None is as the run has it, else the Alpaca prompt.

    Raises:
        ModelError: the model or adapter cannot be loaded.
        RunError: the run is damaged, is not finished, or its state after that round is not to be had.
    """
    subject = _load(target, hardware, round_index)
    if prompt_format is None and subject.config is not None:
        return replace(subject, prompts=assemble.make_prompts(subject.config, subject.tokenizer))
    return replace(subject, prompts=prompts_for(prompt_format or "alpaca", "", subject.tokenizer))


def _load(target: str, hardware: Hardware, round_index: int | None) -> Subject:
    folder = Path(target)
    if (folder / CONFIG_FILE).is_file():
        return _load_run(folder, hardware, round_index)
    if round_index is not None:
        raise RunError(f"{target} is not a run's folder (it has no {CONFIG_FILE}), so it has no rounds to choose from")
    if (folder / ADAPTER_CONFIG).is_file():
        return _load_adapter(folder, hardware)
    return _load_model(target, hardware)


def _load_run(folder: Path, hardware: Hardware, round_index: int | None) -> Subject:
    config = _on(hardware.moved.applied(load_config(folder / CONFIG_FILE).config), hardware)
    if round_index is not None:
        return _load_round(folder, config, round_index)
    result = folder / (ADAPTER_FOLDER if config.llm.adapter.use else MODEL_FOLDER)
    if not (result / (ADAPTER_CONFIG if config.llm.adapter.use else "config.json")).is_file():
        raise RunError(f"{folder}: the run is not finished. Finish it with: fedmezo resume {folder}{_or_round(folder)}")
    if not config.llm.adapter.use:
        return _load_whole(folder.name, folder, config, result)
    base, tokenizer, notices = _base(config)
    model = _with_adapter(base, result)
    losses, more = _path(model, base)
    return Subject(folder.name, model, tokenizer, losses, config.llm.tok_len, folder, config, (*notices, *more))


def _load_whole(name: str, folder: Path, config: Config, result: Path) -> Subject:
    """A run's model, all of whose parameters may have been trained."""
    tuned = config.model_copy(update={"model": config.model.model_copy(update={"type": str(result)})})
    model, tokenizer, notices = _base(tuned)
    losses, more = _path(model, model)
    return Subject(
        name, model, tokenizer, losses, config.llm.tok_len, folder, config, (*notices, *more), lambda: _base(config)[0]
    )


def _load_round(folder: Path, config: Config, round_index: int) -> Subject:
    journal = read_journal(folder / JOURNAL_FILE)
    tuned = assemble.load_model(config)
    tuned.model.show(_theta_after(round_index, folder, journal, tuned.model))
    network = tuned.model.network
    losses, _ = choose_path(network, tuned.model.base)
    name = f"{folder.name}, round {round_index}"
    return Subject(
        name,
        network,
        tuned.tokenizer,
        losses,
        config.llm.tok_len,
        folder,
        config,
        tuned.notices,
        None if config.llm.adapter.use else lambda: _base(config)[0],
    )


def _theta_after(round_index: int, folder: Path, journal: Journal, model: LanguageModel) -> Tensor:
    """Theta (d,) after so many rounds: a snapshot, or what the journal's scalars make of the initial one."""
    if round_index > journal.next_round:
        raise RunError(f"{folder}: --round {round_index}, but the run has {journal.next_round} rounds")
    snapshots = snapshots_of(folder)
    rounds = snapshot_rounds(snapshots)
    if round_index in rounds:
        return load_snapshot(snapshots, round_index, journal.hashes[round_index])
    if round_index and journal.header.protocol != SCALARS:
        kept = ", ".join(map(str, sorted({0, *rounds})))
        raise RunError(
            f"{folder}: --round {round_index}: a run of the weights protocol has only the rounds of its snapshots: "
            f"{kept} (federate.save_freq)"
        )
    theta = initial_theta(model, journal.header, snapshots if journal.header.restored else None).clone()
    return rebuild_(theta, journal.header, journal.records[:round_index])


def _load_adapter(folder: Path, hardware: Hardware) -> Subject:
    try:
        named = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: names no base model ({error})") from error
    base, tokenizer, notices = _plain_base(hardware.moved.model or str(named), hardware)
    model = _with_adapter(base, folder)
    losses, more = _path(model, base)
    return Subject(folder.name, model, tokenizer, losses, TOK_LEN, None, None, (*notices, *more))


def _load_model(name: str, hardware: Hardware) -> Subject:
    base, tokenizer, notices = _plain_base(name, hardware)
    losses, more = _path(base, base)
    return Subject(Path(name).name, base, tokenizer, losses, TOK_LEN, None, None, (*notices, *more))


def _on(config: Config, hardware: Hardware) -> Config:
    """The run's configuration with another device or precision where one is asked for.

    With a precision of its own the base is not quantised either.
    """
    use_gpu = config.use_gpu if hardware.use_gpu is None else hardware.use_gpu
    precision = {} if hardware.dtype is None else {"dtype": hardware.dtype, "quantization": None}
    return config.model_copy(update={"use_gpu": use_gpu, "model": config.model.model_copy(update=precision)})


def _path(model: PreTrainedModel | PeftModel, base: PreTrainedModel) -> tuple[LossPath, list[str]]:
    model.eval()
    require_causal(model, base)
    return choose_path(model, base)


def _base(config: Config) -> tuple[PreTrainedModel, Any, tuple[str, ...]]:
    device, device_notices = choose_device(config.use_gpu, config.device)
    dtype, dtype_notices = choose_dtype(config.model.dtype, config.train.is_enable_half, device)
    base, tokenizer = load_base(
        config.model.type,
        config.llm.cache.model,
        dtype,
        device,
        quantization=config.model.quantization or NONE,
        own_code=config.model.trust_remote_code,
        streamed=config.model.streamed,
    )
    ending = settle_special_tokens(base, tokenizer)
    return base, tokenizer, (*device_notices, *dtype_notices, *ending.notices)


def _plain_base(name: str, hardware: Hardware) -> tuple[PreTrainedModel, Any, tuple[str, ...]]:
    device, device_notices = choose_device(bool(hardware.use_gpu), -1)
    dtype, dtype_notices = choose_dtype(hardware.dtype, False, device)
    base, tokenizer = load_base(name, None, dtype, device, own_code=hardware.moved.own_code)
    ending = settle_special_tokens(base, tokenizer)
    return base, tokenizer, (*device_notices, *dtype_notices, *ending.notices)


def _with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    check_adapter(folder)
    require_no_code(folder)
    with warnings.catch_warnings(), explained(f"{folder}: PEFT cannot load this adapter"):
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT reads the old name
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be as if never trained
        config = PeftConfig.from_pretrained(str(folder))
        bound_saved_(config, base)
        model: PeftModel = PeftModel.from_pretrained(base, str(folder), config=config)
    return model.eval()


def _or_round(folder: Path) -> str:
    try:
        return f", or choose one of its {read_journal(folder / JOURNAL_FILE).next_round} rounds with --round"
    except RunError:
        return ""
