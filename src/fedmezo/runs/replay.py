"""Rebuilding a run's adapter from its base model and its journal alone, with every state checked on the way."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from fedmezo.config import Config, load_config
from fedmezo.config.schema import Dtype
from fedmezo.errors import ConfigError, ModelError, RunError, StorageError
from fedmezo.federation.aggregate import SCALARS
from fedmezo.federation.course import Course, hash_of
from fedmezo.federation.server_optimizers import NO_MOMENTS
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.hardware import DTYPES
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import NONE
from fedmezo.models.vocabulary import settle_special_tokens
from fedmezo.models.whole import WholeLM
from fedmezo.plain import plain
from fedmezo.records import RoundRecord, Segment
from fedmezo.results.console import work_progress
from fedmezo.runs.card import card_of_log, write_card
from fedmezo.runs.directory import ADAPTER_FOLDER, CONFIG_FILE, MODEL_FOLDER
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JOURNAL_FILE, Journal, read_journal
from fedmezo.runs.snapshots import load_snapshot, snapshots_of
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.low_rank import LOW_RANK, directions_for

logger = logging.getLogger(__name__)


def replay(
    folder: Path,
    *,
    to_round: int | None = None,
    out: Path | None = None,
    base: str | None = None,
    console: Console | None = None,
) -> int:
    """Replay a run and check each of its states; returns the exit code.

    Args:
        folder: the run's folder.
        to_round: stop after so many rounds, whatever follows; None for all.
        out: where to write the adapter; None for nowhere.
        base: where the base model is, if not where the run had it.
        console: where to show it; None for the terminal.

    Raises:
        FedMeZOError: whatever a user can act on; RunError naming the first state that differs.
    """
    console = console or Console()
    require_free(out)
    journal = read_journal(folder / JOURNAL_FILE, to_round)
    _check(journal, folder, to_round)
    kept = _config_of(folder)
    if kept is None:
        model = open_model(journal.header, base or journal.header.base)
    else:
        own_code = kept.model.trust_remote_code
        model = open_model(journal.header, base or kept.model.type, kept.llm.cache.model or None, own_code=own_code)
    snapshots = snapshots_of(folder)
    theta = initial_theta(model, journal.header, snapshots if journal.header.restored else None)
    started = time.monotonic()
    with work_progress(console, "replaying rounds") as show:
        rebuild_(theta, journal.header, journal.records, lambda done: show(done, journal.next_round))
    seconds = time.monotonic() - started
    _tell(console, journal, to_round, seconds)
    if out is not None:
        write_result(model, theta, journal.header, journal.next_round, out)
        console.print(f"{model.folder} written to {out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def rebuild_(
    theta: Tensor, header: Header, records: Sequence[RoundRecord], on_round: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Apply the recorded rounds to the initial theta (d,), in place, and check the state after each.

    Raises:
        RunError: the first state that differs from the recorded one.
    """
    course, moments = replaying_course(header, records, theta), NO_MOMENTS
    for record in records:
        moments = course.advance_(theta, moments, record)
        found = hash_of(theta, moments)
        if found != record.state_hash:
            raise RunError(
                f"round {record.round} is the first that differs: its state is {found[:16]}, but "
                f"{record.state_hash[:16]} was recorded; the {record.round} rounds before it agree"
            )
        on_round(record.round + 1)
    return theta


def replaying_course(header: Header, records: Sequence[RoundRecord], theta: Tensor) -> Course:
    """The run's course, as it moves theta (d,) through the rounds on the device that theta is on."""
    directions = sum(record.num_coefficients for record in records)
    noise = directions_for(header.noise, header.rank, header.segments, directions, theta.device)
    return header.course_with(noise)


def open_model(header: Header, base: str, cache: str | None = None, *, own_code: bool = False) -> LanguageModel:
    """The base model, with a fresh adapter if it is to have one, as the header describes it.

    Args:
        header: what the run was.
        base: name or folder of the base model.
        cache: where the hub's downloads are kept; None for its usual place.
        own_code: run Python code that the model brings along.

    Raises:
        ModelError: it cannot be loaded, or is not the base model that the header names.
        RunError: its trainable tensors are not those that the header names.
    """
    dtype, cpu, scheme = DTYPES[_held_in(header)], torch.device("cpu"), header.quantization
    model, tokenizer = load_base(base, cache, dtype, cpu, quantization=scheme, own_code=own_code)
    found = base_hash(model)
    if found != header.base_hash:
        model, tokenizer = load_base(base, cache, dtype, cpu, quantization=scheme, own_code=own_code, grown=True)
    if header.base_hash not in (found, base_hash(model)):
        raise ModelError(
            f"{base} is not the base model of this run: the hash of its weights in {_form(header)} is {found[:16]}, "
            f"but {header.base_hash[:16]} is needed (the run called it {header.base})"
        )
    ending = settle_special_tokens(model, tokenizer)
    tuned: LanguageModel
    if header.adapter is None:
        low_rank = header.noise == LOW_RANK
        held, dtype = DTYPES[header.weights], DTYPES[header.dtype]
        tuned = WholeLM(model, tokenizer, header.trainable, low_rank=low_rank, dtype=dtype, held=held)
    else:
        tuned = CausalLM(model, header.adapter, header.seed, tokenizer if ending.is_new else None)
    if tuned.segments != header.segments:
        raise RunError(
            f"{_trained(header)} on {base} has other tensors than the run's: "
            f"{_first_difference(tuned.segments, header.segments)}"
        )
    return tuned


