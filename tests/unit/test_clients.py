"""Client work on a quadratic whose losses and gradients are known."""

import math
from collections.abc import Mapping
from dataclasses import asdict

import pytest
import torch

from fedmezo.federation.clients import FirstOrderClients, ZerothOrderClients
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.records import ClientData, ClientTask, Report
from fedmezo.zo import local
from fedmezo.zo.noise import Noise
from fedmezo.zo.replay import Address, Pace, apply_, linear_moves
from tests.toy import SIZE, Quadratic, ToyData, two_point

SEED = 11
DATA: Mapping[int, ClientData] = {client: ToyData(client) for client in range(3)}


def theta() -> torch.Tensor:
    return torch.linspace(-1, 1, SIZE)


def zeroth(
    model: Quadratic, protocol: str = "scalars", lanes: int = 1, decay: float = 0.0, **estimator: float
) -> ZerothOrderClients:
    return ZerothOrderClients(model, two_point(**estimator), SEED, protocol, lanes, decay)  # type: ignore[arg-type]  # ints and floats by name


def run(work: ZerothOrderClients | FirstOrderClients, members: tuple[int, ...] = (0, 1, 2)) -> list[Report]:
    start = theta()
    reports = work.run([ClientTask(2, client, 0.01) for client in members], start, "hash", DATA)
    assert torch.equal(start, theta())  # left as it was
    return reports


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # raised by torch.func's own import
def test_a_directional_derivative_is_estimated_to_second_order() -> None:
    model = Quadratic()
    batch = DATA[0].batches(2)[0]
    z = Noise("gaussian").directions([Address(SEED, 2, 0).stream(0)], 0, SIZE)[0]
    exact = torch.func.jvp(lambda t: model.loss(t, batch), (theta().double(),), (z.double(),))[1]
    for eps in (1e-1, 1e-2):
        estimator = two_point(eps=eps)
        step = estimator.settings.step_size
        plus, minus = (float(model.loss(theta().double() + s * z.double(), batch)) for s in (step, -step))
        scalars = estimator.scalars([plus, minus])
        assert scalars is not None
        assert scalars[0] == pytest.approx(
            float(exact), rel=2**-8
        )  # a quadratic has no third order: only bfloat16's rounding


def test_the_estimate_is_unbiased() -> None:
    model, batch, draws = Quadratic(), DATA[0].batches(2)[0], 20_000
    point = theta().double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(point, batch), point)
    streams = [Address(SEED, 0, 0).stream(step) for step in range(draws)]
    z = Noise("gaussian").directions(streams, 0, SIZE).double()
    mean = (z @ gradient)[:, None].mul(z).mean(0)
    # the variance of z_i (z.g) is |g|^2 + g_i^2, so five standard errors are
    bound = 5 * torch.sqrt((gradient.norm() ** 2 + gradient**2) / draws)
    assert bool(((mean - gradient).abs() < bound).all())


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("queries", [1, 3])
def test_the_scalars_replay_to_the_clients_own_theta(noise: str, queries: int) -> None:
    options = {"noise": Noise(noise), "queries": queries, "eps": 1e-2}
    by_scalars = run(zeroth(Quadratic(), "scalars", **options))  # type: ignore[arg-type]  # as above
    by_weights = run(zeroth(Quadratic(), "weights", **options))  # type: ignore[arg-type]
    for one, other in zip(by_scalars, by_weights, strict=True):
        assert one.scalars is not None
        assert other.update is not None
        assert len(one.scalars) == 4 * queries
        moves = linear_moves(Pace(0.01), one.scalars, Address(SEED, 2, one.client), queries)
        assert torch.equal(apply_(theta(), moves, Noise(noise)) - theta(), other.update)


@pytest.mark.parametrize("lanes", [2, 4, 5, 64])
def test_lanes_and_groups_change_nothing_but_the_calls(lanes: int) -> None:
    model, sequential = Quadratic(), Quadratic()
    together = run(zeroth(model, lanes=lanes, queries=2))
    alone = [report for client in range(3) for report in run(zeroth(sequential, queries=2), (client,))]
    assert [asdict(report) for report in together] == [asdict(report) for report in alone]
    assert max(model.calls) == min(lanes, 12)
    assert set(sequential.calls) == {1}


