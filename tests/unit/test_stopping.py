"""Early stopping against histories worked out by hand."""

import pytest

from fedmezo.runs.stopping import EarlyStopping


@pytest.mark.parametrize(
    ("patience", "delta", "mode", "losses", "stops"),
    [
        (0, 0.0, "best", [1.0, 2.0, 3.0, 4.0], False),
        (2, 0.0, "best", [1.0, 2.0], False),
        (2, 0.0, "best", [1.0, 2.0, 3.0], True),
        (2, 0.0, "best", [1.0, 2.0, 0.9], False),
        (2, 0.0, "best", [3.0, 1.0, 2.0, 2.0], True),
        (2, 0.2, "best", [1.0, 0.9, 0.85], True),
        (2, 0.2, "best", [1.0, 0.9, 0.75], False),
        (2, 0.0, "mean", [3.0, 1.0, 1.9, 2.5], False),
        (2, 0.0, "mean", [3.0, 1.0, 2.1, 2.5], True),
        (1, 0.0, "best", [1.0, float("nan")], True),
    ],
)
def test_histories(patience: int, delta: float, mode: str, losses: list[float], stops: bool) -> None:
    assert EarlyStopping(patience, delta, mode).should_stop(losses) is stops
