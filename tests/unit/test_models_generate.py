"""Many continuations at once are those of each prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.generate import Decoding, _groups, complete, cut
from fedmezo.models.loading import load_base
from tests.runs import make_base
from tests.tiny_models import tiny_model

PROMPTS = ["w5 w6 w7 w8 w9 w40", "w41", "w42 w43 w44", "w50 w51", "w52 w53", "w60 w61 w62 w63"]
METHODS: dict[str, dict[str, object]] = {
    "lora": {"r": 4, "lora_alpha": 64},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def tuned(folder: Path, method: str) -> tuple[CausalLM, Any]:
    base, tokenizer = load_base(str(folder), None, torch.float32, torch.device("cpu"))
    model = CausalLM(base, {"adapter_package": "peft", "adapter_method": method, **METHODS[method]}, seed=3)
    theta = model.flat()
    model.load(theta + 0.1 * torch.sin(torch.arange(len(theta), dtype=torch.float32)))
    return model, tokenizer


@pytest.mark.parametrize("method", METHODS)
def test_together_as_alone(base_folder: Path, method: str) -> None:
    model, tokenizer = tuned(base_folder, method)
    decoding = Decoding(max_new_tokens=6)
    together = complete(model.network, tokenizer, PROMPTS, decoding)
    alone = [complete(model.network, tokenizer, [prompt], decoding)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1, "a model that always says the same would prove nothing"


def test_without_a_cache_of_keys_the_same_tokens_come_out(base_folder: Path) -> None:
    model, tokenizer = tuned(base_folder, "lora")
    [text] = complete(model.network, tokenizer, PROMPTS[:1], Decoding(max_new_tokens=6))
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(6):
        with torch.inference_mode():
            best = model.network(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
        if int(best) == tokenizer.eos_token_id:
            break
    assert text == tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_ends_where_the_model_has_no_more_positions(base_folder: Path, method: str) -> None:
    _, tokenizer = load_base(str(base_folder), None, torch.float32, torch.device("cpu"))
    tokenizer.eos_token = None
    model = CausalLM(tiny_model("gpt_neo"), {"adapter_method": method, **METHODS[method]}, seed=3)
    room = 64 - model.virtual_tokens
    for length in (10, room - 1):
        (text,) = complete(model.network, tokenizer, [" ".join(["w7"] * length)], Decoding(max_new_tokens=100))
        assert 0 < len(text.split()) <= room - length


@pytest.mark.parametrize("words", [0, 5, 1_000_000])
def test_a_prompt_that_is_too_long_is_answered_from_its_end(
    base_folder: Path, caplog: pytest.LogCaptureFixture, words: int
) -> None:
    _, tokenizer = load_base(str(base_folder), None, torch.float32, torch.device("cpu"))
    model = CausalLM(tiny_model("gpt_neo"), {"adapter_method": "lora", **METHODS["lora"]}, seed=3)
    end = [f"w{i % 90}" for i in range(60)]
    long = " ".join(["w7"] * (4 + words) + end)  # of 64 positions
    decoding = Decoding(max_new_tokens=4)
    assert complete(model.network, tokenizer, [long], decoding) == complete(
        model.network, tokenizer, [" ".join(end)], decoding
    )
    assert "1 of 1 prompts are too long: only their last 60 tokens are read" in caplog.text


def test_a_stop_ends_its_own_row_only(base_folder: Path) -> None:
    model, tokenizer = tuned(base_folder, "lora")
    free = complete(model.network, tokenizer, PROMPTS, Decoding(max_new_tokens=6))
    stop = next(text.split()[2] for text in free if len(text.split()) > 3)
    stopped = complete(model.network, tokenizer, PROMPTS, Decoding(max_new_tokens=6, stops=(stop,)))
    assert stopped == [cut(text, (stop,)) for text in free]
    assert stopped != free


def test_progress_counts_every_item(base_folder: Path) -> None:
    model, tokenizer = tuned(base_folder, "lora")
    heard: list[tuple[int, int | None]] = []
    decoding = Decoding(max_new_tokens=2, tokens_per_batch=10)
    complete(model.network, tokenizer, PROMPTS, decoding, lambda done, total: heard.append((done, total)))
    assert len(heard) > 1
    assert heard[-1] == (len(PROMPTS), len(PROMPTS))


@given(lengths=st.lists(st.integers(1, 30), max_size=40), budget=st.integers(1, 200), padded=st.booleans())
def test_groups_hold_every_prompt_once_within_the_budget(lengths: list[int], budget: int, padded: bool) -> None:
    decoding = Decoding(max_new_tokens=5, tokens_per_batch=budget)
    groups = list(_groups(lengths, decoding, padded=padded))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or len(group) * (longest + 5) <= budget
        assert padded or len({lengths[index] for index in group}) == 1


def test_cut() -> None:
    assert cut("ab\nQ: c", ("\nQ:", "b")) == "a"
    assert cut("abc", ()) == "abc"
