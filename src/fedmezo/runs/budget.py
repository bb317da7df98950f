"""What a private run may spend and has spent: epsilon, from its noise and from how often anybody took part.

It follows from the configuration, from who takes part in which round, and for single examples from how few of them a
client has. So a resumed run knows what it had spent, and a run knows before a round what that will cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmezo.config import Config
from fedmezo.errors import ConfigError
from fedmezo.federation.round import Federation, cohort_of
from fedmezo.privacy.extra import require_extra

if TYPE_CHECKING:  # opacus takes seconds to import
    from fedmezo.privacy.accountant import Accountant

NONE, CLIENT, EXAMPLE = "none", "client", "example"


@dataclass(slots=True, eq=False)
class Participation:
    """In how many of the first rounds the busiest client has taken part.

    Args:
        federation: the server's choices.
        by_plan: whether the cohorts are those of the plan; else anybody may have taken part in every round.
    """

    federation: Federation
    by_plan: bool
    _counts: Counter[int] = field(default_factory=Counter)
    _busiest: list[int] = field(default_factory=lambda: [0])

    def busiest(self, rounds: int) -> int:
        """Rounds that the busiest client has taken part in, of so many."""
        if not self.by_plan:
            return rounds
        while len(self._busiest) <= rounds:
            self._counts.update(cohort_of(self.federation, len(self._busiest) - 1))
            self._busiest.append(max(self._counts.values()))
        return self._busiest[rounds]


@dataclass(slots=True, eq=False)
class Budget:
    """The epsilon of a run.

    Args:
        accountant: of one who takes part in every release.
        participation: of the clients.
        releases: that a client makes in a round.
        limit: epsilon that may be spent; None for no limit.
    """

    accountant: Accountant
    participation: Participation
    releases: int
    limit: float | None
    _known: dict[int, float] = field(default_factory=dict)

    def spent(self, rounds: int) -> float:
        """Epsilon after so many rounds."""
        releases = self.participation.busiest(rounds) * self.releases
        if releases not in self._known:
            self._known[releases] = self.accountant.epsilon(releases)
        return self._known[releases]

    def allows(self, rounds: int) -> bool:
        """Whether so many rounds stay within the limit."""
        return self.limit is None or self.spent(rounds) <= self.limit


def with_noise(config: Config, federation: Federation, held: Sequence[int], *, by_plan: bool) -> Config:
    """The configuration with the noise multiplier that its epsilon stands for, where it gives none.

    Args:
        config: of the run.
        federation: the server's choices.
        held: training examples of each client, where they are known here.
        by_plan: see `Participation`.

    Raises:
        ConfigError: the noise cannot be known here, or none is enough; or the extra is not installed.
    """
    privacy = config.privacy
    if privacy.level == NONE or privacy.noise_multiplier is not None:
        return config
    assert privacy.epsilon is not None, "the checks ask for one of the two"
    require_extra("privacy.level")
    from fedmezo.privacy.accountant import noise_for

    rounds = Participation(federation, by_plan).busiest(config.federate.total_round_num)
    found = noise_for(
        privacy.epsilon, privacy.delta, rounds * _releases(config), sample_rate=_sample_rate(config, held)
    )
    return config.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": found})})


def make_budget(config: Config, federation: Federation, held: Sequence[int], *, by_plan: bool) -> Budget | None:
    """The run's budget, its noise being settled; None where nothing is hidden or no noise hides it.

    Raises:
        ConfigError: the first round would spend more than all.
    """
    privacy = config.privacy
    if privacy.level == NONE or not privacy.noise_multiplier:
        return None
    require_extra("privacy.level")
    from fedmezo.privacy.accountant import Accountant

    accountant = Accountant(privacy.noise_multiplier, privacy.delta, _sample_rate(config, held))
    budget = Budget(accountant, Participation(federation, by_plan), _releases(config), privacy.epsilon)
    if not budget.allows(1):
        raise ConfigError(
            f"privacy.noise_multiplier is {privacy.noise_multiplier:g}, with which the first round alone spends an "
            f"epsilon of {budget.spent(1):.3g}, more than privacy.epsilon {privacy.epsilon:g}; needs more noise"
        )
    return budget


def _releases(config: Config) -> int:
    """A client tells of its part once in a round; of an example's once in each step."""
    return config.train.local_update_steps if config.privacy.level == EXAMPLE else 1


def _sample_rate(config: Config, held: Sequence[int]) -> float:
    """The probability with which an example of the client with the fewest is in a batch; 1 for whole clients."""
    if config.privacy.level != EXAMPLE:
        return 1.0
    fewest = min((count for count in held if count), default=0)
    if not fewest:
        raise ConfigError(
            "privacy.level is example, and this server does not know how many examples its sites hold, so neither what "
            "a step spends: simulate it, or hide whole clients with privacy.level: client"
        )
    return min(1.0, config.dataloader.batch_size / fewest)
