"""Going on with a run that was stopped, so that it ends as if it had not been.

The journal's lines are the rounds that count. The state after them is the latest snapshot and, in a `scalars` run, the
replay of the rounds behind it; what else was written for a round without a line is cut. Nothing is touched before
everything has been checked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from fedmezo.atomic import remove_leftovers
from fedmezo.config import Config, load_config
from fedmezo.errors import RunError
from fedmezo.federation.aggregate import WEIGHTS
from fedmezo.federation.rates import ClientHistory, remember
from fedmezo.federation.round import Federation, ServerState, replay_round_, trust_after
from fedmezo.federation.trust import Trust
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import NONE
from fedmezo.results.console import RunLog
from fedmezo.results.metrics import METRICS_FILE, Metric, cut_after, read_metrics
from fedmezo.runs import assemble
from fedmezo.runs.directory import (
    ADAPTER_FOLDER,
    BEST,
    CONFIG_FILE,
    MODEL_FOLDER,
    differences,
    read_environment,
)
from fedmezo.runs.experiment import Run, at_work, load_parts, start, train
from fedmezo.runs.format import Header
from fedmezo.runs.journal import JOURNAL_FILE, Journal, JournalWriter, read_journal
from fedmezo.runs.placement import HERE, Placement
from fedmezo.runs.places import NOT_MOVED, Moved
from fedmezo.runs.snapshots import (
    delete_snapshots,
    load_moments,
    load_snapshot,
    snapshot_path,
    snapshot_rounds,
    snapshots_of,
)

logger = logging.getLogger(__name__)

WITHOUT_CONSEQUENCE = frozenset(
    f"config.{key}"
    for key in (
        *(
            "outdir",
            "expname",
            "wandb",
            "mlflow",
            "workers",
            "federate.save_to",
            "federate.save_freq",
            "eval.samples",
            "llm.chat",
        ),
        *("use_gpu", "device"),  # what came of them is compared
        *("model.type", "llm.cache", "data.root", "data.type", "federate.restore_from"),  # their content is compared
    )
) | {"version", "started", "versions.python", "versions.tokenizers", "versions.safetensors"}
"""What may differ between the run and its continuation."""

_CONTENTS = {
    "base_hash": "weights of the base model",
    "dtype": "their number format",
    "quantization": "their quantisation",
    "theta_hash": "initial state of what is trained",
    "data_hash": "encoded data set",
    "partition_hash": "division of the data among the clients",
}
"""Fields of the header that describe content, and what to call it."""


def resume(
    folder: Path,
    *,
    force: bool = False,
    place: Placement = HERE,
    moved: Moved = NOT_MOVED,
    console: Console | None = None,
) -> int:
    """Bring a run to its end; returns the exit code.

    Args:
        folder: the run's folder.
        force: go on although something differs from the run's start, or although lines are missing at the journal's
            end; the journal keeps a remark of it.
        place: where its clients are.
        moved: what is not where the run had it.
        console: where to show it; None for the terminal.

    Raises:
        FedMeZOError: whatever a user can act on; RunError if what is there is damaged or differs.
    """
    config = moved.applied(_config_of(folder))
    with at_work(console or Console(), folder, place) as log:
        if not (folder / JOURNAL_FILE).exists():
            _require_untouched(folder)
            _sweep(folder)
            log.line(f"run {folder} was stopped before its first round: starting it")
            return start(config, folder, log, place)
        journal = read_journal(folder / JOURNAL_FILE)
        if journal.truncated:
            logger.warning("%s: its last line was cut off while it was written; left out", folder / JOURNAL_FILE)
        if journal.ended and not force:
            log.line(f"nothing left to do: the run ended after round {journal.next_round}. Results are in {folder}")
            return 0
        return _go_on(config, folder, log, journal, place, force=force)


def _config_of(folder: Path) -> Config:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such run folder")
    if not path.is_file():
        raise RunError(f"{path} is missing: this is no run folder, or the run was stopped before it wrote anything")
    return load_config(path).config


def _require_untouched(folder: Path) -> None:
    """Without a journal there may be no trace of a round either."""
    if (folder / METRICS_FILE).exists() or snapshot_rounds(snapshots_of(folder)):
        raise RunError(
            f"{folder / JOURNAL_FILE} is missing, though the run had begun: put it back from a copy, or start a new "
            "run. The adapters in snapshots/ are whole, but nothing says any more how they came about"
        )


def _go_on(config: Config, folder: Path, log: RunLog, journal: Journal, place: Placement, *, force: bool) -> int:
    recorded = read_environment(folder)
    torch.set_num_threads(recorded["threads"])
    this = load_parts(config, folder, log, _kept_initial(folder, journal.header), place)
    if config.train.lanes == "auto":  # as then, where the device has room for as many
        this.tuned.model.use_lanes(min(recorded["lanes"], this.tuned.model.lanes))
    faults = [*_changes(this, recorded, journal.header), *_losses(folder, journal)]
    if faults and this.tuned.base_hash != journal.header.base_hash and _had_grown(this, journal.header):
        raise RunError(
            f"{folder}: an earlier version began this run, on a base model to which it had added the special tokens "
            "that the tokenizer lacks; this one leaves a base model as it is, and cannot go on with the run. Start it "
            "again, or finish it with that version; replay and export read it as it is"
        )
    if faults and not force:
        raise RunError(_refusal(folder, faults))
    federation = assemble.make_federation(config, this.tuned.model, place.own)
    state = restore(folder, journal, federation, this.starting_theta())
    metrics = _cut_back(folder, journal.next_round)
    writer = JournalWriter.reopen(folder / JOURNAL_FILE, journal)
    if faults:
        writer.remark(f"resumed by force at round {state.round}; {'; '.join(faults)}")
    log.line(f"going on with {folder} after round {state.round}")
    return train(this, writer, journal.header.theta_hash, state, journal.records, metrics)


def restore(folder: Path, journal: Journal, federation: Federation, initial: Tensor) -> ServerState:
    """The server's state after the last recorded round.

    Args:
        folder: the run's folder.
        journal: of the run.
        federation: the server's choices.
        initial: theta (d,) before round 0, which becomes the state's if no later one is to be had.

    Raises:
        RunError: a snapshot is damaged, or missing where the journal alone cannot replace it; or replay does not give
            the states that the journal names.
    """
    snapshots = snapshots_of(folder)
    at = max((saved for saved in snapshot_rounds(snapshots) if saved <= journal.next_round), default=0)
    if federation.rules.protocol == WEIGHTS and at != journal.next_round:
        raise RunError(
            f"{snapshot_path(snapshots, journal.next_round)} is missing: a run of the weights protocol can go on only "
            f"from the state after its last round. The newest snapshot there is is of round {at}"
        )
    theta = load_snapshot(snapshots, at, journal.hashes[at]).to(initial.device) if at else initial
    histories: dict[int, ClientHistory] = {}
    trust = Trust()
    for record in journal.records[:at]:
        trust = trust_after(federation, trust, record)
        histories = remember(histories, record, federation.rules.estimator)
    moments = load_moments(snapshots, at) if at else {}
    on_device = {name: moment.to(initial.device) for name, moment in moments.items()}
    state = ServerState(at, theta, journal.hashes[at], histories, on_device, trust)
    for record in journal.records[at:]:
        state = replay_round_(federation, state, record)
        if state.hash != record.state_hash:
            raise RunError(
                f"{folder}: replaying round {record.round} gives the state {state.hash[:16]}, but the journal says "
                f"{record.state_hash[:16]}: base model, initial adapter or configuration are not those of the run"
            )
    return state


def _kept_initial(folder: Path, header: Header) -> Tensor | None:
    """The initial theta of a run that started from a saved adapter, which may have changed since."""
    snapshots = snapshots_of(folder)
    kept = header.restored and 0 in snapshot_rounds(snapshots)
    return load_snapshot(snapshots, 0, header.theta_hash) if kept else None


def _changes(this: Run, recorded: dict[str, Any], header: Header) -> list[str]:
    """What is not as it was when the run started and can change its course."""
    present = {
        **assemble.environment_of(this.tuned.model),
        "config": this.config.model_dump(mode="json"),
    }
    then = {**recorded, "config": _as_read_now(recorded.get("config"))}
    found = differences(then, json.loads(json.dumps(present)), WITHOUT_CONSEQUENCE)
    old = header.model_dump()
    new = assemble.make_header(this.config, this.tuned, this.holdings, this.theta).model_dump()
    changed = [name for name in _CONTENTS if old[name] != new[name]]
    return found + [f"{_CONTENTS[name]}: {old[name][:16]} then, {new[name][:16]} now" for name in changed]


def _had_grown(this: Run, header: Header) -> bool:
    """Whether the base model is the run's with the rows that earlier versions added."""
    config, cpu = this.config, torch.device("cpu")
    cache, scheme = config.llm.cache.model, config.model.quantization or NONE
    own_code = config.model.trust_remote_code
    grown, _ = load_base(
        config.model.type, cache, this.tuned.dtype, cpu, quantization=scheme, own_code=own_code, grown=True
    )
    return base_hash(grown) == header.base_hash


