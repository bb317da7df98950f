"""Memory is measured, not guessed, and lanes fit into their share of it."""

from __future__ import annotations

import pytest
import torch

from fedmezo.models import lane_budget
from fedmezo.models.lane_budget import bytes_per_lane, device_memory, fitting_lanes, longest_batch, peak_memory_of
from fedmezo.records import IGNORE_LABEL
from tests.toy import SIZE, Quadratic, two_point

CPU = torch.device("cpu")
KIB = 1 << 10


def test_the_peak_counts_what_is_alive_at_once() -> None:
    given = torch.zeros(256)

    def work() -> None:
        a = given + 1  # 1 KiB
        b = a.double()  # 2 KiB beside it
        del a
        c = b.view(16, 16).t()  # a view
        c.add_(1)  # in place
        d = b + 1  # 2 KiB more, the first gone
        del b, c
        d.sum()

    assert peak_memory_of(work, CPU) == 4 * KIB


def test_memory_made_before_or_given_does_not_count() -> None:
    given = torch.zeros(1 << 20)
    assert peak_memory_of(lambda: given.mul_(2), CPU) == 0
    assert peak_memory_of(lambda: given.view(2, -1)[1], CPU) == 0


def test_inference_mode_is_seen() -> None:
    given = torch.zeros(256)
    with torch.inference_mode():
        assert peak_memory_of(lambda: given + 1, CPU) == KIB


def test_lanes_fit_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_budget, "device_memory", lambda device: 8 * 100 * KIB)
    assert fitting_lanes(KIB, 6, CPU) == 6
    assert fitting_lanes(30 * KIB, 6, CPU) == 3
    assert fitting_lanes(1000 * KIB, 6, CPU) == 1
    assert fitting_lanes(KIB, 600, CPU) == lane_budget.LANES_ON_CPU
    assert fitting_lanes(KIB, 600, torch.device("cuda")) == 100
    assert fitting_lanes(KIB, 600, CPU, streamed=True) == 100


def test_the_cpu_has_memory() -> None:
    assert device_memory(CPU) > 1 << 28


def test_the_longest_batch_is_all_label() -> None:
    batch = longest_batch(2, 5, CPU)
    assert batch.labels.tolist() == [[IGNORE_LABEL, 1, 1, 1, 1]] * 2
    assert batch.attention_mask.all()


def test_a_lane_needs_its_activations_and_its_vectors() -> None:
    model, theta = Quadratic(), torch.zeros(SIZE)
    longest = longest_batch(1, 1, CPU)
    pair = [longest, longest]
    activations = peak_memory_of(lambda: model.losses(theta.expand(2, -1), pair), CPU) // 2
    assert bytes_per_lane(model, longest, theta, two_point()) == activations + SIZE * (4 + 1 + 2)
