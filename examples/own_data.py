"""Tune a model object of your own over data sets of your own, one for each client.

Run: python examples/own_data.py [OUTDIR]
"""

import json
import sys
from importlib.resources import files
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedmezo

SETTINGS: dict[str, Any] = {
    "federate.total_round_num": 5,
    "train.local_update_steps": 10,
    "train.optimizer.lr": 0.02,
    "train.zo.eps": 0.01,
    "llm.tok_len": 200,
}

bundled = files("fedmezo") / "bundled"
model = AutoModelForCausalLM.from_pretrained(str(bundled / "base"))  # any causal language model
tokenizer = AutoTokenizer.from_pretrained(str(bundled / "base"))

# Rows as in data files: instruction and output here; prompt and completion, messages, or text do as well.
rows = json.loads((bundled / "instructions.json").read_text())
clients = [Dataset.from_list(rows[client:300:3]) for client in range(3)]  # or plain lists

run = fedmezo.tune(
    model,
    tokenizer,
    clients,
    validation=rows[300:340],
    outdir=sys.argv[1] if len(sys.argv) > 1 else "runs",
    expname="own-data",
    quiet=True,
    **SETTINGS,
)

for round_index, loss in run.values("val_loss").items():
    print(f"after {round_index} rounds: validation loss {loss:.4f}")
print(f"{run.summary.bytes_up} bytes were sent up; the adapter is in {run.result}")