def _as_read_now(recorded: Any) -> Any:
    """The recorded configuration with the keys that there have been since, which the run had at their defaults."""
    try:
        return Config.model_validate(recorded).model_dump(mode="json")
    except ValidationError:  # then it differs from the present one, which is valid
        return recorded


def _losses(folder: Path, journal: Journal) -> list[str]:
    """What is missing, as far as journal, metrics and snapshots tell of each other."""
    metrics, here = folder / METRICS_FILE, journal.next_round
    measured = {metric.round for metric in read_metrics(metrics)} if metrics.exists() else set()
    newest = max((0, *measured, *snapshot_rounds(snapshots_of(folder))))
    found = []
    if newest > here + 1:  # a round is measured before it is committed, so one more is nothing unusual
        found.append(
            f"{JOURNAL_FILE} ends after round {here}, but metrics and snapshots know round {newest}: lines are missing"
        )
    if absent := sorted(set(range(1, here + 1)) - measured):
        found.append(f"{METRICS_FILE} has nothing of {len(absent)} rounds, the first of them {absent[0]}")
    return found


def _refusal(folder: Path, faults: Sequence[str]) -> str:
    return "\n".join(
        [
            f"{folder} is not as it was left, so that going on would not give the result of an uninterrupted run:",
            *(f"  {fault}" for fault in faults),
            f"Put it back, or go on all the same, with a remark in the journal: fedmezo resume {folder} --force",
        ]
    )


def _cut_back(folder: Path, next_round: int) -> list[Metric]:
    """Remove what was written for rounds that were not committed; returns the metrics that are left."""
    _sweep(folder)
    snapshots = snapshots_of(folder)
    delete_snapshots(snapshots, [saved for saved in snapshot_rounds(snapshots) if saved > next_round])
    if not (folder / METRICS_FILE).exists():
        return []
    return cut_after(folder / METRICS_FILE, next_round if next_round else -1)  # the first evaluation has no line


def _sweep(folder: Path) -> None:
    """Remove files that were cut short."""
    results = [folder / f"{name}{kind}" for name in (ADAPTER_FOLDER, MODEL_FOLDER) for kind in ("", BEST)]
    for place in (folder, snapshots_of(folder), *results):
        remove_leftovers(place)
