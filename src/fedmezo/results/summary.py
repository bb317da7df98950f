"""What a run amounts to, in numbers (from its metrics) and in words that people read. Decimal units: 1 kB is 1000 B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmezo.results.metrics import Metric, is_accuracy

PART_OF_LOSS = {"val_loss": "validation loss", "test_loss": "test loss"}
PART_OF_ACCURACY = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
WHOLE = {"bytes_full_adapters": "whole adapters", "bytes_full_models": "whole models"}
"""What a round would have sent without scalars, by the metric that says how much; a run has one of them."""


@dataclass(frozen=True, slots=True)
class Evaluations:
    """The losses over all clients on one part of the data, in nats per token, by round in ascending order.

    Or, where the name says so, the accuracies.
    """

    name: str  # val_loss, test_accuracy, ...
    rounds: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def before(self) -> float:
        """First evaluation, as a rule that of the model before training."""
        return self.losses[0]

    @property
    def after(self) -> float:
        """Last evaluation."""
        return self.losses[-1]

    @property
    def best(self) -> tuple[int, float]:
        """Round and value of the lowest loss or highest accuracy, the earliest of equals."""
        sign = -1 if is_accuracy(self.name) else 1
        at = min(range(len(self.losses)), key=lambda index: _nan_last(sign * self.losses[index]))
        return self.rounds[at], self.losses[at]


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of a run. A figure that was never measured is None."""

    rounds: int
    evaluations: tuple[Evaluations, ...]  # of losses; the one that decides the best round first
    bytes_up: int | None
    bytes_down: int | None
    bytes_full_adapters: int | None  # both ways, had every round sent whole adapters
    forward_passes: int | None
    peak_memory: int | None  # bytes
    seconds: float | None
    bytes_full_models: int | None = None  # the same of a run without an adapter
    accuracies: tuple[Evaluations, ...] = ()  # in the same order
    epsilon: float | None = None  # of privacy, spent
    clipped: float | None = None  # mean share of the clients that were clipped, as far as noise lets it be seen
    best_key: str = "val_loss"

    @property
    def decides(self) -> Evaluations | None:
        """What decides the best round, if anything was evaluated."""
        first = self.accuracies if is_accuracy(self.best_key) and self.accuracies else self.evaluations
        return first[0] if first else None

    def loss(self, name: str) -> Evaluations | None:
        """Return the evaluations of val_loss or test_loss, if there are any."""
        return next((part for part in self.evaluations if part.name == name), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a run's final table."""

    heading: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of several runs, one row each; the first column says what differs between them."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summarise(metrics: Sequence[Metric], best_key: str = "val_loss") -> Summary:
    """Add up a run's metrics; `best_key` names the metric that decides the best round, where it was measured."""
    losses, accuracies = (
        sorted(
            (part for name in names if (part := evaluations(metrics, name)).rounds),
            key=lambda part: part.name != best_key,
        )
        for names in (PART_OF_LOSS, PART_OF_ACCURACY)
    )
    return Summary(
        rounds=max((metric.round for metric in metrics), default=0),
        evaluations=tuple(losses),
        bytes_up=_total(metrics, "bytes_up"),
        bytes_down=_total(metrics, "bytes_down"),
        bytes_full_adapters=_total(metrics, "bytes_full_adapters"),
        bytes_full_models=_total(metrics, "bytes_full_models"),
        forward_passes=_total(metrics, "forward_passes"),
        peak_memory=max((round(value) for _, value in series(metrics, "peak_memory")), default=None),
        seconds=sum(value for _, value in timed) if (timed := series(metrics, "seconds")) else None,
        accuracies=tuple(accuracies),
        epsilon=max((value for _, value in series(metrics, "epsilon")), default=None),
        clipped=_mean([value for _, value in series(metrics, "clipped_share")]),
        best_key=best_key,
    )


def evaluations(metrics: Sequence[Metric], name: str) -> Evaluations:
    """Return the losses over all clients of one name; without rounds where there are none."""
    points = series(metrics, name)
    return Evaluations(name, tuple(at for at, _ in points), tuple(value for _, value in points))


def series(metrics: Sequence[Metric], name: str, client: int | None = None) -> list[tuple[int, float]]:
    """Return (round, value) of one name for one client or, with None, over all, in ascending order of rounds."""
    found = (m for m in metrics if m.name == name and m.client == client and m.group is None)
    return sorted({m.round: m.value for m in found}.items())


def summary_rows(summary: Summary) -> list[Row]:
    """Return what the final table of a run shows."""
    rows = [Row("rounds", f"{summary.rounds:,}")]
    rows += [_loss_row(part) for part in summary.evaluations]
    rows += [_accuracy_row(part) for part in summary.accuracies]
    if summary.decides:
        best_round, value = summary.decides.best
        name = summary.decides.name
        what = f"{PART_OF_ACCURACY[name]} {value:.1%}" if is_accuracy(name) else f"{PART_OF_LOSS[name]} {value:.4f}"
        rows.append(Row("best round", f"{best_round:,}", what))
    measured = (
        ("bytes up", summary.bytes_up, human_bytes, ""),
        ("bytes down", summary.bytes_down, human_bytes, ""),
        *(
            (f"{what} would take", full := getattr(summary, name), human_bytes, _times(summary, full))
            for name, what in WHOLE.items()
        ),
        ("forward passes", summary.forward_passes, "{:,}".format, ""),
        ("epsilon spent", summary.epsilon, "{:.3g}".format, ""),
        ("clients clipped", summary.clipped, "{:.0%}".format, "as far as noise lets it be seen"),
        ("peak memory", summary.peak_memory, human_bytes, ""),
        ("time", summary.seconds, human_seconds, ""),
    )
    return rows + [Row(heading, text(value), remark) for heading, value, text, remark in measured if value is not None]


def human_bytes(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit: 67 B, 1.23 kB, 85.1 MB."""
    units = ("B", "kB", "MB", "GB", "TB")
    unit = 0
    while count >= 999.5 and unit < len(units) - 1:
        count /= 1000
        unit += 1
    decimals = 0 if unit == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{decimals}f} {units[unit]}"


def human_seconds(seconds: float) -> str:
    """Return a duration: 9.3 s, 2 min 05 s, 1 h 02 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


DIVERGED = 1.5
"""How many times its lowest value a loss must end at to be called diverged, whatever it began at."""


def _loss_row(part: Evaluations) -> Row:
    return Row(PART_OF_LOSS[part.name], f"{part.before:.4f} -> {part.after:.4f}", _change(part))


def _change(part: Evaluations) -> str:
    """By how much a loss has changed; a share of the first would hide that it rose again after it had fallen."""
    if not math.isfinite(part.after):
        return "diverged: no longer finite"
    best_round, best = part.best
    if 0 < best < math.inf and part.after >= DIVERGED * best:
        return f"diverged: it was {best:.4f} after round {best_round:,}"
    usable = 0 < part.before < math.inf
    return f"{(part.after / part.before - 1) * 100:+.1f} %" if usable else ""


def _accuracy_row(part: Evaluations) -> Row:
    change = f"{(part.after - part.before) * 100:+.1f} points"
    return Row(PART_OF_ACCURACY[part.name], f"{part.before:.1%} -> {part.after:.1%}", change)


def _times(summary: Summary, full: int | None) -> str:
    sent = (summary.bytes_up or 0) + (summary.bytes_down or 0)
    if not sent or not full:
        return ""
    ratio = full / sent
    return f"{ratio:,.0f} times as much" if ratio >= 9.5 else f"{ratio:.1f} times as much"


def _mean(values: Sequence[float]) -> float | None:
    return min(1.0, max(0.0, sum(values) / len(values))) if values else None


def _total(metrics: Sequence[Metric], name: str) -> int | None:
    points = series(metrics, name)
    return round(sum(value for _, value in points)) if points else None


def _nan_last(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
