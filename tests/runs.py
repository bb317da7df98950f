"""Small complete runs for tests of whole commands: a base model and a data set in a folder, and runs over them.

Commands run in processes of their own, which can be killed. They are forked from a server process that has imported
the libraries already, so that each takes about a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from fedmezo.records import RoundRecord
from fedmezo.runs.journal import JournalWriter

WORDS = [f"w{i}" for i in range(100)]

PLAIN: dict[str, Any] = {
    "seed": 3,
    "early_stop": {"patience": 0},
    "federate": {"client_num": 3, "total_round_num": 5},
    "data": {"type": "words.jsonl", "splits": [0.7, 0.15, 0.15]},
    "llm": {"tok_len": 48, "adapter": {"use": True, "args": [{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}]}},
    "dataloader": {"batch_size": 2},
    "train": {"local_update_steps": 3, "optimizer": {"lr": 0.01}, "lr_width": 0.005, "zo": {"eps": 0.01}},
    "eval": {"freq": 2, "split": ["val", "test"]},
}

CASES: dict[str, dict[str, Any]] = {
    "scalars": {"train.train_strategy": "round-wise", "train.zo.queries": 2, "federate.save_freq": 3},
    "sampled": {
        "train.train_strategy": "model-diff",
        "federate.client_num": 5,
        "federate.sample_client_num": 2,
        "train.zo.noise": "rademacher",
    },
    "groups": {
        "federate.direction_groups": 2,
        "federate.client_num": 5,
        "federate.sample_client_num": 4,
        "federate.method": "FedAvgM",
        "train.train_strategy": "random",
    },
    "weights": {
        "federate.protocol": "weights",
        "train.train_strategy": "random",
        "train.optimizer.weight_decay": 0.01,
    },
    "backprop": {
        "trainer.type": "llmtrainer",
        "train.optimizer.type": "AdamW",
        "train.scheduler.type": "warmup_step",
        "train.scheduler.warmup_steps": 1,
        "train.train_strategy": "five-round",
    },
    "server optimiser": {
        "federate.protocol": "weights",
        "federate.method": "FedYogi",
        "fedopt.lr_server": 0.01,
        "fedprox.use": True,
        "fedprox.mu": 0.5,
    },
    "all parameters": {
        "llm.adapter.use": False,
        "model.dtype": "bfloat16",
        "model.weights": "bfloat16",
        "train.zo.rank": 4,
        "train.zo.queries": 2,
        "train.optimizer.lr": 1e-3,
    },
    "some parameters": {
        "llm.adapter.use": False,
        "model.dtype": "bfloat16",
        "train.trainable": ["*norm*", "model.layers.1.*"],
        "train.zo.noise": "gaussian",
        "federate.protocol": "weights",
        "fedprox.use": True,
        "fedprox.mu": 0.5,
    },
    "all by back-propagation": {
        "llm.adapter.use": False,
        "trainer.type": "llmtrainer",
        "train.optimizer.type": "AdamW",
        "train.optimizer.lr": 1e-3,
    },
    "stopped early": {
        "early_stop.patience": 2,
        "eval.freq": 1,
        "train.optimizer.lr": 1.0,
        "federate.total_round_num": 9,
    },
}


def make_base(folder: Path, seed: int = 5) -> Path:
    """Write a random two-layer model over a hundred words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"unk_token": WORDS[0], "bos_token": WORDS[1], "eos_token": WORDS[2], "pad_token": WORDS[3]}
    auto_model: Any = AutoModelForCausalLM  # these two have no annotations
    fast_tokenizer: Any = PreTrainedTokenizerFast
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto_model.from_config(config).save_pretrained(folder)
    fast_tokenizer(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    return folder


def make_data(folder: Path, num_examples: int = 80) -> Path:
    """Write examples of random words in two categories."""
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "words.jsonl").open("w") as file:
        for index in range(num_examples):
            question, answer = (" ".join(rng.choices(WORDS[4:], k=rng.randint(1, 6))) for _ in range(2))
            file.write(json.dumps({"instruction": question, "output": answer, "category": f"c{index % 2}"}) + "\n")
    return folder


