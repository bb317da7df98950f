"""Pictures of measurements about the loss itself: what calibrate and diagnose found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmezo.results.plots import BLUE, FAINT, GREEN, GREY, INK, VERMILION
from fedmezo.zo.calibration import Burst, GradientError
from fedmezo.zo.curvature import Spectrum
from fedmezo.zo.theory import RateBound


def draw_calibration(
    errors: Sequence[GradientError], bursts: Sequence[Burst], *, eps: float, present_eps: float, rate: float | None
) -> Figure:
    """Return the picture of a calibration: error of g against eps (left), loss against rounds at each rate (right).

    Args:
        errors: at eps in ascending order.
        bursts: in the order of their rates.
        eps: the recommended one.
        present_eps: of the configuration.
        rate: the recommended one, if any.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_errors(left, errors)
    left.axvline(eps, color=INK, lw=1.2, ls="-", label=f"recommended: {eps:.3g}")
    left.axvline(present_eps, color=GREY, lw=1.2, ls=":", label=f"configured: {present_eps:.3g}")
    _draw_bursts(right, bursts, rate)
    for axes in (left, right):
        _finish(axes)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_errors(axes: Axes, errors: Sequence[GradientError]) -> None:
    seen = [error for error in errors if error.signal > 0]
    eps = [error.eps for error in seen]
    axes.plot(eps, [_visible(e.noise / e.signal) for e in seen], color=BLUE, lw=1.2, ls="--", label="rounding noise")
    axes.plot(
        eps, [_visible(e.bias / e.signal) for e in seen], color=VERMILION, lw=1.2, ls="--", label="curvature bias"
    )
    axes.plot(eps, [_visible(e.relative) for e in seen], color=INK, lw=2.2, marker="o", ms=3.5, label="both")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Error of g in units of its signal", loc="left", fontsize=12, color=INK)
    axes.set_xlabel("eps")
    axes.set_ylabel("error / signal")


def _draw_bursts(axes: Axes, bursts: Sequence[Burst], rate: float | None) -> None:
    start = bursts[0].before
    held = [burst for burst in bursts if burst.diverged is None]
    shades = np.linspace(0.25, 1.0, max(1, len(held)))
    for burst in bursts:
        style: dict[str, Any]
        if burst.diverged is not None:
            style = {"color": FAINT, "ls": "--", "lw": 1.2, "label": f"{burst.rate:g}, diverged"}
        else:
            style = {"color": BLUE, "alpha": float(shades[held.index(burst)]), "label": f"{burst.rate:g}"}
            if burst.rate == rate:
                style |= {"color": GREEN, "alpha": 1.0, "lw": 2.6, "label": f"{burst.rate:g}, recommended"}
        axes.plot(*zip(*burst.points, strict=True), **style)
    lowest = min([start, *(loss for burst in held for _, loss in burst.points)])
    margin = 0.1 * (start - lowest) or 0.1 * start
    axes.set_ylim(lowest - margin, start + 4 * margin)
    axes.set_title("Loss against rounds, by rate", loc="left", fontsize=12, color=INK)
    axes.set_xlabel("round")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _visible(value: float) -> float:
    """What a logarithmic axis cannot show is left out."""
    return value if 0 < value < np.inf else np.nan


def _finish(axes: Axes) -> None:
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def draw_diagnosis(
    spectra: Sequence[Spectrum],
    rounds: Sequence[int],
    bounds: Sequence[RateBound],
    bounds_without_noise: Sequence[RateBound],
    rate: float,
) -> Figure:
    """Return the picture of a diagnosis: extent of the spectrum (left), the theorem's rate beside the run's (right).

    Args:
        spectra: one for each state.
        rounds: of the states.
        bounds: on the rate, a batch's noise counted as c_g.
        bounds_without_noise: the same with c_g = 1.
        rate: of the run.
    """
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(rounds))
    names = [f"round {at}" for at in rounds]
    _draw_ranks(left, spectra, places)
    for axes in (left, right):
        axes.set_xticks(places, names)
        axes.set_xlim(-0.6, len(rounds) - 0.4)
    low, high = [bound.value for bound in bounds], [bound.value for bound in bounds_without_noise]
    right.vlines(
        places, low, high, color=BLUE, lw=8, alpha=0.5, label="theorem's largest rate: all noise as c_g, to none"
    )
    right.plot(places, low, "_", color=BLUE, ms=14, mew=2.5)
    right.plot(places, high, "_", color=BLUE, ms=14, mew=2.5)
    right.axhline(rate, color=VERMILION, lw=1.8, label=f"the run's rate, {rate:g}")
    right.set_yscale("log")
    right.set_title("Rate", loc="left", fontsize=12, color=INK)
    for axes in (left, right):
        _finish(axes)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_ranks(axes: Axes, spectra: Sequence[Spectrum], places: np.ndarray) -> None:
    for shift, colour, label, traces in (
        (-0.2, BLUE, "trace / norm", [spectrum.trace for spectrum in spectra]),
        (0.2, GREEN, "sum of eigenvalues' sizes / norm", [spectrum.absolute_trace for spectrum in spectra]),
    ):
        ranks = [spectrum.per_norm(trace) for spectrum, trace in zip(spectra, traces, strict=True)]
        values, errors = [rank.value for rank in ranks], [rank.error for rank in ranks]
        axes.bar(places + shift, values, 0.36, yerr=errors, color=colour, alpha=0.8, capsize=4, label=label)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_title("Effective rank of the Hessian", loc="left", fontsize=12, color=INK)
