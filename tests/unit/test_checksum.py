"""A saved adapter that is not what was written is refused, whichever bit of it flipped; PEFT's own are taken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fedmezo.errors import ModelError
from fedmezo.models.adapters import attach_adapter, read_adapter, write_adapter
from fedmezo.models.checksum import CONFIG_FILE, KEY, WEIGHTS_FILE, check_adapter

LORA = {"adapter_method": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}
Harm = Callable[[bytes], bytes]


def llama() -> PreTrainedModel:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).requires_grad_(False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = attach_adapter(llama(), LORA, seed=3)
    write_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def harm(path: Path, change: Harm) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT reads the old name
def test_what_was_written_is_sound_and_peft_loads_it(saved: Path) -> None:
    check_adapter(saved)
    assert isinstance(PeftModel.from_pretrained(llama(), str(saved)), PeftModel)


def test_a_flipped_bit_of_the_weights_is_noticed(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    begin = 8 * (8 + int.from_bytes(content[:8], "little"))
    for bit in random.Random(1).sample(range(begin, 8 * len(content)), 40):
        (saved / WEIGHTS_FILE).write_bytes(flipped(content, bit))
        with pytest.raises(ModelError, match="its checksum does not fit"):
            check_adapter(saved)


def test_a_flipped_bit_of_the_header_is_noticed_or_changes_nothing(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    before = load_file(saved / WEIGHTS_FILE)
    noticed = 0
    for bit in range(0, 8 * (8 + int.from_bytes(content[:8], "little")), 7):
        (saved / WEIGHTS_FILE).write_bytes(flipped(content, bit))
        try:
            check_adapter(saved)
        except ModelError:
            noticed += 1
            continue
        after = load_file(saved / WEIGHTS_FILE)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert noticed > 100


@pytest.mark.parametrize(
    "change", [lambda text: text[:300], lambda text: b"", lambda text: text[:-1] + bytes([text[-1] ^ 1])]
)
def test_a_cut_file_is_one_message(saved: Path, change: Harm) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        whole = (saved / name).read_bytes()
        harm(saved / name, change)
        with pytest.raises(ModelError, match=r"adapter.*(damaged|does not fit|checksum)"):
            check_adapter(saved)
        (saved / name).write_bytes(whole)


def test_a_changed_setting_is_noticed_and_another_place_of_the_base_is_not(saved: Path) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "/moved"}))
    check_adapter(saved)
    (saved / CONFIG_FILE).write_text(json.dumps(config | {"lora_alpha": 9}))
    with pytest.raises(ModelError, match="its checksum does not fit"):
        check_adapter(saved)


def test_adapters_of_others_have_no_checksum_and_are_taken(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    save_file(tensors, saved / WEIGHTS_FILE, metadata={"format": "pt"})
    check_adapter(saved)
    attach_adapter(llama(), LORA, seed=4).save_pretrained(str(tmp_path / "peft"))
    check_adapter(tmp_path / "peft" / "default" if (tmp_path / "peft" / "default").exists() else tmp_path / "peft")


def test_a_run_that_starts_from_a_damaged_adapter_is_refused(saved: Path) -> None:
    harm(saved / WEIGHTS_FILE, lambda content: flipped(content, 8 * len(content) - 9))
    with pytest.raises(ModelError, match="its checksum does not fit"):
        read_adapter(attach_adapter(llama(), LORA, seed=3), saved)


def test_the_same_adapter_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    for number in range(8):
        write_adapter(attach_adapter(llama(), LORA, seed=3), tmp_path / str(number))
        assert (tmp_path / str(number) / WEIGHTS_FILE).read_bytes() == (saved / WEIGHTS_FILE).read_bytes()
    with safe_open(saved / WEIGHTS_FILE, framework="pt") as file:
        assert set(file.metadata()) == {KEY, "format"}