def write_config(path: Path, base: Path, data: Path, **changes: Any) -> Path:
    """Write a configuration over a model and data, with its runs beside it; keys of `changes` are in dots."""
    content = json.loads(json.dumps(PLAIN))
    content["outdir"] = str(path.parent / "runs")
    content["data"]["root"] = str(data)
    content["model"] = {"type": str(base)}
    for key, value in changes.items():
        *sections, last = key.split(".")
        branch = content
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    path.write_text(yaml.safe_dump(content))
    return path


@dataclass(frozen=True)
class Death:
    """When a process sends itself a signal, as nobody else could time it.

    Args:
        at_write: just before it puts data on disk for the so-manieth time.
        after_rounds: when it has committed so many rounds.
        by: the signal; all but SIGKILL let it go on to an end of its own.
    """

    at_write: int = 0
    after_rounds: int = 0
    by: signal.Signals = signal.SIGKILL
    calls: list[str] = field(default_factory=list)

    def arm(self) -> None:
        """Take effect in this process."""
        os.fsync, os.replace = self._counted(os.fsync), self._counted(os.replace)
        JournalWriter.append = self._last(JournalWriter.append)  # type: ignore[method-assign]  # in a process of its own

    def _counted(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(function.__name__)
            if len(self.calls) == self.at_write:
                os.kill(os.getpid(), self.by)
            return function(*args)

        return call

    def _last(self, append: Any) -> Any:
        def call(writer: JournalWriter, record: RoundRecord) -> None:
            append(writer, record)
            if record.round + 1 == self.after_rounds:
                os.kill(os.getpid(), self.by)

        return call


class Runs:
    """A folder with a model, data and the runs made there.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base = make_base(root / "base")
        self._data = make_data(root / "data")
        self._context = multiprocessing.get_context("forkserver")
        preloaded = ["tests.runs", *(f"fedmezo.runs.{name}" for name in ("experiment", "resume", "publish"))]
        self._context.set_forkserver_preload(preloaded)

    def config(self, **changes: Any) -> Path:
        """Write a configuration file; keys of `changes` are in dots."""
        return write_config(self.root / f"{changes.get('expname', 'config')}.yaml", self._base, self._data, **changes)

    def start(
        self, *arguments: str | Path, dies: Death | None = None, largest_file: int | None = None
    ) -> ForkServerProcess:
        """Start a command.

        Args:
            arguments: of the command line.
            dies: when it kills itself.
            largest_file: bytes beyond which no file can grow, as on a full disk.
        """
        words = [str(word) for word in arguments]
        process = self._context.Process(target=_main, args=(self.root, words, dies, largest_file))
        process.start()
        return process

    def finish(
        self, *arguments: str | Path, dies: Death | None = None, largest_file: int | None = None
    ) -> tuple[int, str]:
        """Run a command to its end; returns its exit code, negative for a signal, and what it printed."""
        process = self.start(*arguments, dies=dies, largest_file=largest_file)
        process.join()
        assert process.exitcode is not None, "it was joined"
        return process.exitcode, output_of(self.root, process)

    def run(self, name: str, **changes: Any) -> Path:
        """Make a run that nothing disturbs; returns its folder."""
        code, output = self.finish("run", self.config(expname=name, **changes))
        assert code == 0, output
        return self.root / "runs" / name


def output_of(root: Path, process: ForkServerProcess) -> str:
    """What a process printed so far, on both streams."""
    return (root / f"output-{process.pid}.txt").read_text()


def kill_after(process: ForkServerProcess, seconds: float) -> bool:
    """Kill a process that is still there after so many seconds; returns whether it was."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _main(root: Path, arguments: Sequence[str], dies: Death | None, largest_file: int | None) -> None:
    """Body of a forked process: the command line, with its output in a file."""
    descriptor = os.open(root / f"output-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    torch.set_num_threads(1)
    if dies is not None:
        dies.arm()
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from fedmezo.cli import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two finished runs, times and memory apart."""
    results = [f"{kind}/{name}" for kind in ("adapter", "adapter_best") for name in ADAPTER_FILES]
    if not (run / "adapter").exists():
        results = [f"{kind}/{name}" for kind in ("model", "model_best") for name in MODEL_FILES]
    files = ["journal.jsonl", "partition.json", *results]
    found = [name for name in files if (run / name).read_bytes() != (other / name).read_bytes()]
    return found + ["metrics.jsonl"] * (_measured(run) != _measured(other))


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def _measured(run: Path) -> list[str]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["name"] not in ("seconds", "peak_memory")]
