"""Layers that are read in each forward pass, against the same model in memory; and checkpoints that are not sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmezo.cli import main
from fedmezo.errors import ModelError
from fedmezo.models import streamed
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.checkpoint import stored_tensors
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.lanes import spread
from fedmezo.models.loading import load_base
from fedmezo.models.streamed import Stream, stream_of
from tests.integration.test_architectures import METHODS, batch_of, directories
from tests.runs import differences, make_base, make_data, write_config
from tests.tiny_models import tiny_model

__all__ = ["directories"]  # a fixture

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
BATCHES = [batch_of((5, 6)), batch_of((3, 3)), batch_of((9, 2))]


def load(folder: Path, dtype: torch.dtype = F32, scheme: str = "none", is_streamed: bool = True) -> Any:
    return load_base(str(folder), None, dtype, CPU, quantization=scheme, streamed=is_streamed)[0]


def layers_of(base: Any) -> list[Any]:
    return list(base.model.layers)


def logits(base: Any, ids: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        found: Tensor = base(input_ids=torch.arange(4, 16)[None] if ids is None else ids, use_cache=False).logits
        return found


@pytest.mark.parametrize(
    ("name", "dtype", "scheme", "method"),
    [
        ("llama", F32, "none", "lora"),
        ("llama", F32, "int8-dynamic", "lora"),
        ("gpt2", BF16, "none", "ia3"),  # stores its weights transposed, and without the names' first part
        ("gemma2", F32, "int8", "prefix"),  # head and embedding are one tensor
        ("opt", BF16, "nf4", "prompt"),
    ],
)
def test_losses_and_fingerprint_are_those_of_the_model_in_memory(
    directories: dict[str, Path], name: str, dtype: torch.dtype, scheme: str, method: str
) -> None:
    found = []
    for is_streamed in (False, True):
        base = load(directories[name], dtype, scheme, is_streamed)
        fingerprint = base_hash(base)
        assert (stream_of(base) is not None) is is_streamed
        model = CausalLM(base, {"adapter_method": method, **METHODS[method]}, 3)
        thetas = spread(model.flat(), 3)
        alone = model.losses(thetas, BATCHES).tolist()
        assert model.use_lanes(3) == []
        found.append((fingerprint, alone, model.losses(thetas, BATCHES).tolist()))
        assert model.losses(thetas, BATCHES).tolist() == found[-1][2]
    assert found[0] == found[1]


def test_two_layers_are_in_memory_at_a_time(tmp_path: Path) -> None:
    base, memory, shown = load(make_base(tmp_path)), load(tmp_path, is_streamed=False), []
    layers = layers_of(base)

    def look(number: int) -> Callable[..., None]:
        def seen(module: Any, *_: Any) -> None:
            shown.append(module.mlp.up_proj.weight.untyped_storage().data_ptr())
            assert torch.equal(module.mlp.up_proj.weight, layers_of(memory)[number].mlp.up_proj.weight)
            alive = [layer for layer in layers if layer.mlp.up_proj.weight.untyped_storage().nbytes() > 64]
            assert alive == [module]  # what is read meanwhile is no layer's yet

        return seen

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(look(number))
    for _ in range(3):
        logits(base)
    assert len(layers) > 1
    assert len(shown) == 3 * len(layers)
    assert len(set(shown)) == 2
    assert all(layer.mlp.up_proj.weight.untyped_storage().nbytes() <= 8 for layer in layers)


def test_each_pass_reads_each_layer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, read = load(make_base(tmp_path)), []
    logits(base)
    fill = streamed._Slot.fill

    def counted(slot: Any, layer: Any) -> None:
        read.append(layer)
        fill(slot, layer)

    monkeypatch.setattr(streamed._Slot, "fill", counted)
    for _ in range(2):
        logits(base)
    base.fedmezo_stream._coming[2].result()  # the first layer, for the next pass
    assert len(read) == 2 * len(layers_of(base))


def test_layers_that_come_through_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a GPU, with the CPU in its place."""
    monkeypatch.setattr(streamed, "Stream", lambda device: Stream(device, staged=True))
    assert torch.equal(logits(load(make_base(tmp_path))), logits(load(tmp_path, is_streamed=False)))


def test_layers_may_be_called_in_any_order(tmp_path: Path) -> None:
    base, memory = load(make_base(tmp_path)), load(tmp_path, is_streamed=False)
    for model in (base, memory):
        model.model.layers = torch.nn.ModuleList([*layers_of(model)[::-1], layers_of(model)[0]])
    assert torch.equal(logits(base), logits(memory))


def test_a_checkpoint_in_several_files_and_another_precision(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    model.to(dtype=BF16).save_pretrained(tmp_path / "m", max_shard_size="10KB")  # type: ignore[call-arg]  # wrapped
    make_base(tmp_path / "words")
    for path in (tmp_path / "words").glob("token*"):
        path.rename(tmp_path / "m" / path.name)
    assert len({place.file.name for place in stored_tensors(tmp_path / "m").values()}) > 1
    for dtype in (F32, BF16):
        assert torch.equal(logits(load(tmp_path / "m", dtype)), logits(load(tmp_path / "m", dtype, is_streamed=False)))


def test_gradients_are_refused(tmp_path: Path) -> None:
    model = CausalLM(load(make_base(tmp_path)), {"adapter_method": "lora", "r": 1}, 1)
    with pytest.raises(ModelError, match="gradients need all layers in memory"):
        model.training_loss(BATCHES[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-8], "does not fit the file"),
        (lambda content: content[:100], "a header of"),
        (lambda content: b"\xff" * 8 + content[8:], "a header of"),
        (lambda content: content[:8] + b"[" + content[9:], "is damaged"),
        (lambda content: content.replace(b'"F32"', b'"F8X"', 1), "stored as F8X"),
        (lambda content: content.replace(b"layers.0.mlp.up_proj", b"layers.0.mlp.no_proj", 1), "lacks weights: model."),
        (lambda content: content.replace(b'"shape":[48', b'"shape":[49', 1), "does not fit the file"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = make_base(tmp_path) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_weights_that_are_cut_while_they_are_in_use(tmp_path: Path) -> None:
    base = load(make_base(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="ends before its weights do"):
        logits(base)


def test_what_is_not_made_for_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ModelError, match="not made of repeated layers"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 16}))
    with pytest.raises(ModelError, match="but its config makes it"):
        load(tmp_path)
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config | quantised))
    with pytest.raises(ModelError, match="is quantised already"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(streamed, "append", full)
    with pytest.raises(ModelError, match=r"no room for the layers as they are wanted .*TMPDIR"):
        load(tmp_path, BF16)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="is a GGUF file"):
        load(tmp_path / "model.gguf")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_and_its_resume_are_those_of_the_model_in_memory(tmp_path: Path) -> None:
    base, data = make_base(tmp_path / "base"), make_data(tmp_path / "data")
    for is_streamed in (False, True):
        changes = {"expname": f"streamed {is_streamed}", "federate.total_round_num": 2, "model.streamed": is_streamed}
        assert main(["run", str(write_config(tmp_path / "c.yaml", base, data, **changes))]) == 0
    memory, run = (tmp_path / "runs" / f"streamed {is_streamed}" for is_streamed in (False, True))
    assert differences(memory, run) == []
    journal = run / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))  # of its rounds, one is left to do
    assert main(["resume", str(run)]) == 0
    assert differences(memory, run) == []
