"""From a configuration to the parts of a run that hide what clients have: how reports are summed, and by whom."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedmezo.config import Config
from fedmezo.errors import ConfigError
from fedmezo.federation.clients import ClientWork
from fedmezo.federation.round import Federation
from fedmezo.federation.sums import Coding
from fedmezo.privacy.examples import PrivateClients, PrivateTwoPoint
from fedmezo.privacy.extra import require_extra
from fedmezo.runs.budget import CLIENT, EXAMPLE
from fedmezo.runs.format import PrivacyLine
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.estimators.two_point import TwoPoint

if TYPE_CHECKING:
    from fedmezo.engines.secure import SecureSums
    from fedmezo.privacy.rehearsal import Rehearsal

TOLERATED = 0.49
"""Share of a group that may leave before its sum is lost."""
TOLERATED_UNDER_NOISE = 0.2
"""The same where the noise of those who leave is missed: the others make up for it, with 12 % more than needed."""


def hides_losses(config: Config) -> bool:
    """Whether clients do not tell their losses: these are numbers of their own, under no noise."""
    return config.privacy.level != "none" and bool(config.privacy.clip)


def hides_examples(config: Config) -> bool:
    """Whether each example is hidden by itself."""
    return hides_losses(config) and config.privacy.level == EXAMPLE


def private_estimator(config: Config, plain: Estimator) -> Estimator:
    """The estimator of clients that hide each example; any other as it is."""
    if not hides_examples(config):
        return plain
    assert isinstance(plain, TwoPoint), "the checks ask for it"
    return PrivateTwoPoint(
        plain, config.dataloader.batch_size, config.privacy.clip, config.privacy.noise_multiplier or 0.0
    )


def private_work(config: Config, work: ClientWork) -> ClientWork:
    """Client work that tells of noisy scalars alone, where each example is hidden."""
    if not hides_examples(config):
        return work
    return PrivateClients(work, config.train.local_update_steps * config.dataloader.batch_size)


def tolerated(config: Config) -> float:
    """Which share of a group may leave."""
    return TOLERATED_UNDER_NOISE if config.privacy.level == CLIENT else TOLERATED


def with_coding(config: Config, federation: Federation) -> Federation:
    """The server's choices with what clips clients and adds noise to their sums, where the run hides clients.

    Raises:
        ConfigError: the extra is not installed, or clip and noise do not fit whole numbers.
    """
    privacy = config.privacy
    if privacy.level != CLIENT or not privacy.clip:
        return federation
    require_extra("privacy.level")
    rules = federation.rules
    assert rules.estimator is not None, "the checks ask for zeroth-order clients"
    assert rules.steps is not None, "which all take as many steps"
    scalars, noise = rules.steps * rules.estimator.directions, privacy.noise_multiplier or 0.0
    coding = noisy_coding(scalars, federation.cohort_size, federation.groups, privacy.clip, noise)
    return replace(federation, coding=coding)


def noisy_coding(scalars: int, clients: int, groups: int, clip: float, noise_multiplier: float) -> Coding:
    """How the scalars of clients are clipped and summed under noise, server and sites alike.

    Raises:
        ConfigError: clip and noise do not fit whole numbers.
    """
    from fedmezo.privacy.clipping import clipped_sums
    from fedmezo.privacy.keys import fewest_left

    fewest = fewest_left(clients // groups, TOLERATED_UNDER_NOISE)
    try:
        return clipped_sums(scalars, clients, fewest, clip, noise_multiplier)
    except ValueError as error:
        raise ConfigError(f"privacy.noise_multiplier is {noise_multiplier:g}: {error}") from error


def make_rehearsal(config: Config, federation: Federation) -> Rehearsal | None:
    """All parties of the secure sums of a simulation; None where there are none.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not config.federate.secure_aggregation:
        return None
    require_extra("federate.secure_aggregation")
    from fedmezo.privacy.rehearsal import Rehearsal

    return Rehearsal(federation.codes(), tolerated(config))


def make_secure_sums(config: Config, federation: Federation) -> SecureSums | None:
    """The server's side of the secure sums of clients elsewhere; None where there are none.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not config.federate.secure_aggregation:
        return None
    require_extra("federate.secure_aggregation")
    from fedmezo.engines.secure import SecureSums

    return SecureSums(federation.codes(), tolerated(config))


def privacy_line(config: Config) -> PrivacyLine | None:
    """The noise of a run as its journal has it."""
    privacy = config.privacy
    if privacy.level == "none":
        return None
    return PrivacyLine(
        level=privacy.level,
        clip=privacy.clip,
        noise_multiplier=privacy.noise_multiplier or 0.0,
        delta=privacy.delta,
        epsilon=privacy.epsilon,
    )
