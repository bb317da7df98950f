"""A whole run on a GGUF base in its own chat template, and its adapter on the base as transformers loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedmezo.cli import main
from fedmezo.results.metrics import read_metrics
from fedmezo.results.summary import evaluations
from fedmezo.runs.card import _loading, public_name
from tests.gguf_files import tiny_llama, write_gguf
from tests.runs import write_config


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # between PEFT and transformers
def test_the_adapter_of_a_gguf_base_loads_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "models" / "tiny.gguf", tiny_llama())
    asked = [({"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}) for i in range(30)]
    talk = [{"messages": list(turns)} for turns in asked]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    changes: dict[str, Any] = {"data.type": "talk.jsonl", "llm.tok_len": 200, "federate.total_round_num": 2}
    config = write_config(tmp_path / "c.yaml", path, tmp_path, expname="talk", **changes, **{"train.lanes": 1})
    assert main(["run", str(config)]) == 0
    folder = tmp_path / "runs" / "talk"
    base: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder / "adapter"))
    assert any(float(p.abs().sum()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    assert len(evaluations(read_metrics(folder / "metrics.jsonl"), "val_loss").rounds) == 2
    assert 'gguf_file="tiny.gguf"' in (folder / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("o/r/sub/x.gguf", 'base = AutoModelForCausalLM.from_pretrained("o/r", gguf_file="sub/x.gguf")'),
        ("/tmp/here/x.gguf", 'base = AutoModelForCausalLM.from_pretrained("FOLDER_OF_THE_FILE", gguf_file="x.gguf")'),
        ("package:carrier/x.gguf", 'folder = find_spec("carrier").submodule_search_locations[0]'),
    ],
)
def test_a_model_card_says_how_to_load_such_a_base(base: str, line: str) -> None:
    assert line in _loading(public_name(base)).splitlines()
