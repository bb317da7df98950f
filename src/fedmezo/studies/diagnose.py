"""The theory on a run: curvature, gradient noise, heterogeneity of its clients, and the rate that the theorem allows.

Back-propagates through a handful of batches, before the first round and after the last, dropout off, always in float32:
curvature is a property of the loss, and half precision would bury it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedmezo.atomic import replacing
from fedmezo.config import Config, load_config
from fedmezo.data.shard import Shard
from fedmezo.errors import RunError
from fedmezo.models.hardware import DTYPES
from fedmezo.models.label_loss import PlainPath
from fedmezo.models.language_model import LanguageModel
from fedmezo.records import Batch
from fedmezo.results.console import work_progress
from fedmezo.results.plots import png
from fedmezo.results.plots_theory import draw_diagnosis
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.runs.directory import CONFIG_FILE, write_numbers
from fedmezo.runs.journal import JOURNAL_FILE, read_journal
from fedmezo.runs.places import NOT_MOVED, Moved
from fedmezo.runs.resume import restore
from fedmezo.zo.curvature import Estimate, Gradient, Spectrum, choose_step, product_by_differences, spectrum
from fedmezo.zo.noise import MAX_ROUNDS, MAX_SEED, RADEMACHER, SERVER, Noise, Purpose, Stream
from fedmezo.zo.theory import GradientMoments, RateBound, gradient_moments, rate_bound

MAX_CLIENTS = 16
BATCHES_PER_CLIENT = 64
GRADIENT_BYTES = 1 << 30
"""Of all gradients that are held at once; a large adapter gets fewer batches."""

HESSIAN_EXAMPLES = 24
TOKENS_PER_PIECE = 1024
"""Padded tokens that are back-propagated through together."""
RANDOM_VECTORS, LANCZOS_STEPS = 8, 12
UNSURE = 0.05
"""Relative error of a Hessian product above which the user is told."""

SOME_GROUPS = 8
"""Of directions: few numbers to send, and most of what directions of their own give."""

PICTURE_FILE, NUMBERS_FILE = "diagnosis.png", "diagnosis.json"
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found at one theta."""

    round: int
    spectrum: Spectrum
    product_error: float  # of a Hessian product, relative
    moments: GradientMoments
    bound: RateBound  # all of a batch's variance counted as c_g
    bound_without_noise: RateBound  # none of it: c_g = 1
    sharing: Mapping[int, Estimate] = field(default_factory=dict)  # what direction groups cost, by their number


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What is looked at: a loss by its gradients, and batches of a run's clients."""

    gradient: Callable[[Tensor, Batch], Tensor]  # of the mean loss over a batch at theta (d,), dropout off
    client_batches: tuple[tuple[Batch, ...], ...]  # for the noise: as many of each client, of the run's batch size
    pieces: tuple[Batch, ...]  # for the curvature
    seed: int  # of the random vectors
    cohort_size: int
    local_steps: int
    groups: tuple[int, ...] = ()  # numbers of direction groups whose cost is asked for

    def mean_gradient(self, theta: Tensor) -> Tensor:
        """Gradient (d,) of the loss whose curvature is looked at: the mean over its examples."""
        total = torch.zeros_like(theta)
        for piece in self.pieces:
            total += self.gradient(theta, piece) * piece.num_examples
        return total / sum(piece.num_examples for piece in self.pieces)


def diagnose(folder: Path, moved: Moved = NOT_MOVED) -> int:
    """Measure a run, print what was found and draw it into the run's folder; returns the exit code.

    Args:
        folder: the run's folder.
        moved: what is not where the run had it.

    Raises:
        FedMeZOError: whatever a user can act on; RunError for a folder that holds no run.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise RunError(f"{path}: no such file; is {folder} the folder of a run?")
    config = in_float32(moved.applied(load_config(path).config))
    console = Console()
    bench, states = set_up(folder, config, console)
    found = [measure(bench, at, theta, console) for at, theta in states]
    document = {"version": 1, "rate": config.train.optimizer.rate, "states": [asdict(state) for state in found]}
    write_numbers(folder / NUMBERS_FILE, document)
    with replacing(folder / PICTURE_FILE) as file:
        file.write(png(draw_diagnosis([item.spectrum for item in found], *_rates(found, config))))
    show(console, config.train.optimizer.rate, bench, found)
    console.print(f"Picture and numbers are in {folder / PICTURE_FILE} and {NUMBERS_FILE}", soft_wrap=True)
    return 0


def in_float32(config: Config) -> Config:
    """The configuration with a base in float32, not quantised, and in memory, since gradients are to be had."""
    model = config.model.model_copy(
        update={"dtype": "float32", "weights": "float32", "quantization": None, "streamed": False}
    )
    return config.model_copy(update={"model": model})


def set_up(folder: Path, config: Config, console: Console) -> tuple[Bench, list[tuple[int, Tensor]]]:
    """Load the run's model and data; returns also the rounds to look at, with their theta (d,)."""
    tuned = assemble.load_model(config)
    holdings = assemble.load_holdings(config, tuned.tokenizer, console)
    restored = config.federate.restore_from
    initial = tuned.model.read(Path(restored)).cpu() if restored else tuned.theta
    journal = read_journal(folder / JOURNAL_FILE)
    initial = initial.to(DTYPES[journal.header.weights])
    states = [(0, initial)]
    if journal.next_round:
        state = restore(folder, journal, assemble.make_federation(config, tuned.model), initial.clone())
        states.append((state.round, state.theta))
    on_device = [(index, theta.to(tuned.model.device, torch.float32)) for index, theta in states]
    return make_bench(config, tuned, holdings), on_device


