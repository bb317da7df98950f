"""Code in models and adapters does not run: neither past our own checks, nor past those of the libraries alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmezo.errors import ModelError
from fedmezo.models import loading
from fedmezo.models.adapters import attach_adapter
from fedmezo.tasks import subject
from tests.unit.test_models_adapters import llama
from tests.unit.test_models_loading import load, save_model


class Evil:
    """An object that makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def no_check(folder: Path) -> None:
    """In place of our own, to see what the libraries do."""


def with_pickle(folder: Path, content: object, zipped: bool) -> Path:
    """A base model whose weights are a pickle."""
    save_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder


def test_weights_in_a_pickle_are_read(tmp_path: Path) -> None:
    good: Any = load(save_model(tmp_path / "good"))[0]
    weights = {name: tensor.clone() for name, tensor in good.state_dict().items()}
    for zipped in (True, False):
        read: Any = load(with_pickle(tmp_path / str(zipped), weights, zipped))[0]
        assert all(torch.equal(tensor, weights[name]) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ours", [True, False], ids=["our check", "the library's"])
def test_code_in_a_pickle_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, ours: bool
) -> None:
    if not ours:
        monkeypatch.setattr(loading, "require_no_code", no_check)
    folder = with_pickle(tmp_path / "base", {"lm_head.weight": Evil(tmp_path / "ran")}, zipped)
    with pytest.raises(ModelError) as caught:
        load(folder)
    if ours and zipped:
        assert "pytorch_model.bin: besides weights it holds" in str(caught.value)
        assert "mkdir" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_what_a_trainer_leaves_beside_a_model_is_not_looked_at(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "base")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({"x": Evil(tmp_path / "ran")}, folder / name)
    load(folder)
    assert not (tmp_path / "ran").exists()


CODE = "from pathlib import Path\nPath({mark!r}).touch()\n"


@pytest.mark.parametrize("model_type", ["evil", "llama"])
def test_code_beside_a_model_does_not_run(tmp_path: Path, model_type: str) -> None:
    folder = save_model(tmp_path / "base")
    (folder / "evil.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    classes = {name: "evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": classes}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | own))
    with pytest.raises(ModelError, match=r"trust_remote_code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def saved_adapter(folder: Path, **changes: Any) -> Path:
    """A LoRA as PEFT saves it, with keys of its configuration changed."""
    attach_adapter(llama(), {"adapter_method": "lora", "r": 2}, seed=1).save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_saved_adapter_is_loaded(tmp_path: Path) -> None:
    subject._with_adapter(llama(), saved_adapter(tmp_path))


@pytest.mark.parametrize("left", [1, 0])
def test_a_saved_adapter_that_lacks_weights_is_refused(tmp_path: Path, left: int) -> None:
    """Those would stay as if they had never been trained."""
    path = saved_adapter(tmp_path) / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[:left]), path)
    with pytest.raises(ModelError, match="Found missing adapter keys"):
        subject._with_adapter(llama(), tmp_path)


def test_an_adapter_in_no_regular_file_is_refused(tmp_path: Path) -> None:
    path = saved_adapter(tmp_path) / "adapter_model.safetensors"
    path.unlink()
    os.mkfifo(path)  # which would never end
    with pytest.raises(ModelError, match="it is no regular file"):
        subject._with_adapter(llama(), tmp_path)


@pytest.mark.parametrize("ours", [True, False], ids=["our check", "the library's"])
def test_code_in_an_adapters_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    if not ours:
        monkeypatch.setattr(subject, "require_no_code", no_check)
    folder = saved_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "ran")}, folder / "adapter_model.bin")
    with pytest.raises(ModelError):
        subject._with_adapter(llama(), folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": r"(.|\w)*s"}, "takes too long to match"),
        ({"r": 2_000_000_000}, "r is 2000000000; needs a whole number"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication is"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "Megatron is not supported"),
    ],
)
def test_what_a_saved_adapter_asks_for_is_bounded(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        subject._with_adapter(llama(), saved_adapter(tmp_path, **changes))
