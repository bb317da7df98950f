"""What must hold between keys where clients share directions, so that only their sums are known."""

from __future__ import annotations

from collections.abc import Iterator

from fedmezo.config.conflict import Conflict
from fedmezo.config.schema import AUTO, MAX_QUERIES, Config

SMALLEST_GROUP = 3
"""Clients of which one can be told to be unlike the others."""

LARGEST_LOSS_CHANGE, LARGEST_LOSS, LARGEST_SUM = 100.0, 1000.0, 2.0**46
"""What bounds a scalar of a two-point step, a loss, and a sum of either: see zo, `federation.rates` and `.sums`."""


def sharing_conflicts(config: Config) -> Iterator[Conflict]:
    """All of them."""
    for check in (_groups, _steps, _aggregation, _sums):
        yield from check(config)


def _groups(config: Config) -> Iterator[Conflict]:
    key, federate = "federate.direction_groups", config.federate
    if not federate.direction_groups:
        return
    text = f"is {federate.direction_groups}"
    if federate.protocol != "scalars":
        yield Conflict((key, "federate.protocol"), f"{text}; needs 0, or federate.protocol: scalars")
    if federate.direction_groups > federate.cohort_size:
        keys = (key, "federate.sample_client_num", "federate.sample_client_rate", "federate.client_num")
        yield Conflict(keys, f"{text}, but {federate.cohort_size} clients take part in a round; needs at most that")


def _steps(config: Config) -> Iterator[Conflict]:
    """Nothing can follow from a client's own numbers, and all clients of a group go along the same directions."""
    key, train = "federate.direction_groups", config.train
    if not config.federate.direction_groups:
        return
    text = f"is {config.federate.direction_groups}"
    if train.train_strategy not in ("frozen", "random"):
        why = f"with which only sums are known, but train.train_strategy {train.train_strategy} follows each client's"
        yield Conflict((key, "train.train_strategy"), f"{text}, {why} own numbers; needs 0, or frozen or random")
    if train.batch_or_epoch == "epoch":
        text = f"{text}, and all clients of a group take as many steps; needs 0, or train.batch_or_epoch: batch"
        yield Conflict((key, "train.batch_or_epoch"), text)


def _aggregation(config: Config) -> Iterator[Conflict]:
    """A rule compares clients along the directions that they share."""
    keys, federate = ("federate.aggregation", "federate.direction_groups"), config.federate
    if federate.aggregation == "mean":
        return
    text = f"is {federate.aggregation}, which compares clients that share directions"
    if not federate.direction_groups:
        yield Conflict(keys, f"{text}; needs mean, or federate.direction_groups: 1 or more")
        return
    fewest = federate.cohort_size // federate.direction_groups
    if 0 < fewest < SMALLEST_GROUP:
        yield Conflict(keys, f"{text}, but a group has {fewest} of them; needs {SMALLEST_GROUP}, so fewer groups")


def _sums(config: Config) -> Iterator[Conflict]:
    """A group's scalars are summed in whole numbers of 64 bits; see `federation.sums`."""
    federate, train, zo = config.federate, config.train, config.train.zo
    if not federate.direction_groups or zo.eps == AUTO:
        return
    largest = zo.clip or (LARGEST_LOSS_CHANGE / (2 * zo.scale) if zo.estimator == "two-point" else MAX_QUERIES**0.5)
    examples = 1 if federate.ignore_weight else train.local_update_steps * config.dataloader.batch_size
    counted = federate.cohort_size * examples
    if counted * max(largest, LARGEST_LOSS) <= LARGEST_SUM:
        return
    clip = f"at most {LARGEST_SUM / counted:.3g}, or " if counted * LARGEST_LOSS <= LARGEST_SUM else ""
    text = (
        f"is {zo.clip:g}, so that scalars may be as large as {largest:.3g}, and those of {federate.cohort_size} "
        f"clients with {examples} examples each cannot be summed in 64 bits without rounding; needs {clip}"
        "federate.ignore_weight: True"
    )
    yield Conflict(("train.zo.clip", "train.zo.eps", "federate.direction_groups"), text)