def test_reports_say_what_was_done() -> None:
    report = run(zeroth(Quadratic()))[1]
    assert (report.round, report.client, report.state_hash) == (2, 1, "hash")
    assert (report.num_examples, report.skipped_steps) == (8, 0)
    assert 0 < report.train_loss < 10


def test_clipping_bounds_every_scalar() -> None:
    free, clipped = (run(zeroth(Quadratic(), clip=clip))[0].scalars for clip in (0.0, 0.5))
    assert free is not None
    assert clipped is not None
    assert max(map(abs, free)) > 0.5
    assert max(map(abs, clipped)) == 0.5


def test_a_step_without_a_finite_loss_is_skipped_and_counted() -> None:
    report = run(zeroth(Quadratic(poison={2 + 2, 2 + 3}), queries=2))[0]  # the second batch of client 0
    assert report.scalars is not None
    assert (report.num_examples, report.skipped_steps) == (6, 1)  # what was skipped lends no weight
    assert report.scalars[2:4] == (0.0, 0.0)
    assert all(report.scalars[:2])
    assert math.isfinite(report.train_loss)


def test_a_client_without_any_finite_loss_reports_nan() -> None:
    report = run(zeroth(Quadratic(poison=set(range(100)))))[0]
    assert (report.num_examples, report.skipped_steps) == (0, 4)
    assert math.isnan(report.train_loss)


def test_weight_decay_shrinks_theta_as_in_the_papers_code() -> None:
    """theta <- theta - rate (g z + decay theta); a clip below the smallest coefficient leaves the decay alone."""
    update = run(zeroth(Quadratic(), "weights", decay=1.0, clip=1e-30))[0].update
    assert update is not None
    assert torch.allclose(theta() + update, theta() * (1 - 0.01) ** 4, rtol=1e-6)  # four float32 products


def reference_sgd(client: int, rate: float, momentum: float, accumulate: int = 1, clip: float = 0.0) -> torch.Tensor:
    """Plain torch.optim on the same batches, written on its own."""
    model, batches = Quadratic(), DATA[client].batches(2)
    point = theta().requires_grad_()
    optimizer = torch.optim.SGD([point], lr=rate, momentum=momentum)
    for first in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        sum(model.loss(point, batch) / accumulate for batch in batches[first : first + accumulate]).backward()  # type: ignore[union-attr]  # the sum of tensors
        if clip:
            torch.nn.utils.clip_grad_norm_([point], clip)
        optimizer.step()
    return point.detach() - theta()


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (2, 0.0), (1, 0.3), (2, 0.3)])
def test_first_order_clients_are_torch_optim(accumulate: int, clip: float) -> None:
    factory = OptimizerFactory("SGD", {"momentum": 0.9})
    reports = run(FirstOrderClients(Quadratic(), factory, SEED, clip, accumulate))
    for report in reports:
        assert report.update is not None
        assert torch.equal(report.update, reference_sgd(report.client, 0.01, 0.9, accumulate, clip))


@pytest.mark.parametrize(("accumulate", "counted"), [(1, 6), (2, 4)])
def test_first_order_steps_without_a_finite_loss_are_skipped(accumulate: int, counted: int) -> None:
    work = FirstOrderClients(Quadratic(poison={4, 5}), OptimizerFactory(), SEED, grad_accum_count=accumulate)
    report = run(work)[0]
    assert report.update is not None
    assert (report.num_examples, report.skipped_steps) == (counted, 1)
    assert bool(torch.isfinite(report.update).all())


def test_clients_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    run(FirstOrderClients(Quadratic(), OptimizerFactory("AdamW"), SEED))
    run(zeroth(Quadratic()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_directions_too_large_to_keep_are_generated_again(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run(zeroth(Quadratic(), "weights", queries=2, noise=Noise(noise)))  # type: ignore[arg-type]  # as above
    monkeypatch.setattr(local, "KEPT_BYTES", 0)
    again = run(zeroth(Quadratic(), "weights", queries=2, noise=Noise(noise)))  # type: ignore[arg-type]
    for one, other in zip(kept, again, strict=True):
        assert one.update is not None
        assert other.update is not None
        assert torch.equal(one.update, other.update)
