"""What must hold between keys where sums or noise hide what clients have."""

from __future__ import annotations

from collections.abc import Iterator

from fedmezo.config.conflict import Conflict
from fedmezo.config.schema import AUTO, Config

SMALLEST_GROUP = 3
"""Clients of a sum: of two, each would know the other's part."""


def hiding_conflicts(config: Config) -> Iterator[Conflict]:
    """All of them."""
    for check in (_sums, _noise, _clients, _examples, _losses):
        yield from check(config)


def _sums(config: Config) -> Iterator[Conflict]:
    key, federate = "federate.secure_aggregation", config.federate
    if not federate.secure_aggregation:
        return
    yield from _groups(config, key, "is True")
    if federate.aggregation != "mean":
        text = f"is {federate.aggregation}, which compares clients' own scalars, and secure sums hide them; needs mean"
        yield Conflict(("federate.aggregation", key), f"{text}, or federate.secure_aggregation: False")
    if federate.max_ratio:
        text = f"is {federate.max_ratio:g}, but secure sums hide the reports that it would compare; needs 0"
        yield Conflict(("federate.max_ratio", key), text)


def _groups(config: Config, key: str, text: str) -> Iterator[Conflict]:
    federate = config.federate
    keys = (key, "federate.direction_groups", "federate.sample_client_num", "federate.client_num")
    if not federate.direction_groups:
        yield Conflict(keys, f"{text}, but no directions are shared; needs federate.direction_groups: 1 or more")
    elif federate.cohort_size // federate.direction_groups < SMALLEST_GROUP:
        text = f"{text}, but {federate.cohort_size} clients in {federate.direction_groups} groups leave one with"
        few = federate.cohort_size // federate.direction_groups
        yield Conflict(keys, f"{text} {few}; needs {SMALLEST_GROUP} in each, so fewer groups or more clients")


def _noise(config: Config) -> Iterator[Conflict]:
    privacy = config.privacy
    if privacy.level == "none":
        if privacy.epsilon is not None or privacy.noise_multiplier:
            given = "privacy.epsilon" if privacy.epsilon is not None else "privacy.noise_multiplier"
            text = "is given, but privacy.level is none; set it to client or example, or remove the key"
            yield Conflict((given, "privacy.level"), text)
        return
    if privacy.epsilon is None and privacy.noise_multiplier is None:
        text = f"is {privacy.level}, but nothing says how much noise; give privacy.epsilon or privacy.noise_multiplier"
        yield Conflict(("privacy.level",), text)
    elif not privacy.clip and privacy.noise_multiplier != 0:
        text = f"is 0, which is no limit, and noise hides only what is limited (privacy.level {privacy.level}); needs"
        yield Conflict(("privacy.clip", "privacy.level"), f"{text} a number above 0")
    if privacy.epsilon is not None and privacy.noise_multiplier == 0:
        text = f"is {privacy.epsilon:g}, but privacy.noise_multiplier is 0, which spends all there is; remove one"
        yield Conflict(("privacy.epsilon", "privacy.noise_multiplier"), text)
    if config.trainer.type != "mezotrainer" or config.federate.protocol != "scalars":
        text = f"is {privacy.level}, and what is made private are scalars; needs trainer.type: mezotrainer and"
        keys = ("privacy.level", "trainer.type", "federate.protocol")
        yield Conflict(keys, f"{text} federate.protocol: scalars")


def _clients(config: Config) -> Iterator[Conflict]:
    """A client's part is bounded by the clip alone: not by how many examples it counts."""
    federate = config.federate
    if config.privacy.level != "client":
        return
    yield from _groups(config, "privacy.level", "is client, which adds noise to a group's sum")
    if not federate.ignore_weight:
        text = "is False, but with privacy.level client no client may weigh more than another; needs True"
        yield Conflict(("federate.ignore_weight", "privacy.level"), text)
    if federate.aggregation != "mean":
        text = f"is {federate.aggregation}, but the noise of privacy.level client is for a sum; needs mean"
        yield Conflict(("federate.aggregation", "privacy.level"), text)


def _examples(config: Config) -> Iterator[Conflict]:
    if config.privacy.level != "example":
        return
    if config.train.zo.estimator != "two-point":
        text = f"is {config.train.zo.estimator}; privacy.level example clips the scalars of two-point"
        yield Conflict(("train.zo.estimator", "privacy.level"), f"{text}; needs that, or another level")
    if config.train.batch_or_epoch == "epoch":
        text = "is epoch, but privacy.level example draws each batch at random from all examples; needs batch"
        yield Conflict(("train.batch_or_epoch", "privacy.level"), text)


def _losses(config: Config) -> Iterator[Conflict]:
    """A loss is a client's own number, which no noise hides: private runs do not send it."""
    level, train = config.privacy.level, config.train
    if level == "none":
        return
    if train.trust:
        text = f"is True, but it follows the train loss, which privacy.level {level} hides; needs False"
        yield Conflict(("train.trust", "privacy.level"), text)
    if config.is_automatic:
        text = f"is auto, which is measured on clients' examples without noise (privacy.level {level}); give a number"
        key = "train.optimizer.lr" if train.optimizer.lr == AUTO else "train.zo.eps"
        yield Conflict((key, "privacy.level"), text)
    if train.train_strategy in ("round-wise", "five-round"):
        text = f"is {train.train_strategy}, which follows the clients' losses, and privacy.level {level} hides them"
        yield Conflict(("train.train_strategy", "privacy.level"), f"{text}; needs another strategy")
