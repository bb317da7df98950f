"""FedMeZO from Python: the commands' own results, with a program's objects where it has some."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedmezo
from fedmezo.errors import ConfigError, DataError, ModelError, RunError, TrainingError
from fedmezo.zo.estimators.two_point import TwoPoint

BUNDLED = Path(fedmezo.__file__).parent / "bundled"
SHORT: dict[str, Any] = {
    "federate.total_round_num": 3,
    "train.local_update_steps": 2,
    "data.subsample": 0.1,
    "eval.samples": 0,
    "eval.freq": 2,
}
ROWS = json.loads((BUNDLED / "instructions.json").read_text())


def small_run(folder: Path, config: Any = None, **keys: Any) -> fedmezo.Run:
    return fedmezo.run(config, outdir=str(folder), expname="run", quiet=True, **{**SHORT, **keys})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> fedmezo.Run:
    return small_run(tmp_path_factory.mktemp("plain"))


def test_a_run_can_be_read(plain: fedmezo.Run) -> None:
    assert plain.finished
    assert plain.config.federate.total_round_num == 3
    assert list(plain.values("val_loss")) == [0, 2, 3]
    assert plain.values("train_loss", client=1).keys() == {1, 2, 3}
    assert {"event", "round", "client", "name", "value", "unit", "group"} == plain.metrics[0].keys()
    assert fedmezo.load_run(plain.folder).journal == plain.journal
    assert (plain.result / "adapter_config.json").is_file()
    assert (plain.best_result / "adapter_config.json").is_file()


def test_the_model_of_a_run_generates(plain: fedmezo.Run) -> None:
    model: Any
    model, tokenizer = plain.model()
    ids = torch.tensor([tokenizer("Name a sound")["input_ids"]])
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    assert plain.answer("Name a sound", max_new_tokens=4)
    first, _ = plain.model(round_index=0)
    assert not any(bool(p.any()) for n, p in first.named_parameters() if "lora_B" in n)  # before training


def test_replay_gives_the_last_state(plain: fedmezo.Run, tmp_path: Path) -> None:
    assert fedmezo.replay(plain.folder, out=tmp_path / "again") == plain.journal.hashes[-1]
    assert fedmezo.replay(plain.folder, to_round=1) == plain.journal.hashes[1]
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (plain.result / name).read_bytes()


def test_a_mapping_is_a_configuration(plain: fedmezo.Run, tmp_path: Path) -> None:
    again = small_run(tmp_path, plain.config.model_dump(mode="json"))
    assert again.journal.hashes == plain.journal.hashes
    checked = fedmezo.check({"llm.adapter.use": True, "data": {"type": "bundled"}, "model.type": "bundled"}, seed=7,
                            **{"federate.client_num": 2})  # fmt: skip
    assert (checked.seed, checked.federate.client_num, checked.llm.adapter.use) == (7, 2, True)


def largest_b(model: Any, _tokenizer: Any) -> float:
    with torch.no_grad():
        return max(float(tensor.abs().max()) for name, tensor in model.named_parameters() if "lora_B" in name)


def test_functions_hear_of_rounds_and_measure(tmp_path: Path) -> None:
    rounds: list[int] = []
    evaluations: list[tuple[int, float | None]] = []
    run = small_run(
        tmp_path,
        metrics={"largest_b": largest_b},
        on_round=lambda event: rounds.append(event.round),
        on_evaluation=[lambda event: evaluations.append((event.round, event.value("largest_b")))],
    )
    assert rounds == [0, 1, 2, 3]
    assert dict(evaluations) == run.values("largest_b")
    values = list(run.values("largest_b").values())
    assert values[0] == 0 < values[1]


def test_parts_of_a_programs_own(tmp_path: Path) -> None:
    """The first client alone counts, at twice the middle rate; all of it is in the journal, and replays."""
    run = small_run(
        tmp_path,
        strategy=lambda _seed, _round, cohort, _histories: [1.0 if client == 0 else -1.0 for client in cohort],
        weigh=lambda reports: [1.0 if report.client == 0 else 0.0 for report in reports],
        **{"train.optimizer.lr": 0.02, "train.lr_width": 0.01, "train.schedule.type": "constant"},
    )
    for record in run.journal.records:
        assert [part.weight for part in record.contributions] == [1.0, 0.0, 0.0]
        assert [round(part.rate, 3) for part in record.contributions] == [0.03, 0.01, 0.01]
    assert fedmezo.replay(run.folder) == run.journal.hashes[-1]


@dataclass(frozen=True, slots=True)
class Signs(TwoPoint):
    """The sign of each projected gradient."""

    def scalars(self, losses: Sequence[float]) -> tuple[float, ...] | None:
        found = TwoPoint.scalars(self, losses)
        return None if found is None else tuple(math.copysign(1.0, g) for g in found)


def test_an_estimator_of_ones_own(tmp_path: Path) -> None:
    named = {"train.zo.estimator": "two-point", "train.optimizer.lr": 0.001}
    run = small_run(tmp_path, estimator=Signs, **named)
    sent = {g for record in run.journal.records for part in record.contributions for g in part.scalars or ()}
    assert sent == {1.0, -1.0}
    assert fedmezo.replay(run.folder) == run.journal.hashes[-1]
    with pytest.raises(ConfigError, match="has 2 directions a step"):
        small_run(tmp_path / "more", estimator=lambda settings: Signs(replace(settings, queries=2)), **named)


class Halves:
    """The first client has half of each category, the others share the rest."""

    by_category = True

    def shares(self, train_counts: Any, num_clients: int, _rng: Any) -> Any:
        row = [0.5] + [0.5 / (num_clients - 1)] * (num_clients - 1)
        return torch.tensor([row] * len(train_counts)).double().numpy()

    def __str__(self) -> str:
        return "halves"


def test_a_splitter_of_ones_own(tmp_path: Path) -> None:
    run = small_run(tmp_path, splitter=Halves())
    division = json.loads((run.folder / "partition.json").read_text())
    sizes = [len(client["train"]) for client in division["clients"]]
    assert division["splitter"] == "halves"
    assert 0.4 < sizes[0] / sum(sizes) < 0.6


def handed() -> tuple[Any, Any]:
    base = BUNDLED / "base"
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def tuned(folder: Path, **changes: Any) -> fedmezo.Run:
    model, tokenizer = handed()
    clients = [ROWS[:20], Dataset.from_list(ROWS[20:40])]
    keys = {"train.zo.eps": 0.01, "train.optimizer.lr": 0.02, "llm.tok_len": 200, "federate.total_round_num": 3}
    given = {"validation": ROWS[40:50], "test": ROWS[50:60], "quiet": True, "outdir": str(folder), **keys} | changes
    return fedmezo.tune(model, tokenizer, clients, **given)


def test_a_programs_own_model_and_data(tmp_path: Path) -> None:
    run = tuned(tmp_path)
    assert run.finished
    assert len(run.journal.records) == 3
    assert run.values("val_loss").keys() == {0, 1, 2, 3}
    assert [row["client"] for row in run.metrics if row["name"] == "num_examples"] == []
    division = json.loads((run.folder / "partition.json").read_text())
    assert [len(client["train"]) for client in division["clients"]] == [20, 20]
    with pytest.raises(ModelError, match="handed over by a program"):
        run.model()
    again = tuned(tmp_path)
    assert again.journal.hashes == run.journal.hashes


def test_a_run_over_objects_goes_on(tmp_path: Path) -> None:
    def stop(event: fedmezo.RoundEvent) -> None:
        if event.round == 2:
            raise StopIteration

    whole = tuned(tmp_path / "whole")
    with pytest.raises(StopIteration):
        tuned(tmp_path / "cut", on_round=stop)
    (folder,) = (tmp_path / "cut").iterdir()
    assert not fedmezo.load_run(folder).finished
    model, tokenizer = handed()
    clients = [ROWS[:20], ROWS[20:40]]
    run = fedmezo.tune(model, tokenizer, clients, ROWS[40:50], ROWS[50:60], resume=folder, quiet=True)
    assert run.finished
    assert run.journal.hashes == whole.journal.hashes


def test_mistakes_are_the_commands_errors(plain: fedmezo.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nearest known key: seed"):
        fedmezo.check(seeed=1)
    with pytest.raises(RunError, match="no run's folder"):
        fedmezo.load_run(tmp_path)
    with pytest.raises(ConfigError, match="it is taken"):
        small_run(tmp_path, metrics={"val_loss": lambda *_: 0.0})
    with pytest.raises(TrainingError, match="numbers from 0 to 1"):
        small_run(tmp_path, weigh=lambda reports: [2.0] * len(reports))
    with pytest.raises(ConfigError, match=r"needs federate\.direction_groups: 0, not 1"):
        small_run(tmp_path, weigh=lambda reports: [1.0] * len(reports), **{"federate.direction_groups": 1})
    model, tokenizer = handed()
    with pytest.raises(DataError, match=r"clients\[1\], row 0"):
        fedmezo.tune(model, tokenizer, [ROWS[:5], [{"instruction": "no answer"}]], quiet=True, outdir=str(tmp_path))
    with pytest.raises(DataError, match="at least one client"):
        fedmezo.tune(model, tokenizer, [], quiet=True, outdir=str(tmp_path))
    with pytest.raises(ConfigError, match="own configuration"):
        fedmezo.tune(model, tokenizer, [ROWS[:5]], resume=plain.folder, seed=3)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fedmezo.nothing
