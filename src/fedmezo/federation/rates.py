"""The learning-rate strategies: the paper's five, and one in units of the scalars' own size.

The five are eta_i = eta_0 + alpha Phi_i (Ling et al., KDD 2024, section 5). With sampled clients a client's loss and
drift are those of the last round it took part in, and means and maxima run over the members of the cohort that have a
value; a client without one gets eta_0.

With `scale-free` every client has eta_0, and each of its scalars is divided by their running root mean square (MEAZO,
arXiv 2605.03869): a rate is then how far a step goes along a unit direction, whatever the loss, and one value suits
many models. Within a round a client carries the root mean square on by itself; between rounds the server takes the mean
over all clients that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fedmezo.records import Contribution, RoundRecord
from fedmezo.zo.arithmetic import round_coefficient
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.noise import SERVER, Purpose, Stream, uniform
from fedmezo.zo.replay import running_sizes

FROZEN = "frozen"
RANDOM = "random"
ROUND_WISE = "round-wise"
FIVE_ROUND = "five-round"
MODEL_DIFF = "model-diff"
SCALE_FREE = "scale-free"

LARGEST_LOSS = 1000.0
"""In nats per token: twenty times that of a model that knows nothing of a vocabulary of 2^64 tokens."""
WINDOW = 5
"""Rounds that `five-round` averages a client's loss over."""


@dataclass(frozen=True, slots=True)
class ClientHistory:
    """What the server remembers of a client for its rate, and to know what is usual of it."""

    losses: tuple[float, ...] = ()  # train losses of its last rounds, at most WINDOW, newest last
    drift: float | None = None  # D_i of its last round, in a model-diff run
    powers: tuple[float, ...] = ()  # mean squares of its scalars in its last rounds, at most WINDOW, newest last
    size: float = 0.0  # running size of its scalars after its last round, in a scale-free run


Histories = Mapping[int, ClientHistory]

Offsets: TypeAlias = Callable[[int, int, Sequence[int], Histories], Sequence[float]]
"""From (run seed, round, cohort, histories) to the offset Phi of each member of the cohort: a pure function."""


@dataclass(frozen=True, slots=True)
class RateStrategy:
    """How the server sets each client's learning rate.

    Args:
        name: `frozen`, `random`, `round-wise`, `five-round`, `model-diff` or `scale-free`.
        rate: eta_0.
        width: alpha, the largest distance of a rate from eta_0; smaller than eta_0.
        own: offsets Phi of a program's own, each from -1 to 1, instead of those that `name` stands for.
    """

    name: str
    rate: float
    width: float
    own: Offsets | None = None

    def __post_init__(self) -> None:
        if self.name not in _STRATEGIES:
            raise ValueError(f"strategy {self.name!r} is unknown; it is one of {', '.join(_STRATEGIES)}")
        lowest = self.rate if self.name in (FROZEN, SCALE_FREE) else self.rate - self.width
        if lowest <= 0:
            raise ValueError(f"the lowest rate, {lowest:g}, must be above 0 (rate {self.rate:g}, width {self.width:g})")


def client_rates(
    strategy: RateStrategy,
    seed: int,
    round_index: int,
    cohort: Sequence[int],
    histories: Histories,
    share: float = 1.0,
) -> tuple[float, ...]:
    """The learning rate of each member of the cohort, of 16 significant bits; `share` is the schedule's."""
    offsets = (strategy.own or _STRATEGIES[strategy.name])(seed, round_index, cohort, histories)
    return tuple(round_coefficient((strategy.rate + strategy.width * phi) * share) for phi in offsets)


def common_rate(strategy: RateStrategy, seed: int, round_index: int, share: float = 1.0) -> float:
    """The rate of all clients of a round, where their sums are all that is known: `frozen`, or one `random` draw."""
    (rate,) = client_rates(strategy, seed, round_index, (SERVER,), {}, share)
    return rate


def known_size(histories: Histories) -> float:
    """The root mean square of the clients' sizes of scalars, of 16 significant bits; 0 if none is known."""
    squares = [history.size**2 for history in histories.values() if history.size]
    return round_coefficient(math.sqrt(sum(squares) / len(squares))) if squares else 0.0


def remember(histories: Histories, record: RoundRecord, estimator: Estimator | None) -> dict[int, ClientHistory]:
    """The histories after a round; `estimator` is that of zeroth-order clients."""
    after = dict(histories)
    for part in record.contributions:
        known = after.get(part.client, ClientHistory())
        loss = min(part.train_loss, LARGEST_LOSS)  # a journal may be older than the bound
        losses = (*known.losses, loss)[-WINDOW:]
        powers = (*known.powers, mean_square(part.scalars))[-WINDOW:] if part.scalars else ()
        size = _size_after(part, estimator)
        after[part.client] = replace(known, losses=losses, drift=part.drift, powers=powers, size=size)
    return after


def mean_square(scalars: Sequence[float]) -> float:
    """The mean of the squares; 0 of nothing."""
    return sum(g * g for g in scalars) / len(scalars) if scalars else 0.0


def _size_after(part: Contribution, estimator: Estimator | None) -> float:
    if estimator is None or not estimator.settings.scale_free or not part.scalars:
        return 0.0
    return running_sizes(part.size, part.scalars, estimator.directions)[-1]


def spread(values: Sequence[float | None]) -> list[float]:
    """Phi_i = (x_i - mean x) / max_j abs(x_j - mean x) over the values there are; 0 for the rest, or if all agree."""
    known = [value for value in values if value is not None]
    if not known:
        return [0.0] * len(values)
    mean = sum(known) / len(known)
    largest = max(abs(value - mean) for value in known)
    if largest == 0:
        return [0.0] * len(values)
    return [0.0 if value is None else (value - mean) / largest for value in values]


def _frozen(seed: int, round_index: int, cohort: Sequence[int], histories: Histories) -> list[float]:
    return [0.0] * len(cohort)


def _random(seed: int, round_index: int, cohort: Sequence[int], histories: Histories) -> list[float]:
    return [2 * uniform(Stream(seed, Purpose.RATE, round_index, client)) - 1 for client in cohort]


def _round_wise(seed: int, round_index: int, cohort: Sequence[int], histories: Histories) -> list[float]:
    return spread([h.losses[-1] if h.losses else None for h in _of(cohort, histories)])


def _five_round(seed: int, round_index: int, cohort: Sequence[int], histories: Histories) -> list[float]:
    return spread([sum(h.losses) / WINDOW if len(h.losses) == WINDOW else None for h in _of(cohort, histories)])


def _model_diff(seed: int, round_index: int, cohort: Sequence[int], histories: Histories) -> list[float]:
    return spread([h.drift for h in _of(cohort, histories)])


def _of(cohort: Sequence[int], histories: Histories) -> list[ClientHistory]:
    return [histories.get(client, ClientHistory()) for client in cohort]


_STRATEGIES: dict[str, Offsets] = {
    FROZEN: _frozen,
    RANDOM: _random,
    ROUND_WISE: _round_wise,
    FIVE_ROUND: _five_round,
    MODEL_DIFF: _model_diff,
    SCALE_FREE: _frozen,
}
