"""A run's fine-tune as one small file: made from its journal, and turned into an adapter; see log_file.py."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import Tensor

from fedmezo.atomic import read_whole, replacing
from fedmezo.errors import RunError, StorageError
from fedmezo.federation.course import hash_of
from fedmezo.federation.server_optimizers import NO_MOMENTS
from fedmezo.models.hardware import DTYPES
from fedmezo.models.language_model import LanguageModel
from fedmezo.plain import plain
from fedmezo.results.console import work_progress
from fedmezo.results.summary import human_bytes
from fedmezo.runs.card import public_name
from fedmezo.runs.directory import ADAPTER_FOLDER, MODEL_FOLDER
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JOURNAL_FILE, Journal, read_journal
from fedmezo.runs.log_file import PublishedLog, decode_log, encode_log
from fedmezo.runs.replay import (
    initial_theta,
    open_model,
    replaying_course,
    require_free,
    require_scalars,
    write_result,
)
from fedmezo.zo.arithmetic import state_hash


def export_log(folder: Path, file: Path, *, to_round: int | None = None) -> int:
    """Write a run's log to a file; returns the exit code.

    Args:
        folder: the run's folder.
        file: to be written.
        to_round: take only so many rounds, such as up to the best; None for all.

    Raises:
        RunError: the journal is damaged or cannot be replayed, or the file is there already.
        StorageError: the file cannot be written.
    """
    journal = read_journal(folder / JOURNAL_FILE, to_round)
    require_scalars(journal.header, folder)
    if to_round is not None and not 0 <= to_round <= journal.next_round:
        raise RunError(f"--to-round {to_round}: {folder / JOURNAL_FILE} has {journal.next_round} rounds")
    _require_whole(journal, folder, to_round)
    if file.exists():
        raise RunError(f"{file} is there already; nothing is overwritten: choose another file")
    public = {"base": public_name(journal.header.base)}  # a path of this machine helps nobody else
    header = journal.header.model_copy(update=public)
    content = encode_log(PublishedLog(header, journal.records, journal.hashes[-1]))
    try:
        with replacing(file) as out:
            out.write(content)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror}") from error
    size = DTYPES[header.weights].itemsize * header.num_parameters
    _say(
        f"{file}: {journal.next_round} of {header.rounds} planned rounds in {human_bytes(len(content))}; the "
        f"{_what(header)} itself takes {human_bytes(size)}"
    )
    if to_round is None and not journal.ended:
        _say("the journal has no end: the run is not finished, or lines are missing at the journal's end")
    if journal.header.restored:
        _say(
            "the run started from a saved adapter (federate.restore_from), which has to be published too: fedmezo "
            f"import {file} --model BASE --restore-from ADAPTER"
        )
    return 0


def _require_whole(journal: Journal, folder: Path, to_round: int | None) -> None:
    """RunError for a log that was cut, unless the user says up to which round it is wanted, or that has no round."""
    path, rounds = folder / JOURNAL_FILE, journal.next_round
    if journal.truncated and to_round is None:
        whole = f"give --to-round {rounds} to publish the rounds before it, or " if rounds else ""
        raise RunError(
            f"{path}: the journal is cut: the line behind its {rounds} whole rounds, of {journal.header.rounds} "
            f"planned, is incomplete; {whole}go on with the run first: fedmezo resume {folder}"
        )
    if not rounds and to_round is None:
        raise RunError(f"{path}: the journal has no round yet, so there is nothing to publish; fedmezo resume {folder}")


def import_log(
    file: Path, base: str, out: Path | None = None, restore_from: Path | None = None, *, own_code: bool = False
) -> int:
    """Turn a published log into an adapter, or a model; returns the exit code.

    Args:
        file: that `export_log` wrote.
        base: name or folder of the base model.
        out: the folder to write; by default beside the file, under its name and `-adapter` or `-model`.
        restore_from: the adapter that the run started from; None for a fresh one.
        own_code: run Python code that the model brings along.

    Raises:
        RunError: the file is damaged or of another version, the run started from another adapter, or the result is
            not the published state.
        ModelError: the base model is another one, or the adapter that the run started from cannot be read.
        StorageError: the adapter cannot be written.
    """
    try:
        log = decode_log(read_whole(file), str(file))
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from error
    out = out or file.with_name(f"{file.stem}-{_what(log.header)}")
    require_free(out)
    require_scalars(log.header, file)
    model = open_model(log.header, base, own_code=own_code)
    theta = _starting_theta(model, log.header, restore_from)
    course, moments = replaying_course(log.header, log.records, theta), NO_MOMENTS
    with work_progress(Console(), "replaying rounds") as show:
        for record in log.records:
            moments = course.advance_(theta, moments, record)
            show(record.round + 1, len(log.records))
    if (found := hash_of(theta, moments)) != log.state_hash:
        raise RunError(f"{file}: replay gives the state {found[:16]}, not {log.state_hash[:16]} as published")
    write_result(model, theta, log.header, len(log.records), out)
    _say(f"{out}: the {model.folder} after {len(log.records)} rounds, state {log.state_hash}")
    return 0


def _what(header: Header) -> str:
    return ADAPTER_FOLDER if header.adapter else MODEL_FOLDER


def _starting_theta(model: LanguageModel, header: Header, adapter: Path | None) -> Tensor:
    """Theta (d,) before round 0, from the adapter given or a fresh one, whichever the run started from."""
    if not header.restored and adapter is None:
        return initial_theta(model, header)
    if not header.restored:
        raise RunError(f"--restore-from {adapter}: the run started from a fresh adapter; leave this out")
    if adapter is None:
        raise RunError(
            f"the run started from a saved adapter, of the state {header.theta_hash[:16]}: give it with --restore-from"
        )
    theta = model.read(adapter)
    if (found := state_hash(theta)) != header.theta_hash:
        raise RunError(
            f"--restore-from {adapter}: the run started from another adapter: its state was {header.theta_hash[:16]}, "
            f"and this one's is {found[:16]}"
        )
    return theta


def _say(text: str) -> None:
    Console().print(plain(text), markup=False, highlight=False, soft_wrap=True)
