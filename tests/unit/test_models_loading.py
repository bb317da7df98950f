"""Loading a base: names, missing special tokens, errors, precision and the hash of the weights."""

from __future__ import annotations

import json
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

from fedmezo.data.encode import pad_id
from fedmezo.errors import ModelError
from fedmezo.models import hardware, loading
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.hardware import choose_device, choose_dtype
from fedmezo.models.loading import load_base, locate
from fedmezo.models.vocabulary import exact_mean, settle_special_tokens

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


def test_a_base_is_loaded_as_it_was_published(tmp_path: Path) -> None:
    save_model(tmp_path)  # its tokenizer names no special token at all
    model, tokenizer = load(tmp_path)
    before: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    assert base_hash(model) == base_hash(before)
    assert (len(tokenizer), model.config.vocab_size) == (NUM_WORDS, NUM_WORDS)
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_earlier_versions_added_are_there_for_their_journals(tmp_path: Path, tied: bool) -> None:
    save_model(tmp_path, tied=tied, eos_token="w1", bos_token="w2", unk_token="w0")
    state = torch.get_rng_state()
    model, tokenizer = load_base(str(tmp_path), None, torch.float32, CPU, grown=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", NUM_WORDS)
    assert model.config.vocab_size == NUM_WORDS + 1
    before: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    for new, old in zip(tables(model), tables(before), strict=True):
        assert torch.equal(new[:NUM_WORDS], old)
        torch.testing.assert_close(new[NUM_WORDS], old.mean(0), rtol=1e-6, atol=1e-8)
    first, second = tables(model)
    assert (first is second) is tied


def tables(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def test_the_end_of_an_answer_is_the_models_own(tmp_path: Path) -> None:
    save_model(tmp_path)
    model, tokenizer = load(tmp_path)
    model.generation_config.eos_token_id = [NUM_WORDS + 7, 5]  # the first is beyond the vocabulary
    ending = settle_special_tokens(model, tokenizer)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == ("w5", 5, NUM_WORDS)
    assert ending.is_new
    assert "answers end with 'w5' (id 5), as in the tokenizer beside the adapter" in ending.notices[0]


def without_end(directory: Path, rows: int = NUM_WORDS) -> tuple[Any, Any]:
    save_model(directory, rows=rows)
    model, tokenizer = load(directory)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model, tokenizer


def test_a_spare_row_can_be_the_end_and_stays_as_it_is(tmp_path: Path) -> None:
    model, tokenizer = without_end(tmp_path, rows=NUM_WORDS + 8)
    before = base_hash(model)
    assert settle_special_tokens(model, tokenizer).is_new
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", NUM_WORDS)
    assert base_hash(model) == before


def test_without_a_row_for_it_there_is_no_end_and_a_notice(tmp_path: Path) -> None:
    model, tokenizer = without_end(tmp_path)
    ending = settle_special_tokens(model, tokenizer)
    assert (tokenizer.eos_token_id, pad_id(tokenizer), ending.is_new) == (None, 0, False)
    assert "answers are learned without an end" in ending.notices[0]


def test_padding_beyond_the_embedding_is_not_used(tmp_path: Path) -> None:
    save_model(tmp_path, eos_token="w1")
    model, tokenizer = load(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert settle_special_tokens(model, tokenizer).notices == ()
    assert pad_id(tokenizer) == 1


def test_code_that_a_model_brings_along_is_refused_unless_it_may_run(tmp_path: Path) -> None:
    save_model(tmp_path, eos_token="w1", pad_token="w3")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ModelError, match=r"brings Python code of its own.* set model\.trust_remote_code: True"):
        load(tmp_path)
    model, _ = load_base(str(tmp_path), None, torch.float32, CPU, own_code=True)
    assert type(model).__name__ == "Own"


def test_a_model_that_is_no_causal_one_is_refused_in_a_few_words(tmp_path: Path) -> None:
    save_model(tmp_path, eos_token="w1", pad_token="w3")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(ModelError, match="T5Config") as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 500


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
