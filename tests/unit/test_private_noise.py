"""Clips, noise and what they spend, each against something that does not know the code."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from random import Random
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fedmezo.data.encode import EncodedDataset
from fedmezo.data.shard import Schedule, Shard
from fedmezo.errors import ConfigError
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.sums import total_of
from fedmezo.privacy.clipping import FOR_THE_FLAG, clipped, clipped_sums
from fedmezo.privacy.examples import PrivateClients, PrivateTwoPoint
from fedmezo.privacy.noise import DistributedNoise, discrete_gaussian
from fedmezo.records import Batch, ClientTask, Report
from fedmezo.zo.arithmetic import round_scalar, state_hash
from fedmezo.zo.replay import Address
from tests.toy import SIZE, Quadratic, ToyData, toy_batch, two_point

HASH = "0" * 64


def exact_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Of so many Gaussian releases without sampling, which are one of the mean mu (Balle and Wang, ICML 2018)."""
    mu, cdf = math.sqrt(releases) / noise_multiplier, NormalDist().cdf
    low, high = 0.0, 100.0
    while high - low > 1e-9:
        epsilon = (low + high) / 2
        too_small = cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu) > delta
        low, high = (epsilon, high) if too_small else (low, epsilon)
    return high


@pytest.mark.parametrize(("noise", "releases", "delta"), [(2.6, 16, 1e-5), (10.0, 7, 1e-6), (60.0, 300, 1e-5)])
def test_without_sampling_the_accountant_bounds_the_exact_gaussian_from_above(
    noise: float, releases: int, delta: float
) -> None:
    accountant = pytest.importorskip("fedmezo.privacy.accountant")
    exact, found = exact_epsilon(noise, releases, delta), accountant.Accountant(noise, delta).epsilon(releases)
    assert exact <= found <= exact + 2 * accountant.EPSILON_TOLERANCE


def test_noise_for_an_epsilon_spends_it() -> None:
    accountant = pytest.importorskip("fedmezo.privacy.accountant")
    for sample_rate in (1.0, 0.05):
        noise = accountant.noise_for(2.0, 1e-5, 40, sample_rate)
        spent = accountant.Accountant(noise, 1e-5, sample_rate).epsilon(40)
        assert 1.97 < spent <= 2.0
    assert accountant.Accountant(0.0, 1e-5).epsilon(1) == math.inf
    assert accountant.Accountant(1.0, 1e-5).epsilon(0) == 0.0


def test_sampling_amplifies_and_more_rounds_spend_more() -> None:
    accountant = pytest.importorskip("fedmezo.privacy.accountant")
    whole, sampled = accountant.Accountant(1.0, 1e-5), accountant.Accountant(1.0, 1e-5, 0.02)
    assert sampled.epsilon(50) < whole.epsilon(50) / 10
    assert sampled.epsilon(50) < sampled.epsilon(100)


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(9, 4), Fraction(60)])
def test_whole_numbers_come_as_often_as_they_should(variance: Fraction) -> None:
    drawn = Counter(discrete_gaussian(variance) for _ in range(6000))
    reach = range(-40, 41)
    weights = np.exp(-np.square(np.array(reach, dtype=float)) / (2 * float(variance)))
    expected = 6000 * weights / weights.sum()
    common = [(drawn[k], mean) for k, mean in zip(reach, expected, strict=True) if mean >= 8]
    chi = sum((count - mean) ** 2 / mean for count, mean in common)
    assert chi < len(common) + 6 * math.sqrt(2 * len(common))


def test_the_noise_of_the_fewest_clients_is_enough() -> None:
    noise = DistributedNoise(4096.0, 16)
    total = np.sum([noise.draw(40) for _ in range(16)], axis=0)
    assert 0.6 < total.std() / 4096 < 1.4
    assert not DistributedNoise(0.0, 3).draw(5).any()
    with pytest.raises(ValueError, match="too little"):
        DistributedNoise(4.0, 3)


def a_report(*scalars: float) -> Report:
    return Report(0, 0, HASH, 8, 2.5, 1, scalars)


def test_a_clients_part_is_clipped_whatever_it_sends() -> None:
    sums = clipped_sums(3, 10, 8, 1.0, 0.0)
    unit = sums.fixed.scalar_unit
    for scalars in ((0.1, -0.2, 0.3), (3.0, -400.0, 0.1), (0.0, 0.0, 0.0), (5e4, 5e4, -5e4)):
        words = sums.words(a_report(*scalars))
        part = words[[0, 1, 2, 4]].astype(float) * unit
        assert np.linalg.norm(part) <= 1.0
        limit = math.sqrt(1 - FOR_THE_FLAG**2)
        assert part[:3] == pytest.approx(clipped(scalars, limit), abs=2 * unit)
        assert words[[3, 5, 6]].tolist() == [1, 0, 1]  # weight, skipped steps, 1: nothing of the client's own


