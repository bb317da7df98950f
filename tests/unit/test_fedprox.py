"""FedProx: the pull towards the round's state, against a loss that holds it in full."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedmezo.federation.clients import FirstOrderClients, ZerothOrderClients
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.records import ClientTask, Report
from tests.toy import SIZE, Quadratic, ToyData, two_point

START = torch.linspace(-1, 1, SIZE)
RATE, MU = 0.05, 3.0


def reports_of(work: ZerothOrderClients | FirstOrderClients) -> list[Report]:
    data = {client: ToyData(client) for client in range(2)}
    return work.run([ClientTask(1, client, RATE) for client in data], START.clone(), "hash", data)


@pytest.mark.parametrize("clip", [0.0, 0.4])
def test_first_order_clients_minimise_the_loss_with_the_proximal_term(clip: float) -> None:
    work = FirstOrderClients(Quadratic(), OptimizerFactory("SGD", {"momentum": 0.5}), 5, clip, proximal=MU)
    for report in reports_of(work):
        point = START.clone().requires_grad_()
        optimizer = torch.optim.SGD([point], lr=RATE, momentum=0.5)
        for batch in ToyData(report.client).batches(1):
            optimizer.zero_grad()
            loss = Quadratic().loss(point, batch) + MU / 2 * (point - START).square().sum()
            torch.autograd.backward(loss)
            if clip:
                torch.nn.utils.clip_grad_norm_([point], clip)
            optimizer.step()
        assert report.update is not None
        assert torch.allclose(report.update, point.detach() - START, atol=1e-6)  # a sum in another order


def test_zeroth_order_clients_are_pulled_back_by_rate_times_mu() -> None:
    """A clip below the smallest coefficient leaves the pull alone; from the round's own state it does nothing."""
    still = ZerothOrderClients(Quadratic(), two_point(clip=1e-30), 5, "weights", proximal=MU)
    assert all(report.update is not None and not report.update.any() for report in reports_of(still))


def test_the_pull_shortens_the_way_of_zeroth_order_clients_step_by_step() -> None:
    free = ZerothOrderClients(Quadratic(), two_point(eps=1e-2), 5, "weights")
    first = [one_step(free, client) for client in range(2)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, [one_step(replace(free, proximal=MU), c) for c in range(2)], strict=True)
    )
    pulled = reports_of(replace(free, proximal=1 / RATE))  # each step starts from the round's state again
    for report, of_free in zip(pulled, reports_of(free), strict=True):
        assert report.update is not None
        assert of_free.update is not None
        assert report.update.norm() < of_free.update.norm()


def one_step(work: ZerothOrderClients, client: int) -> torch.Tensor:
    data = {client: ToyData(client, num_batches=1)}
    [report] = work.run([ClientTask(1, client, RATE)], START.clone(), "hash", data)
    assert report.update is not None
    return report.update