def make_bench(config: Config, tuned: TunedModel, holdings: Holdings) -> Bench:
    """Choose the batches: other draws than the run's own, from up to `MAX_CLIENTS` of its clients."""
    other = config.model_copy(update={"seed": config.seed ^ MAX_SEED})
    shards = assemble.make_shards(other, holdings, tuned.model.device)
    able = [shard for shard in shards.values() if shard.num_examples]
    chosen = able[:: -(-len(able) // MAX_CLIENTS)]
    fitting = GRADIENT_BYTES // (4 * tuned.model.segments[-1].stop * len(chosen))
    count = max(3, min(BATCHES_PER_CLIENT, fitting))
    share = -(-HESSIAN_EXAMPLES // len(chosen))
    rows = np.concatenate([shard.indices[:share] for shard in chosen])
    lengths = holdings.dataset.lengths
    pieces = [holdings.dataset.batch(some, tuned.model.device) for some in _pieces(rows, lengths)]
    return Bench(
        gradient=gradient_of(tuned.model),
        client_batches=tuple(tuple(_draw(shard, count)) for shard in chosen),
        pieces=tuple(pieces),
        seed=other.seed,
        cohort_size=config.federate.cohort_size,
        local_steps=max(shard.num_batches for shard in able),
        groups=_groups_of_interest(config, len(chosen)),
    )


def _groups_of_interest(config: Config, clients: int) -> tuple[int, ...]:
    """The run's own number of direction groups, one and some; none where there are no two clients to compare."""
    cohort = config.federate.cohort_size
    wanted = {1, SOME_GROUPS, config.federate.direction_groups}
    return tuple(sorted(groups for groups in wanted if 0 < groups < cohort)) if clients > 1 else ()


def gradient_of(model: LanguageModel) -> Callable[[Tensor, Batch], Tensor]:
    """The gradient (d,) of the mean loss over a batch's label tokens at theta (d,), dropout off."""
    path = PlainPath(model.network)

    def gradient(theta: Tensor, batch: Batch) -> Tensor:
        model.load(theta)
        parts = torch.autograd.grad(path(batch).mean(), model.parameters())
        return torch.cat([part.flatten() for part in parts])

    return gradient


def measure(bench: Bench, at: int, theta: Tensor, console: Console) -> Diagnosis:
    """Look at the loss around theta (d,), the state before round `at`."""
    with work_progress(console, f"round {at}: gradients") as progress:
        moments = gradient_moments(_gram(bench, theta, progress))
    with work_progress(console, f"round {at}: curvature") as progress:
        found, error = _spectrum(bench, theta, progress)
    bound, without_noise = (
        rate_bound(
            smoothness=found.norm,
            noise_factor=factor,
            dimension=len(theta),
            clients=bench.cohort_size,
            steps=bench.local_steps,
        )
        for factor in (max(1.0, moments.noise_factor), 1.0)
    )
    sharing = {groups: moments.sharing_cost(bench.cohort_size / groups) for groups in bench.groups}
    return Diagnosis(at, found, error, moments, bound, without_noise, sharing)


def _gram(bench: Bench, theta: Tensor, progress: Progress) -> Tensor:
    """Inner products of all gradients, (N, m, N, m) float64."""
    clients, count = len(bench.client_batches), len(bench.client_batches[0])
    rows = []
    for batch in (batch for batches in bench.client_batches for batch in batches):
        rows.append(bench.gradient(theta, batch))
        progress(len(rows), clients * count)
    gradients = torch.stack(rows)  # (N m, d)
    return (gradients @ gradients.T).double().cpu().view(clients, count, clients, count)


def _spectrum(bench: Bench, theta: Tensor, progress: Progress) -> tuple[Spectrum, float]:
    """The spectrum of the Hessian, and the relative error of a product with it."""
    d = len(theta)
    streams = [Stream(bench.seed, Purpose.DIRECTION, MAX_ROUNDS - 1, SERVER, i) for i in range(RANDOM_VECTORS)]
    starts = Noise(RADEMACHER).directions(streams, 0, d, theta.device).float()
    step, error = choose_step(bench.mean_gradient, theta, starts[0])
    counted = _counted(bench.mean_gradient, progress, 2 * RANDOM_VECTORS * min(LANCZOS_STEPS, d))
    return spectrum(product_by_differences(counted, theta, step), list(starts), LANCZOS_STEPS), error


def _counted(gradient: Gradient, progress: Progress, total: int) -> Gradient:
    done = 0

    def counted(theta: Tensor) -> Tensor:
        nonlocal done
        done += 1
        progress(done, total)
        return gradient(theta)

    return counted


def _draw(shard: Shard, count: int) -> Iterator[Batch]:
    """Batches of the size that the run uses."""
    drawn = 0
    for back in range(count):
        for batch in shard.batches(MAX_ROUNDS - 1 - back):
            if drawn == count:
                return
            drawn += 1
            yield batch


def _pieces(rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Examples of similar length together, up to `TOKENS_PER_PIECE`."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    start = 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or lengths[ordered[stop]] * (stop + 1 - start) > TOKENS_PER_PIECE:
            yield ordered[start:stop]
            start = stop


def _rates(found: Sequence[Diagnosis], config: Config) -> tuple[list[int], list[RateBound], list[RateBound], float]:
    rounds = [item.round for item in found]
    bounds = [item.bound for item in found]
    return rounds, bounds, [item.bound_without_noise for item in found], config.train.optimizer.rate


def show(console: Console, rate: float, bench: Bench, found: Sequence[Diagnosis]) -> None:
    """Print the table, and what it says about the rate that was used."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for item in found:
        table.add_column(f"before round {item.round}" if item.round else "before training", justify="right")
    for heading, cells in rows(found):
        table.add_row(heading, *cells)
    clients, count = len(bench.client_batches), len(bench.client_batches[0])
    examples = sum(piece.num_examples for piece in bench.pieces)
    console.print(f"Curvature of {examples} examples, gradients of {count} batches of {clients} clients", style="bold")
    console.print(table)
    console.print(rate_in_words(found, rate), highlight=False, soft_wrap=True)
    for item in found:
        if item.product_error > UNSURE:
            text = f"notice: products with the Hessian at round {item.round} are right to {item.product_error:.0%} only"
            console.print(text, highlight=False)


def rows(found: Sequence[Diagnosis]) -> list[tuple[str, list[str]]]:
    """The table's rows: a heading, and a cell for each state."""
    cells: dict[str, Callable[[Diagnosis], str]] = {
        "trace of the Hessian": lambda item: str(item.spectrum.trace),
        "its norm, largest size of an eigenvalue (L)": lambda item: _with_error(
            item.spectrum.norm, item.spectrum.norm_error
        ),
        "largest, smallest eigenvalue": lambda item: f"{item.spectrum.largest:.3g}, {item.spectrum.smallest:.3g}",
        "effective rank, trace / norm": lambda item: str(item.spectrum.effective_rank),
        "the same of the eigenvalues' sizes": lambda item: str(item.spectrum.per_norm(item.spectrum.absolute_trace)),
        "error of a Hessian product": lambda item: f"{item.product_error:.1g}",
        "|f|^2, all clients' gradient": lambda item: str(item.moments.global_square),
        "|f_i|^2, mean of a client's": lambda item: str(item.moments.client_square),
        "|G|^2, mean of a batch's": lambda item: str(item.moments.batch_square),
        "sigma_g^2, or c_g": lambda item: f"{item.moments.noise:.3g}, or {item.moments.noise_factor:.3g}",
        "sigma_h^2, or c_h": lambda item: (
            f"{item.moments.heterogeneity:.3g}, or {item.moments.heterogeneity_factor:.3g}"
        ),
        "theorem's largest rate": lambda item: f"{item.bound.value:.2g}, from {item.bound.binding}",
        "the same with c_g = 1": lambda item: (
            f"{item.bound_without_noise.value:.2g}, from {item.bound_without_noise.binding}"
        ),
    }
    if found[0].sharing:
        cells["rho, correlation of two clients' scalars"] = lambda item: str(item.moments.correlation)
    for groups in found[0].sharing:
        cells[f"what direction_groups: {groups} costs, 1 + (B - 1) rho"] = partial(_cost_of, groups)
    return [(heading, [cell(item) for item in found]) for heading, cell in cells.items()]


def _cost_of(groups: int, item: Diagnosis) -> str:
    return str(item.sharing[groups])


def rate_in_words(found: Sequence[Diagnosis], rate: float) -> str:
    """The rate that was used, beside the theorem's."""
    allowed = min(item.bound_without_noise.value for item in found)
    if rate <= min(item.bound.value for item in found):
        return f"The run's rate {rate:g} fulfils the theorem's condition with the constants estimated here."
    if rate <= allowed:
        return f"The run's rate {rate:g} fulfils the theorem's condition only if a batch's noise counts as sigma_g."
    return (
        f"The run's rate {rate:g} is {rate / allowed:.2g} times what the theorem allows with the constants estimated "
        "here: the theorem does not cover the run, which says nothing against it (a condition that suffices)."
    )


def _with_error(value: float, error: float) -> str:
    return str(Estimate(value, error))
