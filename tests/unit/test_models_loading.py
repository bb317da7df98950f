"""Loading a base: names, missing special tokens, errors, precision and the hash of the weights."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedmezo.errors import ModelError
from fedmezo.models import hardware, loading
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.hardware import choose_device, choose_dtype
from fedmezo.models.loading import load_base, locate
from fedmezo.models.vocabulary import exact_mean

CPU = torch.device("cpu")
NUM_WORDS = 12


def save_model(directory: Path, rows: int = NUM_WORDS, tied: bool = False, **specials: str) -> Path:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    fast_tokenizer: Any = PreTrainedTokenizerFast  # has no annotations
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(NUM_WORDS)}, unk_token="w0"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(directory)
    fast_tokenizer(tokenizer_object=words, **specials).save_pretrained(directory)
    return directory


def load(directory: Path) -> tuple[Any, Any]:
    return load_base(str(directory), None, torch.float32, CPU)


@pytest.mark.parametrize("tied", [False, True])
def test_missing_special_tokens_get_the_mean_row(tmp_path: Path, tied: bool) -> None:
    save_model(tmp_path, tied=tied, eos_token="w1", bos_token="w2", unk_token="w0")
    state = torch.get_rng_state()
    model, tokenizer = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", NUM_WORDS)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == ("w1", "w2", "w0")
    assert tokenizer.padding_side == "right"
    assert tokenizer.is_fast
    assert model.config.vocab_size == NUM_WORDS + 1
    before: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    for new, old in (
        (model.get_input_embeddings().weight, before.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, before.get_output_embeddings().weight),
    ):
        assert torch.equal(new[:NUM_WORDS], old)
        torch.testing.assert_close(new[NUM_WORDS], old.mean(0), rtol=1e-6, atol=1e-8)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_spare_rows_are_used_before_the_embedding_grows(tmp_path: Path) -> None:
    save_model(tmp_path, rows=NUM_WORDS + 8)
    model, tokenizer = load(tmp_path)
    assert len(tokenizer) == NUM_WORDS + 4
    assert tokenizer.convert_ids_to_tokens([12, 13, 14, 15]) == ["[PAD]", "</s>", "<s>", "<unk>"]
    rows = model.get_input_embeddings().weight
    assert len(rows) == NUM_WORDS + 8
    assert torch.equal(rows[12], exact_mean(rows[:12].detach()))


def test_complete_tokenizer_changes_nothing(tmp_path: Path) -> None:
    save_model(tmp_path, eos_token="w1", bos_token="w2", unk_token="w0", pad_token="w3")
    model, _ = load(tmp_path)
    before: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    assert base_hash(model) == base_hash(before)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False


def test_exact_mean_has_no_order() -> None:
    rows = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(1))
    mean = exact_mean(rows)
    assert torch.equal(mean, exact_mean(rows.flip(0)))
    torch.testing.assert_close(mean.double(), rows.double().mean(0), rtol=1e-6, atol=1e-9)
    assert exact_mean(rows.bfloat16()).dtype == torch.bfloat16


def test_names(tmp_path: Path) -> None:
    assert locate("openlm-research/open_llama_3b_v2@huggingface_llm") == "openlm-research/open_llama_3b_v2"
    assert locate("gpt2") == "gpt2"
    assert locate(f"{tmp_path}@huggingface_llm") == str(tmp_path)
    odd = tmp_path / "a@b"
    odd.mkdir()
    assert locate(str(odd)) == str(odd)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2@modelscope_llm", "model.type is 'gpt2@modelscope_llm': after '@' only 'huggingface_llm' is supported"),
        ("./nowhere", "model.type is './nowhere', but there is no such directory: give a directory that holds"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate(name)


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(ModelError) as caught:
        load_base("some/model@huggingface_llm", str(tmp_path), torch.float32, CPU)
    message = str(caught.value)
    assert "model 'some/model' is not on this machine" in message
    assert "hf download some/model --local-dir DIR" in message
    assert f"copy the hub's cache folder to {tmp_path} (llm.cache.model)" in message


def test_what_the_hub_left_on_disk_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    kept = tmp_path / "models--some--model"
    save_model(kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    model, _ = load_base("some/model@huggingface_llm", str(tmp_path), torch.float32, CPU)
    assert model.name_or_path == "some/model"


def test_sentencepiece_file_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_args: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")  # what transformers says then

    monkeypatch.setattr(loading, "_read", read)
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"\(tokenizer\.model\): `pip install sentencepiece`"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ((), "no config.json, no weights, no tokenizer"),
        (("adapter_model.safetensors",), "no config.json, no tokenizer"),
        (("config.json", "tokenizer.json"), "no weights"),
        (("config.json", "pytorch_model.bin"), "no tokenizer"),
    ],
)
def test_directory_without_a_model(tmp_path: Path, files: tuple[str, ...], missing: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no base model, since there is {missing}: give a directory that holds config.json, the "
        "weights (*.safetensors) and the tokenizer, a .gguf file, or the name of a model on the Hugging Face hub"
    )


def test_directory_with_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    (save_model(tmp_path) / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model with its tokenizer"):
        load(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    weights = save_model(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"model '{tmp_path}' cannot be loaded"):
        load(tmp_path)


def test_hash_of_weights() -> None:
    def build(second: float = 2.0) -> Any:
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        nn.init.constant_(one.weight, 1.0)
        nn.init.constant_(two.weight, second)
        for layer in (one, two):
            nn.init.zeros_(layer.bias)
        return nn.Sequential(OrderedDict(one=one, two=two))

    whole = base_hash(build())
    assert base_hash(build()) == whole
    assert base_hash(build(second=2.5)) != whole
    assert base_hash(build().bfloat16()) != whole
    tied = build()
    tied.two.weight = tied.one.weight
    assert base_hash(tied) != base_hash(build(second=1.0))  # one tensor, not two that are equal


def test_device_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(False, 0) == (CPU, [])
    assert choose_device(True, 0) == (CPU, ["use_gpu is True, but no GPU was found: running on the CPU"])


def test_device_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(True, -1) == (torch.device("cuda", 0), [])
    assert choose_device(True, 1) == (torch.device("cuda", 1), [])
    with pytest.raises(ModelError, match=r"device is 2, but this machine has 2 GPU\(s\): set device to 0 \.\. 1"):
        choose_device(True, 2)


def test_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    assert choose_dtype(None, False, CPU) == (torch.float32, [])
    assert choose_dtype("float16", False, CPU) == (torch.float16, [])
    assert choose_dtype(None, True, gpu) == (torch.float16, [])
    monkeypatch.setattr(hardware, "cpu_computes_bfloat16", lambda: True)
    assert choose_dtype(None, True, CPU) == (torch.bfloat16, [])
    monkeypatch.setattr(hardware, "cpu_computes_bfloat16", lambda: False)
    dtype, [notice] = choose_dtype(None, True, CPU)
    assert dtype == torch.float32
    assert "this CPU does not compute in bfloat16" in notice
    with pytest.raises(ModelError, match=r"model\.dtype is 'half'; it must be one of float32, bfloat16, float16"):
        choose_dtype("half", False, CPU)
