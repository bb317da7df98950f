"""All parameters of every architecture: perturbed weights that are never made have the losses of those that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedmezo.errors import ModelError
from fedmezo.models.label_loss import losses_agree
from fedmezo.models.loading import load_base
from fedmezo.models.whole import WholeLM
from fedmezo.records import Batch
from fedmezo.zo.local import FlatThetas, LocalThetas, Probe
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import RADEMACHER, Directions, Noise, Purpose, Stream
from fedmezo.zo.replay import Move, apply_
from tests.integration.test_architectures import ARCHITECTURES, CPU, batch_of, directories

__all__ = ["directories"]  # a fixture

SHORT, LONG = batch_of((5, 6), (3, 4)), batch_of((2, 9), (7, 5))
KINDS = {"rank 1": 1, "rank 4": 4, "dense": 0}


def whole(
    directory: Path, rank: int, patterns: tuple[str, ...] = ("*",), dtype: torch.dtype = torch.float32
) -> tuple[WholeLM, Directions]:
    base, tokenizer = load_base(str(directory), None, torch.float32, CPU)
    lm = WholeLM(base, tokenizer, patterns, low_rank=rank > 0, dtype=dtype)
    return lm, LowRankNoise(rank, lm.segments) if rank else Noise(RADEMACHER)


def stream(client: int, step: int, query: int = 0) -> Stream:
    return Stream(7, Purpose.DIRECTION, 1, client, step, query)


def walk(thetas: LocalThetas) -> torch.Tensor:
    """Two clients, one of which has made more steps; probes of both signs, of two queries, and of theta itself."""
    thetas.move_(0, [Move(stream(0, 0), 2.0**-7), Move(stream(0, 0, 1), -(2.0**-8))])
    thetas.move_(1, [Move(stream(1, 0), -(2.0**-7))])
    thetas.move_(0, [Move(stream(0, 1), 2.0**-7), Move(stream(0, 9), 0.0)])
    eps = 2.0**-6
    probes = [Probe(SHORT, stream(0, 2, query), amount) for query in (0, 1) for amount in (eps, -eps)]
    others = [Probe(LONG, stream(1, 1), eps), Probe(LONG, stream(1, 1), -eps), Probe(LONG), Probe(SHORT)]
    first = thetas.losses([0] * 4 + [1] * 4, probes + others)
    uneven = thetas.losses([0, 1, 1], [probes[0], *others[:2]])
    one_row = Batch(LONG.input_ids[:1], LONG.attention_mask[:1], LONG.labels[:1])
    return torch.cat([first, uneven, thetas.losses([1, 0], [Probe(one_row, stream(1, 2), eps), probes[1]])])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_those_of_perturbed_copies(directories: dict[str, Path], name: str, kind: str) -> None:
    lm, noise = whole(directories[name], KINDS[kind])
    assert lm.notices == ()
    theta = lm.initial()
    before = theta.clone()
    expected = walk(FlatThetas(lm, before, 2, noise, 1))
    for lanes in (1, 3, 8):
        lm.use_lanes(lanes)
        torch.testing.assert_close(walk(lm.local_thetas(theta, 2, noise, lanes)), expected, rtol=2e-5, atol=2e-6)
        assert torch.equal(theta, before), "the weights are left as they are"


@pytest.mark.parametrize(("name", "kind"), [("llama", "rank 4"), ("gpt2", "dense"), ("opt", "rank 1")])
def test_in_half_precision_a_rounded_copy_computes(directories: dict[str, Path], name: str, kind: str) -> None:
    exact, noise = whole(directories[name], KINDS[kind])
    theta = exact.flat()
    expected = walk(FlatThetas(exact, theta, 2, noise, 1))
    lm, noise = whole(directories[name], KINDS[kind], dtype=torch.bfloat16)
    assert lm.notices == ()
    assert torch.equal(lm.initial(), theta), "theta is not rounded"
    for lanes in (1, 8):
        lm.use_lanes(lanes)
        losses = walk(lm.local_thetas(lm.initial(), 2, noise, lanes))
        assert losses_agree(losses, expected, torch.bfloat16)


def test_in_half_precision_norms_feel_what_a_rounded_one_would_not(directories: dict[str, Path]) -> None:
    lm, noise = whole(directories["llama"], 1, ("*norm*",), dtype=torch.bfloat16)
    thetas = lm.local_thetas(lm.initial(), 1, noise, 1)
    at_theta, beside = thetas.losses([0, 0], [Probe(LONG), Probe(LONG, stream(0, 0), 2.0**-9)]).tolist()
    assert at_theta != beside, "1 + 2^-9 is 1 in bfloat16"


def test_a_model_in_half_precision_is_saved_in_full(directories: dict[str, Path], tmp_path: Path) -> None:
    lm, noise = whole(directories["llama"], 1, ("*norm*", "model.layers.1.*"), dtype=torch.bfloat16)
    theta = apply_(lm.initial(), [Move(stream(0, 0), 2.0**-12)], noise)
    lm.save(theta, tmp_path)
    again, _ = whole(tmp_path, 1, ("*norm*", "model.layers.1.*"))
    assert again.base.dtype == torch.float32
    assert torch.equal(again.initial(), theta)
    assert lm.saved_loss(tmp_path, LONG) == float(lm.losses([theta], [LONG]))


@pytest.mark.parametrize("kind", ["rank 4", "dense"])
def test_an_update_is_what_the_steps_add(directories: dict[str, Path], kind: str) -> None:
    lm, noise = whole(directories["llama"], KINDS[kind])
    theta = lm.initial()
    thetas = lm.local_thetas(theta, 1, noise, 2)
    moves = [Move(stream(0, step), 2.0**-7) for step in range(3)]
    thetas.move_(0, moves)
    thetas.pull_(0, 0.5)
    moved = apply_(theta.clone(), [Move(move.stream, move.coefficient / 2) for move in moves], noise)
    assert torch.equal(thetas.take_update(0), moved - theta)


def test_a_saved_model_is_one_that_transformers_loads(directories: dict[str, Path], tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        lm, noise = whole(directories[name], 1)
        theta = apply_(lm.initial(), [Move(stream(0, 0), 0.125)], noise)
        lm.save(theta, tmp_path / name)
        auto: Any = AutoModelForCausalLM
        loaded = auto.from_pretrained(tmp_path / name)
        logits = loaded(input_ids=LONG.input_ids).logits
        assert torch.equal(logits, lm.network(input_ids=LONG.input_ids).logits)
        again, _ = whole(tmp_path / name, 1)
        assert torch.equal(again.initial(), theta)
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == 100


def test_patterns_choose_what_is_trained(directories: dict[str, Path]) -> None:
    lm, noise = whole(directories["llama"], 1, ("*norm*", "model.layers.1.*"))
    names = [segment.name for segment in lm.segments]
    assert names == sorted(names)
    assert "model.norm.weight" in names
    assert "model.layers.0.input_layernorm.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" in names
    assert "model.layers.0.mlp.up_proj.weight" not in names
    theta = lm.flat()
    expected = walk(FlatThetas(lm, theta, 2, noise, 1))
    lm.use_lanes(8)
    torch.testing.assert_close(walk(lm.local_thetas(theta, 2, noise, 8)), expected, rtol=2e-5, atol=2e-6)
    with pytest.raises(ModelError, match=r"train.trainable: '\*nrom\*' fits no parameter of LlamaForCausalLM"):
        whole(directories["llama"], 1, ("*nrom*",))


def test_tied_embeddings_are_one_tensor(tmp_path: Path, directories: dict[str, Path]) -> None:
    lm, _ = whole(directories["gpt2"], 1)
    names = [segment.name for segment in lm.segments]
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
