"""Keys of an adapter that strangers wrote: bounded in time and size, and no way to their code or files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from fedmezo.errors import ModelError
from fedmezo.models import adapter_limits
from fedmezo.models.adapters import attach_adapter
from tests.unit.test_models_adapters import llama

LORA = {"adapter_method": "lora", "r": 2}
IA3 = {"adapter_method": "ia3"}
PREFIX = {"adapter_method": "prefix", "num_virtual_tokens": 2}
PROMPT = {"adapter_method": "prompt", "num_virtual_tokens": 2}


def adapted(model: PeftModel) -> set[str]:
    """Names of the modules that the adapter is on."""
    return {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r".*\.(q|v)_proj", ["q_proj", "v_proj"]),
        (r"model\.layers\.\d+\.self_attn\.o_proj$", ["o_proj"]),
        (r"(?:.*\.)?mlp\.(up|down)_proj", ["up_proj", "down_proj"]),
    ],
)
def test_a_pattern_means_what_it_means_to_peft(pattern: str, names: list[str]) -> None:
    named = attach_adapter(llama(), LORA | {"target_modules": names}, seed=1)
    matched = attach_adapter(llama(), LORA | {"target_modules": pattern}, seed=1)
    assert adapted(matched) == adapted(named) != set()


def test_patterns_of_what_is_left_out_and_of_feed_forward_layers() -> None:
    some = attach_adapter(
        llama(), LORA | {"target_modules": "all-linear", "exclude_modules": r".*(mlp.*|\.[ko]_proj)"}, seed=1
    )
    assert {name.rsplit(".", 1)[1] for name in adapted(some)} == {"q_proj", "v_proj"}
    ours = attach_adapter(llama(), IA3 | {"target_modules": ["k_proj"], "feedforward_modules": ".*k_proj"}, seed=1)
    plain = attach_adapter(llama(), IA3 | {"target_modules": ["k_proj"], "feedforward_modules": ["k_proj"]}, seed=1)
    shapes = [[tuple(p.shape) for p in model.parameters() if p.requires_grad] for model in (ours, plain)]
    assert shapes[0] == shapes[1] != []


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_pattern_that_explodes_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_limits, "SECONDS_TO_MATCH", 0.1)
    with pytest.raises(ModelError, match=f"{key} is '.*; takes too long to match"):
        attach_adapter(llama(), LORA | {key: r"(.|\w)*s"}, seed=1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (LORA | {"target_modules": "["}, r"target_modules is '\['; is no regular expression"),
        (LORA | {"target_modules": "a{99999999999}"}, "is no regular expression"),
        (LORA | {"target_modules": "(" * 5000}, "needs a pattern of at most 1000 characters"),
        (LORA | {"target_modules": "q.*", "layers_to_transform": [0]}, "needs target_modules to be a list"),
        (LORA | {"r": 2_000_000_000}, "r is 2000000000; needs a whole number from 1 to 1048576"),
        (LORA | {"r": 2e9}, r"r is 2000000000\.0; needs a whole number"),
        (LORA | {"r": 2**20}, r"r is 1048576; makes an adapter of .* parameters; needs one of at most 1\.68e\+07"),
        (LORA | {"rank_pattern": {"q_proj": 2**20}}, "r is 2; makes an adapter of"),
        (LORA | {"rank_pattern": {"q_proj": "x"}}, "rank_pattern is .*; needs numbers above 0"),
        (LORA | {"alpha_pattern": {"(a+)+$": 2}}, r"alpha_pattern is '\(a\+\)\+\$'; needs names of modules"),
        (LORA | {"layers_to_transform": [0], "layers_pattern": "(a|a)*"}, "layers_pattern is .*; needs names"),
        (LORA | {"layer_replication": [[0, 10**9]]}, "needs ranges within the 2 layers of the model, of 8 layers"),
        (LORA | {"layer_replication": [[0, 1]] * 10_000}, "needs ranges within"),
        (LORA | {"layer_replication": [[-3, 1]]}, "needs ranges within"),
        (LORA | {"megatron_config": {}}, "megatron_config is {}; leave it out: Megatron is not supported"),
        (LORA | {"megatron_core": "os"}, "megatron_core is 'os'; leave it out: it names a module to import"),
        (PREFIX | {"num_virtual_tokens": 10**30}, "num_virtual_tokens is 10.*; needs a whole number"),
        (PREFIX | {"num_virtual_tokens": 2**20}, "num_virtual_tokens is 1048576; makes an adapter of"),
        (PREFIX | {"prefix_projection": True, "encoder_hidden_size": 2**20}, "makes an adapter of"),
        (PROMPT | {"num_transformer_submodules": 2**31}, "num_transformer_submodules is 2147483648; needs a whole"),
        (PROMPT | {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "their/own"}, "leave it out: the tokenizer"),
        (PROMPT | {"prompt_tuning_init": "TEXT", "tokenizer_kwargs": {"trust_remote_code": True}}, "leave it out"),
        (LORA | {"trainable_token_indices": [10**9]}, "PEFT refuses"),
    ],
)
def test_what_asks_for_too_much_is_refused_with_one_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        attach_adapter(llama(), args, seed=1)
    assert len(str(caught.value).splitlines()) == 1


def test_a_module_that_a_key_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by us, nor by PEFT, which has not always asked which module it is."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    args = LORA | {"megatron_config": {"a": 1}, "megatron_core": "evil"}
    with pytest.raises(ModelError):
        attach_adapter(llama(), args, seed=1)
    monkeypatch.setattr(adapter_limits, "_REFUSED", {})
    with pytest.raises(ModelError, match="PEFT refuses"):
        attach_adapter(llama(), args, seed=1)
    assert not (tmp_path / "ran").exists()
