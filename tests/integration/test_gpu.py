"""What has to be the same on a GPU, and what has to agree. Without one these tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmezo.federation.course import hash_of
from fedmezo.federation.server_optimizers import NO_MOMENTS, ServerOptimizer, server_step_
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.loading import load_base
from fedmezo.records import Batch
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise, Purpose, Stream
from fedmezo.zo.replay import Address, Pace, apply_, linear_moves
from tests.integration.test_architectures import METHODS, batch_of, directories, moved

__all__ = ["directories"]  # a fixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SIZE = 5_000_000  # more than one chunk


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_directions_and_replay_have_the_bits_of_the_cpu(noise: str, compiled: bool) -> None:
    streams = [Stream(7, Purpose.DIRECTION, round=1, client=client) for client in range(2)]
    expected = Noise(noise).directions(streams, 3, SIZE)
    assert torch.equal(Noise(noise, compiled).directions(streams, 3, SIZE, "cuda").cpu(), expected)
    moves = linear_moves(Pace(1e-3), [0.5, -3.0, 17.0], Address(7, 0, 0), directions=1)
    theta = torch.linspace(-1, 1, SIZE)
    on_gpu = apply_(theta.clone().cuda(), moves, Noise(noise, compiled))
    assert state_hash(on_gpu) == state_hash(apply_(theta, moves, Noise(noise)))


@pytest.mark.parametrize("method", ["FedAvgM", "FedAdam", "FedYogi"])
def test_the_servers_optimisers_have_the_bits_of_the_cpu(method: str) -> None:
    theta, deltas = torch.linspace(-1, 1, 10_000), [torch.sin(torch.arange(10_000) * k) * 1e-3 for k in (1.1, 2.3, 3.7)]
    on_gpu, moments, there = theta.clone().cuda(), NO_MOMENTS, NO_MOMENTS
    for delta in deltas:
        moments = server_step_(theta, delta, moments, ServerOptimizer(method, 0.1))
        there = server_step_(on_gpu, delta.cuda(), there, ServerOptimizer(method, 0.1))
        assert hash_of(on_gpu, there) == hash_of(theta, moments)


@pytest.mark.parametrize("method", METHODS)
def test_captured_lanes_give_the_eager_losses(directories: dict[str, Path], method: str) -> None:
    base, _ = load_base(str(directories["llama"]), None, torch.float32, torch.device("cuda"))
    lm = CausalLM(base, {"adapter_method": method, **METHODS[method]}, 3)
    thetas = torch.stack([moved(lm), 0.5 * moved(lm), moved(lm) + 0.1])
    rounds = [[on_gpu(batch_of(lengths)) for lengths in some] for some in ([(5, 6), (3, 3), (9, 2)], [(40, 30)] * 3)]
    lm.use_lanes(3)
    eager = [lm.losses(thetas, batches).tolist() for batches in rounds]
    assert lm.compile(rows=1) == []
    for _ in range(2):  # captured, then only run
        for batches, expected in zip(rounds, eager, strict=True):
            # float32 sums in another order, of losses near 5
            assert lm.losses(thetas, batches).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_layers_that_are_read_one_ahead_give_the_losses_of_those_on_the_gpu(
    directories: dict[str, Path], scheme: str
) -> None:
    found = []
    for streamed in (False, True):
        device = torch.device("cuda")
        base, _ = load_base(
            str(directories["llama"]), None, torch.float32, device, quantization=scheme, streamed=streamed
        )
        lm = CausalLM(base, {"adapter_method": "lora", **METHODS["lora"]}, 3)
        lm.use_lanes(3)
        batches = [on_gpu(batch_of(lengths)) for lengths in ((5, 6), (3, 3), (9, 2))]
        thetas = torch.stack([moved(lm), 0.5 * moved(lm), moved(lm) + 0.1])
        found.append([lm.losses(thetas, batches).tolist() for _ in range(3)])
    assert found[1] == [pytest.approx(found[0][0], abs=1e-5)] * 3


def on_gpu(batch: Batch) -> Batch:
    return Batch(batch.input_ids.cuda(), batch.attention_mask.cuda(), batch.labels)