def test_the_sum_has_the_scalars_the_noise_and_how_many_were_clipped() -> None:
    sums = clipped_sums(200, 20, 16, 2.0, 1.5)
    small, large = a_report(*[0.01] * 200), a_report(*[9.0] * 200)
    total = total_of(sums.words(small if client < 15 else large) for client in range(20))
    tally = sums.tally(total)
    mean = 15 * 0.01 + 5 * 2.0 * math.sqrt(1 - FOR_THE_FLAG**2) / math.sqrt(200)
    noise = np.array(tally.scalars) - mean
    assert abs(noise.mean()) < 5 * 3.4 / math.sqrt(200)
    assert 0.8 < noise.std() / (1.5 * 2.0 * math.sqrt(20 / 16)) < 1.2
    assert (tally.clients, tally.weight, tally.loss) == (20, 20, 0.0)
    quiet = clipped_sums(200, 20, 16, 2.0, 0.0)
    assert quiet.tally(total_of(quiet.words(small if c < 15 else large) for c in range(20))).clipped == 0.25


def test_no_sum_of_clipped_parts_and_noise_overflows() -> None:
    sums = clipped_sums(2, 50, 40, 8.0, 30.0)
    largest = int((8.0 + 12 * 30.0 * 8.0 / math.sqrt(40)) / sums.fixed.scalar_unit)
    assert 50 * largest < 2 ** (8 * sums.widths[0] - 1)


def test_a_clip_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be summed"):
        clipped_sums(2, 2**31, 2**31, 1e9, 1.0)


def test_examples_are_clipped_one_by_one_and_get_one_noise() -> None:
    """Against the same written out, with the noise of the same generator."""
    model, batch, clip = Quadratic(), toy_batch(1, 2, 3), 0.5
    private = PrivateTwoPoint(two_point(queries=2), rows=4, clip=clip, noise_multiplier=0.7, random=Random(9))
    theta, address = torch.linspace(-1, 1, SIZE), Address(5, 0, 2)
    probes = private.probes(address, 6, batch)
    streams = [address.stream(6, query) for query in range(2)]
    z = two_point().settings.noise.directions(streams, 0, SIZE, theta.device)

    def loss(row: int, query: int, sign: int) -> float:
        return float(model.loss(theta + sign * private.settings.step_size * z[query].float(), toy_batch(row)))

    width = 2 * private.settings.step_size
    vectors = [[(loss(row, q, 1) - loss(row, q, -1)) / width for q in range(2)] for row in (1, 2, 3)]
    rng = Random(9)
    expected = []
    for query in range(2):
        total = sum(v[query] * min(1.0, clip / math.hypot(*v)) for v in vectors)
        expected.append(round_scalar((total + rng.gauss(0.0, 0.7 * clip)) / 4))
    by_stream = dict(zip(streams, z, strict=True))
    losses = [
        float(model.loss(theta + probe.amount * by_stream[probe.stream].float(), probe.batch))
        for probe in probes
        if probe.stream
    ]
    assert private.scalars(losses) == pytest.approx(expected, rel=2e-2, abs=2e-3)


def test_an_example_without_a_finite_loss_adds_nothing_and_an_empty_batch_is_noise() -> None:
    private = PrivateTwoPoint(two_point(), rows=2, clip=1.0, noise_multiplier=0.0)
    assert private.scalars([math.nan, 1.0, 1.0, 1.001]) == private.scalars([1.0, 1.001])
    assert private.scalars([]) == (0.0,)
    noisy = PrivateTwoPoint(two_point(), rows=2, clip=1.0, noise_multiplier=1.0)
    assert noisy.scalars([]) != noisy.scalars([])


class Drawn(ToyData):
    """Data whose second batch is empty, as a Poisson sample may be."""

    def batches(self, round_index: int) -> list[Batch]:
        nothing = torch.empty(0, 0, dtype=torch.int64)
        return [toy_batch(1, 2), Batch(nothing, nothing, nothing)]


def test_a_report_tells_noisy_scalars_and_nothing_else() -> None:
    model = Quadratic(poison={2})
    private = PrivateTwoPoint(two_point(), rows=2, clip=1.0, noise_multiplier=1.0)
    work = PrivateClients(ZerothOrderClients(model, private, 3, "scalars"), examples=4)
    theta = torch.zeros(SIZE)
    (report,) = work.run([ClientTask(0, 0, 0.1)], theta, state_hash(theta), {0: Drawn(0)})
    assert (report.num_examples, report.train_loss, report.skipped_steps) == (4, 0.0, 0)
    assert len(report.scalars or ()) == 2
    assert all(report.scalars or ())


def test_poisson_batches_hold_each_example_as_often_as_they_should() -> None:
    size, batch, rounds = 40, 4, 400
    lengths = np.ones(size, np.int32)
    dataset = EncodedDataset(
        lengths, np.arange(size + 1), np.zeros(size, np.int32), np.arange(size), dropped=0, pad_id=0
    )
    schedule = Schedule(batch, batches=5, poisson=True)
    shard = Shard(dataset, np.arange(size), 0, 0, schedule, torch.device("cpu"))
    sizes = [b.num_examples for r in range(rounds) for b in shard.batches(r)]
    assert abs(np.mean(sizes) - batch) < 5 * math.sqrt(batch / len(sizes))
    assert abs(np.var(sizes) / (batch * (1 - batch / size)) - 1) < 0.25
    assert min(sizes) == 0
    assert [b.num_examples for b in shard.batches(0)] != [b.num_examples for b in shard.batches(0)] or len(sizes) < 9
