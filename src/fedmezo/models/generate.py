"""Greedy answers to instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmezo.data.prompt import prompt_of
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def answers(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    theta: Tensor,
    examples: Sequence[Example],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy answer to each example's instruction at theta (d,), of at most `max_new_tokens` tokens."""
    model.load(theta)
    return [_answer(model, tokenizer, example, max_new_tokens) for example in examples]


def _answer(model: CausalLM, tokenizer: PreTrainedTokenizerFast, example: Example, max_new_tokens: int) -> str:
    prompt = tokenizer(prompt_of(example), return_tensors="pt").to(model.device)
    with torch.inference_mode():
        generate: Callable[..., Tensor] = model.peft.generate  # PEFT leaves it without types
        tokens = generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=True,
        )
    answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(answer).strip()
