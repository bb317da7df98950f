"""Whom the membership attack of an audit is tried on, and with which examples: the run's own data answer for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from torch import Tensor

from fedmezo.config import Config
from fedmezo.errors import DataError
from fedmezo.federation.course import Course
from fedmezo.federation.round import cohort_of
from fedmezo.records import RoundRecord
from fedmezo.results.console import work_progress
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.format import Header
from fedmezo.studies.membership import Membership, Target, infer, seen_of

MOST_CLIENTS = 3
"""That are attacked: the first ones that took part."""
MOST_EXAMPLES = 24
"""Of each client, and as many that were held out from all."""


def membership_of(
    config: Config,
    tuned: TunedModel,
    header: Header,
    records: Sequence[RoundRecord],
    course: Course,
    theta: Tensor,
    console: Console,
) -> Membership | None:
    """How well examples of the run's clients can be told from held-out ones; None where its data are not here."""
    try:
        holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    except DataError as error:
        console.print(f"no membership is inferred, since the run's data are not here: {error}", soft_wrap=True)
        return None
    targets = _targets(config, tuned, header, records, holdings)
    if not targets:
        console.print("no membership is inferred: no client that took part has examples, or none are held out")
        return None
    with work_progress(console, "inferring membership") as progress:
        return infer(tuned.model, course, records, theta, targets, progress)


def show_membership(console: Console, found: Membership, header: Header) -> None:
    """Print what the attack found."""
    seen = "each group's sum" if header.direction_groups else "each client's scalars"
    auc = found.auc
    console.print(
        f"Membership from {seen}: AUC {auc.value:.3f} (95 %: {auc.low:.3f} to {auc.high:.3f}; 0.5 is a coin), on "
        f"{found.candidates} examples of {found.clients} clients along {found.directions} directions",
        soft_wrap=True,
        highlight=False,
    )


def _targets(
    config: Config, tuned: TunedModel, header: Header, records: Sequence[RoundRecord], holdings: Holdings
) -> list[Target]:
    federation = assemble.make_federation(config, tuned.model)
    cohorts = {record.round: record.cohort or cohort_of(federation, record.round) for record in records}
    divided, rng = holdings.partition, np.random.default_rng(header.seed)
    outside = np.concatenate([*divided.val, *divided.test])
    took_part = sorted({client for cohort in cohorts.values() for client in cohort})
    targets = []
    for client in [client for client in took_part if client < len(divided.train)][:MOST_CLIENTS]:
        count = min(MOST_EXAMPLES, len(divided.train[client]), len(outside))
        if count:
            rows = [rng.choice(some, count, replace=False) for some in (divided.train[client], outside)]
            batch = holdings.dataset.batch(np.concatenate(rows), tuned.model.device)
            seen = seen_of(records, client, cohorts, header.seed, header.direction_groups)
            targets.append(Target(seen, batch, count))
    return targets
