"""Every architecture with every kind of adapter: loss, gradient and saved adapter agree with Hugging Face's own.

The models are tiny and randomly initialised, built from their config classes and loaded from a directory as a user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.loading import load_base
from fedmezo.records import IGNORE_LABEL, Batch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # of PeftModel.from_pretrained

CPU = torch.device("cpu")
WORDS = [f"w{i}" for i in range(100)]
NUM_WORDS = len(WORDS)
COMMON: dict[str, Any] = {"vocab_size": NUM_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED: dict[str, Any] = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GATED),
    "gpt2": GPT2Config(vocab_size=NUM_WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "qwen2": Qwen2Config(**GATED),
    "mistral": MistralConfig(**GATED, sliding_window=4),
    "gpt_neox": GPTNeoXConfig(**COMMON, intermediate_size=48, max_position_embeddings=64),
    "gemma2": Gemma2Config(**GATED, head_dim=8, sliding_window=4, final_logit_softcapping=0.5),
}
METHODS: dict[str, dict[str, object]] = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "ia3": {},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    auto_model: Any = AutoModelForCausalLM  # these two have no annotations
    fast_tokenizer: Any = PreTrainedTokenizerFast
    specials = {"unk_token": WORDS[0], "bos_token": WORDS[1], "eos_token": WORDS[2], "pad_token": WORDS[3]}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, config in ARCHITECTURES.items():
            config.pad_token_id, config.bos_token_id, config.eos_token_id = 3, 1, 2
            config.initializer_range = 0.2  # large weights, so that a difference in the arithmetic shows in the loss
            auto_model.from_config(config).save_pretrained(root / name)
            fast_tokenizer(tokenizer_object=tokenizer, **specials).save_pretrained(root / name)
    return {name: root / name for name in ARCHITECTURES}


def build(directory: Path, method: str, dtype: torch.dtype = torch.float32, seed: int = 3) -> CausalLM:
    base, _ = load_base(str(directory), None, dtype, CPU)
    return CausalLM(base, {"adapter_package": "peft", "adapter_method": method, **METHODS[method]}, seed)


def batch_of(*lengths: tuple[int, int]) -> Batch:
    """Rows of (prompt tokens, label tokens), padded on the right with token 3."""
    width = max(sum(pair) for pair in lengths)
    ids = torch.full((len(lengths), width), 3)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE_LABEL)
    for row, (prompt, answer) in enumerate(lengths):
        stop = prompt + answer
        ids[row, :stop] = (torch.arange(stop) * 37 + 11 * row) % 90 + 5
        mask[row, :stop] = 1
        labels[row, prompt:stop] = ids[row, prompt:stop]
    return Batch(ids, mask, labels)


BATCH = batch_of((5, 6), (3, 4), (4, 7))


def rows_of(batch: Batch) -> list[Batch]:
    """Each row alone, without its padding."""
    return [
        Batch(batch.input_ids[i : i + 1, :n], batch.attention_mask[i : i + 1, :n], batch.labels[i : i + 1, :n])
        for i, n in enumerate(batch.attention_mask.sum(1).tolist())
    ]


def moved(lm: CausalLM) -> torch.Tensor:
    """A theta away from the initial one, whose LoRA updates are zero."""
    theta = lm.flat()
    return theta + 0.1 * torch.sin(torch.arange(len(theta), dtype=torch.float32, device=theta.device))


def hugging_face_loss(lm: CausalLM, batch: Batch) -> Any:
    return lm.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32(directories: dict[str, Path], tmp_path: Path, architecture: str, method: str) -> None:
    lm = build(directories[architecture], method)
    assert lm.notices == ()  # the label-only path is in use
    theta = moved(lm)
    state = torch.get_rng_state()
    [loss] = lm.losses([theta], [BATCH]).tolist()

    with torch.no_grad():
        assert loss == pytest.approx(float(hugging_face_loss(lm, BATCH)), abs=1e-5)

    rows = rows_of(BATCH)
    alone = lm.losses([theta] * len(rows), rows).tolist()
    assert lm.example_losses(theta, BATCH) == pytest.approx(alone, abs=1e-5)
    assert torch.equal(torch.get_rng_state(), state)

    lm.save(theta, tmp_path)
    base, _ = load_base(str(directories[architecture]), None, torch.float32, CPU)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        out = loaded(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask, labels=BATCH.labels)
    assert float(out.loss) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient(directories: dict[str, Path], architecture: str, method: str) -> None:
    lm = build(directories[architecture], method)
    lm.load(moved(lm))
    gradients = []
    for loss_of in (lm.training_loss, lambda batch: hugging_face_loss(lm, batch)):
        with torch.random.fork_rng(devices=[]):  # the same dropout for both
            torch.manual_seed(1)
            lm.network.train()
            gradients.append(torch.autograd.grad(loss_of(BATCH), lm.parameters()))
    for ours, theirs in zip(*gradients, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_half_precision(directories: dict[str, Path], architecture: str, method: str, dtype: torch.dtype) -> None:
    lm = build(directories[architecture], method, dtype)
    theta = moved(lm)
    [loss] = lm.losses([theta], [BATCH]).tolist()
    exact = build(directories[architecture], method).losses([theta], [BATCH]).tolist()[0]
    # weights of 8 or 11 bits through a dozen layers: some ten roundings of a loss that is near 5
    assert loss == pytest.approx(exact, rel=16 * torch.finfo(dtype).eps)
    with torch.no_grad():
        assert loss == pytest.approx(float(hugging_face_loss(lm, BATCH)), rel=4 * torch.finfo(dtype).eps)
    gradients = torch.autograd.grad(lm.training_loss(BATCH), lm.parameters())
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
