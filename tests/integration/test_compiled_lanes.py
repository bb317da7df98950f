"""Compiled and captured forms of the forward pass over lanes: the same losses, the same run, and a plain fall-back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmezo.models import compiled
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.compiled import FEWEST_LABELS, LENGTH_STEP, GraphedForward, padded
from fedmezo.models.label_loss import LabelOnlyPath, LabelPositions
from fedmezo.models.lanes import EagerForward, base_of, join, laned_losses
from fedmezo.records import Batch
from fedmezo.runs.journal import read_journal
from tests.compilers import needs_compiler, without_compiler
from tests.integration.test_architectures import CPU, METHODS, batch_of, build, directories, moved
from tests.runs import Runs

__all__ = ["directories"]  # a fixture

BATCHES = [batch_of((5, 6), (3, 4)), batch_of((5, 6)), batch_of((2, 3), (3, 3)), batch_of((9, 2), (3, 3))]
LONG = [batch_of((40, 30)), batch_of((35, 50)), batch_of((9, 70)), batch_of((50, 20))]


def some_thetas(lm: CausalLM) -> Tensor:
    theta = moved(lm)
    return torch.stack([theta, 0.5 * theta, theta + 0.1, theta])


@needs_compiler
def test_compiled_lanes_give_the_sequential_losses(directories: dict[str, Path]) -> None:
    lm = build(directories["llama"], "lora")
    thetas = some_thetas(lm)
    alone = lm.losses(list(thetas), LONG).tolist()
    lm.use_lanes(4)
    assert lm.compile(rows=1) == []
    # float32 sums in another order, of losses near 5
    assert lm.losses(thetas, LONG).tolist() == pytest.approx(alone, abs=1e-5)
    assert lm.losses(thetas[:3], LONG[:3]).tolist() == pytest.approx(alone[:3], abs=1e-5)


def test_layers_that_share_no_kernel_are_not_compiled(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "KERNELS_OF_BLOCKS", 1)  # the model has two layers
    lm = build(directories["llama"], "prefix")  # PEFT's cache is addressed by the layer's number
    lm.use_lanes(4)
    [notice] = lm.compile(rows=1)
    assert "cannot be compiled here" in notice


def test_without_a_compiler_lanes_stay_as_they_are(directories: dict[str, Path]) -> None:
    lm = build(directories["llama"], "lora")
    thetas = some_thetas(lm)
    lm.use_lanes(4)
    eager = lm.losses(thetas, LONG).tolist()
    with without_compiler():
        [notice] = lm.compile(rows=1)
    assert "cannot be compiled here" in notice
    assert not lm.compiled
    assert lm.losses(thetas, LONG).tolist() == eager


class Rerun:
    """Stands for a CUDA graph: does the captured work again, whose result appears where the first one was."""

    def __init__(self, room: int = 100) -> None:
        self.captured = 0
        self.room = room

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.captured == self.room:
            raise RuntimeError("out of memory")
        self.captured += 1
        result = work()
        return lambda: result.copy_(work())


@pytest.mark.parametrize("method", METHODS)
def test_captured_lanes_give_the_sequential_losses(directories: dict[str, Path], method: str) -> None:
    lm = build(directories["llama"], method)
    thetas = some_thetas(lm)
    alone = [lm.losses(list(thetas), batches).tolist() for batches in (BATCHES, LONG)]
    lm.use_lanes(4)
    assert isinstance(lm._laned, EagerForward)
    path = lm._laned.path
    assert isinstance(path, LabelOnlyPath)
    capture = Rerun()
    with torch.inference_mode():
        lm._laned(thetas[:2], join(LONG[:2]))
        virtual = path.hidden_states(join(LONG[:2]).input_ids).shape[1] - join(LONG[:2]).length
        graphed = GraphedForward(lm._laned, virtual, longest=None, capture=capture)
        for _ in range(2):  # captured, then only run
            for batches, expected in zip((BATCHES, LONG), alone, strict=True):
                assert laned_losses(graphed, thetas, batches).tolist() == pytest.approx(expected, abs=1e-5)
        assert capture.captured == 3  # one and three lanes of short rows, four of long ones
        shorter = [batch_of((38, 30)), *LONG[1:]]
        found = laned_losses(graphed, 0.5 * thetas, shorter).tolist()
        assert capture.captured == 3
    lm.use_lanes(1)
    assert found == pytest.approx(lm.losses(0.5 * thetas, shorter).tolist(), abs=1e-5)


def test_padding_stays_within_the_models_positions(directories: dict[str, Path]) -> None:
    lm = build(directories["gpt2"], "lora")
    thetas = some_thetas(lm)[:2]
    batches = [batch_of((30, 20)), batch_of((20, 20))]
    expected = lm.losses(list(thetas), batches).tolist()
    lm.use_lanes(2)
    assert isinstance(lm._laned, EagerForward)
    room = base_of(lm.network).config.max_position_embeddings
    with torch.inference_mode():
        graphed = GraphedForward(lm._laned, 0, longest=room, capture=Rerun())
        assert laned_losses(graphed, thetas, batches).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_size_that_cannot_be_captured_stays_eager(
    directories: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    lm = build(directories["llama"], "lora")
    thetas = some_thetas(lm)
    lm.use_lanes(4)
    assert isinstance(lm._laned, EagerForward)
    capture = Rerun(room=1)
    with torch.inference_mode():
        graphed = GraphedForward(lm._laned, 0, longest=None, capture=capture)
        laned_losses(graphed, thetas, LONG)
        found = laned_losses(graphed, thetas[:2], LONG[:2])
        assert torch.equal(found, laned_losses(lm._laned, thetas[:2], LONG[:2]))
    assert "stays without a graph: out of memory" in caplog.text


@pytest.mark.parametrize("labels", [1, FEWEST_LABELS, FEWEST_LABELS + 1])
def test_padded_labels_belong_to_no_position(labels: int) -> None:
    batch: Batch = batch_of((LENGTH_STEP, labels))
    positions = LabelPositions.of(batch.labels, batch.length, CPU)
    more = padded(positions)
    assert len(more.index) == len(more.targets) == FEWEST_LABELS * (1 if labels <= FEWEST_LABELS else 2)
    assert torch.equal(more.index[:labels], positions.index)
    assert set(more.index[labels:].tolist()) <= {positions.size}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("forms"))


def test_what_cannot_be_compiled_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="only a laned form"):
        build(directories["llama"], "lora").compile(rows=1)


def test_all_forms_make_the_same_run_where_g_rounds_alike(runs: Runs) -> None:
    """Clipped to one size, g keeps its sign alone, which the last bits of a loss do not change."""
    forms: dict[str, dict[str, object]] = {
        "sequential": {"train.lanes": 1},
        "lanes": {"train.lanes": 6},
        "lanes that do not fill": {"train.lanes": 4},
        "compiled": {"train.lanes": 6, "train.compile": True},
    }
    states: list[list[tuple[str, list[tuple[float, ...] | None]]]] = []
    for name, options in forms.items():
        overrides = {"train.zo.clip": 2.0**-20, "train.zo.eps": 0.05, **options}
        run = runs.run(name.replace(" ", "-"), **overrides)
        records = read_journal(run / "journal.jsonl").records
        states.append([(record.state_hash, [part.scalars for part in record.contributions]) for record in records])
    assert all(state == states[0] for state in states)
    assert {abs(g) for _, parts in states[0] for scalars in parts for g in scalars or ()} == {2.0**-20}
