"""The adapter of a run is rebuilt from base model and journal, or from a published log, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmezo.runs.journal import JournalWriter, read_journal
from fedmezo.runs.replay import initial_theta, open_model, rebuild_
from tests.runs import CASES, Runs, make_base

WEIGHTS = Path("adapter") / "adapter_model.safetensors"

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "ia3": {},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(runs: Runs) -> Path:
    return runs.run("scalars", **CASES["scalars"])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_every_adapter_with_one_thread_and_with_two(runs: Runs, tmp_path: Path, method: str, noise: str) -> None:
    changes = {
        "llm.adapter.args": [{"adapter_method": method, **ADAPTERS[method]}],
        "train.zo.noise": noise,
        "train.zo.queries": 2,
        "federate.total_round_num": 2,
        "eval.freq": 0,
    }
    folder = runs.run(f"{method} {noise}", **changes)
    journal = read_journal(folder / "journal.jsonl")
    for count in (1, 2):
        with threads(count):
            model = open_model(journal.header, journal.header.base)
            theta = initial_theta(model, journal.header)
            rebuild_(theta, journal.header, journal.records)
            model.save(theta, tmp_path / str(count))
        assert (tmp_path / str(count) / WEIGHTS.name).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_replay_writes_the_adapter(runs: Runs, run: Path, tmp_path: Path) -> None:
    code, output = runs.finish("replay", run, "--out", tmp_path / "adapter")
    assert code == 0, output
    assert "replayed 5 of 5 planned rounds: every state has the recorded hash" in output
    assert "s per 1,000 rounds of 18 scalars" in output
    for path in (run / "adapter").glob("adapter_*"):  # the card says more of the run itself
        assert (tmp_path / "adapter" / path.name).read_bytes() == path.read_bytes()
    code, output = runs.finish("replay", run, "--out", tmp_path / "adapter")
    assert (code, "is there already; nothing is overwritten" in output) == (2, True)


def test_only_journal_and_base_are_needed(runs: Runs, run: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes((run / "journal.jsonl").read_bytes())
    code, output = runs.finish("replay", tmp_path, "--to-round", "3")
    assert code == 0, output
    assert "replayed 3 of 5 planned rounds" in output


def test_what_precedes_damage_can_be_saved(runs: Runs, run: Path, tmp_path: Path) -> None:
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"weight":0.', b'"weight":1.', 1)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    code, output = runs.finish("replay", tmp_path)
    assert (code, "line 5: the line was changed" in output) == (2, True)
    assert "(fedmezo replay RUN --to-round 3)" in output
    code, output = runs.finish("replay", tmp_path, "--to-round", "3", "--out", tmp_path / "saved")
    assert code == 0, output


def test_a_journal_that_ends_early_is_replayed_with_a_word(runs: Runs, run: Path, tmp_path: Path) -> None:
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:4]) + b'{"kind":"rou')
    code, output = runs.finish("replay", tmp_path)
    assert code == 0, output
    assert "replayed 3 of 5 planned rounds" in output
    assert "the journal has no end: the run is not finished, or lines are missing at the journal's end" in output
    assert "its last line is cut off and was left out" in output


def test_the_first_state_that_differs_is_named(runs: Runs, run: Path, tmp_path: Path) -> None:
    """A forged journal, whole in itself: the chain is right, the arithmetic is not."""
    journal = read_journal(run / "journal.jsonl")
    writer = JournalWriter.create(tmp_path / "journal.jsonl", journal.header)
    for record in journal.records:
        if record.round == 2:
            part = record.contributions[0]
            assert part.scalars is not None
            forged = replace(part, scalars=(2 * part.scalars[0] + 1, *part.scalars[1:]))
            record = replace(record, contributions=(forged, *record.contributions[1:]))
        writer.append(record)
    code, output = runs.finish("replay", tmp_path)
    assert code == 2
    assert "round 2 is the first that differs" in output
    assert "the 2 rounds before it agree" in output


def test_a_weights_run_says_that_it_cannot_be_replayed(runs: Runs) -> None:
    run = runs.run("weights", **CASES["weights"])
    for words in (("replay", run), ("export", run, "--as-log", runs.root / "weights.fmz")):
        code, output = runs.finish(*words)
        assert (code, "a run of the weights protocol cannot be replayed" in output) == (2, True), output


def test_publish_and_import(runs: Runs, run: Path, tmp_path: Path) -> None:
    file, base = tmp_path / "tune.fmz", runs.root / "base"
    code, output = runs.finish("export", run, "--as-log", file)
    assert code == 0, output
    assert "5 of 5 planned rounds" in output
    assert file.stat().st_size < (run / WEIGHTS).stat().st_size
    code, output = runs.finish("import", file, "--model", base)
    assert code == 0, output
    for path in (run / "adapter").glob("adapter_*"):  # the card says more of the run itself
        assert (tmp_path / "tune-adapter" / path.name).read_bytes() == path.read_bytes()
    for words in (("export", run, "--as-log", file), ("import", file, "--model", base)):
        code, output = runs.finish(*words)
        assert (code, "is there already; nothing is overwritten" in output) == (2, True)


def test_a_cut_log_is_not_published_as_if_it_were_whole(runs: Runs, run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    lines = (cut / "journal.jsonl").read_bytes().split(b"\n")

    def publish(content: bytes, *words: str) -> tuple[int, str]:
        (cut / "journal.jsonl").write_bytes(content)
        code, output = runs.finish("export", cut, "--as-log", tmp_path / "cut.fmz", *words)
        (tmp_path / "cut.fmz").unlink(missing_ok=True)
        return code, " ".join(output.split())

    code, output = publish(b"\n".join(lines[:3]) + b"\n" + lines[3][:40])
    assert (code, "the journal is cut: the line behind its 2 whole rounds" in output) == (2, True), output
    assert publish(b"\n".join(lines[:3]) + b"\n" + lines[3][:40], "--to-round", "2")[0] == 0
    code, output = publish(lines[0] + b"\n" + lines[1][:40])
    assert (code, "the journal is cut" in output, "--to-round" in output) == (2, True, False), output
    assert publish(lines[0] + b"\n")[0] == 2
    code, output = publish(b"\n".join(lines[:3]) + b"\n")
    assert (code, "the journal has no end: the run is not finished" in output) == (0, True), output


def test_a_place_that_cannot_be_is_said_before_the_work(runs: Runs, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "below", tmp_path / ("x" * 300), tmp_path / "file"):
        code, output = runs.finish("replay", run, "--out", out)
        assert code == 2, output
        assert "--out" in output
        assert "replayed" not in output
        assert "Traceback" not in output


def test_another_base_model_is_refused(runs: Runs, run: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "tune.fmz", make_base(tmp_path / "base", seed=6)
    assert runs.finish("export", run, "--as-log", file)[0] == 0
    for words in (("import", file, "--model", other), ("replay", run, "--model", other)):
        code, output = runs.finish(*words)
        assert code == 2
        assert f"{other} is not the base model of this run" in output
    file.write_bytes(file.read_bytes()[:-1])
    code, output = runs.finish("import", file, "--model", runs.root / "base")
    assert (code, "the file is damaged" in output) == (2, True)
