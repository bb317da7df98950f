"""The estimators by name."""

from __future__ import annotations

from collections.abc import Callable

from fedmezo.zo.estimators.one_sided import OneSided
from fedmezo.zo.estimators.per_example import PerExample
from fedmezo.zo.estimators.protocol import Estimator, Settings
from fedmezo.zo.estimators.two_point import TwoPoint

TWO_POINT = "two-point"
ONE_SIDED = "one-sided"
PER_EXAMPLE = "per-example"

_FAMILY: dict[str, Callable[[Settings, int], Estimator]] = {
    TWO_POINT: lambda settings, rows: TwoPoint(settings),
    ONE_SIDED: lambda settings, rows: OneSided(settings),
    PER_EXAMPLE: PerExample,
}


def make_estimator(name: str, settings: Settings, rows: int) -> Estimator:
    """The estimator of this name.

    Args:
        name: `two-point`, `one-sided` or `per-example`.
        settings: eps, queries, noise and clip.
        rows: examples of a batch.

    Raises:
        ValueError: the name is none of them, or there would be too many directions to a step.
    """
    if name not in _FAMILY:
        raise ValueError(f"estimator {name!r} is unknown; it is one of {', '.join(_FAMILY)}")
    return _FAMILY[name](settings, rows)
