"""Estimators: the losses they ask for, the scalars that follow, and the moves these lead to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.records import Batch, ClientTask
from fedmezo.zo.arithmetic import round_coefficient, round_scalar
from fedmezo.zo.estimators.family import make_estimator
from fedmezo.zo.estimators.one_sided import OneSided
from fedmezo.zo.estimators.per_example import PerExample
from fedmezo.zo.estimators.protocol import Estimator, Settings
from fedmezo.zo.noise import Noise
from fedmezo.zo.replay import Address, Pace, apply_
from tests.toy import SIZE, Quadratic, ToyData, toy_batch, two_point

NAMES = ["two-point", "one-sided", "per-example"]
ADDRESS = Address(3, 4, 5)
BATCH = toy_batch(7, 11, 13)


def estimator(name: str, eps: float = 1e-2, queries: int = 2, noise: str = "gaussian", clip: float = 0.0) -> Estimator:
    return make_estimator(name, Settings(eps, queries, Noise(noise), clip), rows=BATCH.num_examples)


def losses_of(chosen: Estimator, loss: Callable[[Tensor, Batch], Tensor], theta: Tensor, step: int = 0) -> list[float]:
    """The losses of a step's probes, in float64."""
    losses = []
    for probe in chosen.probes(ADDRESS, step, BATCH):
        z = torch.zeros(len(theta)).double()
        if probe.stream is not None:
            z = chosen.settings.noise.directions([probe.stream], 0, len(theta))[0].double()
        losses.append(float(loss(theta.double() + probe.amount * z, probe.batch)))
    return losses


def scalars_of(chosen: Estimator, losses: Sequence[float]) -> tuple[float, ...]:
    scalars = chosen.scalars(losses)
    assert scalars is not None
    return scalars


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_follow_the_gradient(name: str, noise: str) -> None:
    """The mean move of many steps points down the gradient of the batch, whatever the estimator."""
    model, theta, steps = Quadratic(), torch.linspace(-1, 1, SIZE), 3000
    chosen = estimator(name, eps=1e-4, noise=noise)
    moved = torch.zeros(SIZE)
    for step in range(steps):
        scalars = scalars_of(chosen, losses_of(chosen, model.loss, theta, step))
        moves = chosen.moves(Pace(1.0), [0.0] * (chosen.directions * step) + list(scalars), ADDRESS, from_step=step)
        apply_(moved, moves, chosen.settings.noise)
    point = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(point, BATCH), point)
    assert float(torch.nn.functional.cosine_similarity(-moved, gradient, dim=0)) > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_every_step_has_as_many_scalars_and_costs_what_it_says(name: str) -> None:
    chosen = estimator(name)
    probes = chosen.probes(ADDRESS, 0, BATCH)
    assert len({probe.stream for probe in probes} - {None}) == chosen.directions
    assert sum(probe.batch.num_examples for probe in probes) == chosen.passes * BATCH.num_examples
    assert len(probes) == chosen.losses_per_step
    assert len(scalars_of(chosen, [1.0] * len(probes))) == chosen.directions
    smaller = chosen.probes(ADDRESS, 0, toy_batch(7))  # the last batch of a pass over the data
    assert len({probe.stream for probe in smaller} - {None}) == chosen.directions


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_gives_nothing(name: str, bad: float) -> None:
    chosen = estimator(name)
    losses = [1.0] * (len(chosen.probes(ADDRESS, 0, BATCH)) - 1)
    assert chosen.scalars([*losses, bad]) is None


@pytest.mark.parametrize("name", NAMES)
def test_scalars_are_bfloat16_within_the_bound_that_is_stated(name: str) -> None:
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        for clip in (0.0, 0.25):
            chosen = estimator(name, clip=clip)
            losses = torch.rand(len(chosen.probes(ADDRESS, 0, BATCH)), generator=generator) ** 8
            scalars = scalars_of(chosen, losses.tolist())
            assert all(round_scalar(s) == s and abs(s) <= round_scalar(chosen.largest) for s in scalars)


def test_two_point_is_a_difference_over_its_width() -> None:
    step = round_coefficient(0.1)
    assert two_point(0.1).scalars([2.0, 1.0]) == (round_scalar(1.0 / (2 * step)),)
    assert two_point(0.1, clip=3.0).scalars([2.0, 1.0]) == (3.0,)
    assert two_point(0.1, clip=3.0).scalars([1.0, 2.0]) == (-3.0,)
    assert two_point(0.1, 2).train_loss([1.0, 2.0, 3.0, 6.0]) == 3.0


def test_one_sided_scalars_have_mean_square_one_and_know_no_eps() -> None:
    chosen = OneSided(Settings(queries=4))
    differences = [1.0, -2.0, 0.5, 4.0]
    size = math.sqrt(sum(x * x for x in differences) / 4)
    assert chosen.scalars([8.0, *(8.0 + x for x in differences)]) == tuple(round_scalar(x / size) for x in differences)
    assert chosen.scalars([8.0, *(8.0 + x / 64 for x in differences)]) == chosen.scalars([8.0, 9.0, 6.0, 8.5, 12.0])
    assert chosen.scalars([8.0] * 5) == (0.0,) * 4
    assert chosen.train_loss([8.0, 9.0, 6.0, 8.5, 12.0]) == 8.0


def test_where_all_directions_lead_up_no_step_is_longer_than_any_other() -> None:
    """Divided by their standard deviation these would be 300: a curved loss must not throw theta away."""
    scalars = scalars_of(OneSided(Settings(queries=3)), [1.0, 1.3, 1.301, 1.302])
    assert sum(s * s for s in scalars) == pytest.approx(3, rel=2**-7)


def test_per_example_judges_each_direction_by_one_row() -> None:
    chosen = PerExample(Settings(queries=2), rows=3)
    probes = chosen.probes(ADDRESS, 1, BATCH)
    assert [int(probe.batch.input_ids) for probe in probes[::2]] == [7, 11, 13, 7, 11, 13]
    assert [probe.stream for probe in probes[1::2]] == [ADDRESS.stream(1, query) for query in range(6)]
    assert [probe.amount for probe in probes[:2]] == [chosen.settings.step_size, -chosen.settings.step_size]


@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("name", NAMES)
def test_lanes_and_groups_change_no_estimate(name: str, lanes: int) -> None:
    data = {client: ToyData(client) for client in range(3)}
    chosen = make_estimator(name, Settings(1e-2, 2), rows=2)
    theta, tasks = torch.linspace(-1, 1, SIZE), [ClientTask(2, client, 0.01) for client in range(3)]
    together = ZerothOrderClients(Quadratic(), chosen, 11, "scalars", lanes).run(tasks, theta, "hash", data)
    one_by_one = ZerothOrderClients(Quadratic(), chosen, 11, "scalars")
    alone = [report for task in tasks for report in one_by_one.run([task], theta, "hash", data)]
    assert [asdict(report) for report in together] == [asdict(report) for report in alone]


@pytest.mark.parametrize("arguments", [{"eps": 0.0}, {"eps": -1.0}, {"queries": 0}, {"queries": 256}, {"clip": -1.0}])
def test_settings_that_cannot_work_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Settings(**arguments)  # type: ignore[arg-type]  # one dict, mixed types


def test_choices_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="one of two-point, one-sided, per-example"):
        make_estimator("sideways", Settings(), 4)
    with pytest.raises(ValueError, match="rows x queries must be from 1 to 255, not 256"):
        make_estimator("per-example", Settings(queries=4), 64)