def _trained(header: Header) -> str:
    return (
        "what train.trainable chooses" if header.adapter is None else f"the adapter {header.adapter['adapter_method']}"
    )


def _held_in(header: Header) -> Dtype:
    """The number format of the base weights: what is trained is as theta is, whatever is computed in."""
    return header.dtype if header.adapter else header.weights


def _form(header: Header) -> str:
    dtype = _held_in(header)
    return dtype if header.quantization == NONE else f"{dtype} quantised as {header.quantization}"


def _first_difference(here: Sequence[Segment], there: Sequence[Segment]) -> str:
    for own, other in zip_longest(here, there):
        if own != other:
            shown = [f"{one.name} {list(one.shape)}" if one else "none" for one in (own, other)]
            return f"{shown[0]} here, {shown[1]} in the run"
    return "none"


def require_scalars(header: Header, where: Path) -> None:
    """RunError unless the run's journal holds what changed the weights."""
    if header.protocol != SCALARS:
        raise RunError(
            f"{where}: a run of the {header.protocol} protocol cannot be replayed: its clients sent weights, of which "
            "the journal holds the hashes only. What came out is in "
            f"{ADAPTER_FOLDER if header.adapter else MODEL_FOLDER}/, the last state in snapshots/"
        )


def write_result(model: LanguageModel, theta: Tensor, header: Header, rounds: int, out: Path) -> None:
    """Write what a log made of its base model, with its card.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        model.save(theta, out)
        write_card(card_of_log(header, rounds), out)
    except OSError as error:
        raise StorageError(f"{error.filename or out}: cannot be written: {error.strerror}") from error


def require_free(out: Path | None) -> None:
    """RunError if a folder to be written cannot be made, is there already and not empty, or is no folder."""
    if out is None:
        return
    with _reachable(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} is there already; nothing is overwritten: choose another --out")
        above = next(parent for parent in out.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            what = "cannot be written" if above.is_dir() else "is a file, not a folder"
            raise RunError(f"{out} cannot be made, since {above} {what}: choose another --out")


@contextmanager
def _reachable(out: Path) -> Iterator[None]:
    """Say of a place that cannot even be looked at (a name that is too long, a folder that is closed) that it is so."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error.strerror}; choose another --out") from error


def _check(journal: Journal, folder: Path, to_round: int | None) -> None:
    require_scalars(journal.header, folder)
    if to_round is not None and not 0 <= to_round <= journal.next_round:
        raise RunError(f"--to-round {to_round}: {folder / JOURNAL_FILE} has {journal.next_round} rounds")


def initial_theta(model: LanguageModel, header: Header, snapshots: Path | None = None) -> Tensor:
    """Theta (d,) before round 0: the model's own, or that of a snapshot, which a run keeps that did not start from it.

    Raises:
        RunError: it is not the theta that the header names.
    """
    if snapshots is not None:
        return load_snapshot(snapshots, 0, header.theta_hash)
    theta = model.initial()
    if state_hash(theta) != header.theta_hash:
        if header.adapter is None:
            raise RunError(
                f"the weights are {state_hash(theta)[:16]} here, but were {header.theta_hash[:16]} in the run"
            )
        raise RunError(
            f"the initial adapter is {state_hash(theta)[:16]} here, but was {header.theta_hash[:16]} in the run: other "
            "versions of torch and PEFT may draw other initial values, of LoRA only those that PEFT draws itself "
            f"(adapter_method {header.adapter['adapter_method']})"
        )
    return theta


def _config_of(folder: Path) -> Config | None:
    """The run's configuration, which says where its model is, if it is still there."""
    try:
        return load_config(folder / CONFIG_FILE).config
    except ConfigError:
        return None


def _tell(console: Console, journal: Journal, to_round: int | None, seconds: float) -> None:
    rounds = journal.next_round
    lines = [f"replayed {rounds} of {journal.header.rounds} planned rounds: every state has the recorded hash"]
    if to_round is None and not journal.ended:
        lines.append("the journal has no end: the run is not finished, or lines are missing at the journal's end")
    elif to_round is None and rounds < journal.header.rounds:
        lines.append("the run ended early, as its journal says")
    if journal.truncated and to_round is None:
        lines.append("its last line is cut off and was left out")
    lines += [f"notice: {remark}" for remark in journal.remarks]
    if rounds:
        scalars = sum(record.num_coefficients for record in journal.records)
        lines.append(
            f"{seconds:.2f} s, {1000 * seconds / rounds:.1f} s per 1,000 rounds of {scalars / rounds:.0f} scalars"
        )
    lines.append(f"state {journal.hashes[-1]}")
    for line in lines:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
