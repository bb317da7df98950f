"""A run that is stopped in any way and resumed ends as the one that was left alone, to the bit, or says why not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from fedmezo.cli import main
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.loading import load_base
from fedmezo.runs.snapshots import snapshot_path, snapshot_rounds, snapshots_of
from tests.hostile import chained
from tests.runs import (
    ADAPTER_FILES,
    CASES,
    Death,
    Runs,
    differences,
    kill_after,
    make_base,
    make_data,
    output_of,
    write_config,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> Path:
    return runs.run("scalars", **CASES["scalars"])


@pytest.fixture(scope="module")
def stopped(runs: Runs) -> Path:
    """A run of five rounds that was killed when three were committed."""
    run = runs.root / "runs" / "stopped"
    process = runs.start("run", runs.config(expname="stopped", **CASES["scalars"]), dies=Death(after_rounds=3))
    process.join()
    assert len((run / "journal.jsonl").read_text().splitlines()) == 4
    return run


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def resume_to_the_end(runs: Runs, run: Path) -> str:
    code, output = runs.finish("resume", run)
    assert code == 0, output
    return output


def refused(runs: Runs, run: Path) -> str:
    """The message of a resume that is refused and touches nothing."""
    before = contents(run)
    code, output = runs.finish("resume", run)
    assert code == 2, output
    assert "Traceback" not in output
    assert contents(run) == before
    return output


def contents(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "log.txt")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def has_begun(run: Path) -> bool:
    journal = run / "journal.jsonl"
    return journal.exists() and journal.read_bytes().count(b"\n") > 0


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments(runs: Runs, case: str) -> None:
    undisturbed = runs.root / "runs" / case
    if not undisturbed.exists():
        runs.run(case, **CASES[case])
    rng = random.Random(case)
    run = runs.root / "runs" / f"{case} killed"
    started = time.monotonic()
    config = runs.config(expname=run.name, **CASES[case])
    assert runs.finish("run", config, dies=Death(after_rounds=rng.randint(1, 2)))[0] == -signal.SIGKILL
    to_second_round = time.monotonic() - started
    for _ in range(2):  # they may be through before
        kill_after(runs.start("resume", run), to_second_round + rng.uniform(-0.3, 0.3))
    resume_to_the_end(runs, run)
    assert differences(run, undisturbed) == []


@pytest.mark.parametrize("number", [3, 5, 8, 11, 13, 14, 15, 18, 24, 29, 34, 40])
def test_killed_between_two_writes(runs: Runs, undisturbed: Path, number: int) -> None:
    run = runs.root / "runs" / f"write {number}"
    code, _ = runs.finish("run", runs.config(expname=run.name, **CASES["scalars"]), dies=Death(at_write=number))
    assert code == -signal.SIGKILL
    runs.finish("resume", run, dies=Death(at_write=4))
    resume_to_the_end(runs, run)
    assert differences(run, undisturbed) == []
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def test_an_old_snapshot_that_a_kill_left_goes_when_the_run_goes_on(runs: Runs, undisturbed: Path) -> None:
    """As if killed between a round's commit and the removal of the snapshot before it."""
    run = runs.root / "runs" / "left"
    config = runs.config(expname=run.name, **CASES["scalars"])
    assert runs.finish("run", config, dies=Death(after_rounds=4))[0] == -signal.SIGKILL
    saved = snapshot_rounds(snapshots_of(run))
    shutil.copy(snapshot_path(snapshots_of(run), saved[0]), snapshot_path(snapshots_of(run), 1))
    resume_to_the_end(runs, run)
    assert snapshot_rounds(snapshots_of(run)) == snapshot_rounds(snapshots_of(undisturbed))


def interrupt(process: ForkServerProcess, number: int) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_round_and_says_how_to_go_on(runs: Runs, undisturbed: Path, number: signal.Signals) -> None:
    run = runs.root / "runs" / f"signal {number}"
    config = runs.config(expname=run.name, **CASES["scalars"])
    code, output = runs.finish("run", config, dies=Death(after_rounds=2, by=number))
    assert code == 130, output
    assert f"to go on: fedmezo resume {run}" in output
    assert "Traceback" not in output
    resume_to_the_end(runs, run)
    assert differences(run, undisturbed) == []


def test_ctrl_c_twice_drops_the_round(runs: Runs) -> None:
    endless = {**CASES["scalars"], "train.local_update_steps": 20_000}
    run = runs.root / "runs" / "twice"
    process = runs.start("run", runs.config(expname=run.name, **endless))
    measured = run / "metrics.jsonl"
    wait_until(lambda: measured.exists() and measured.stat().st_size > 0, "the first evaluation")
    interrupt(process, signal.SIGINT)
    wait_until(lambda: "once more (SIGINT) to drop it" in output_of(runs.root, process), "the notice")
    interrupt(process, signal.SIGINT)
    process.join()
    output = output_of(runs.root, process)
    assert process.exitcode == 130, output
    assert f"To go on: fedmezo resume {run}" in output
    assert "Traceback" not in output
    assert len((run / "journal.jsonl").read_text().splitlines()) == 1


def test_nothing_left_to_do(runs: Runs, undisturbed: Path) -> None:
    before = contents(undisturbed)
    assert "nothing left to do: the run ended after round 5" in resume_to_the_end(runs, undisturbed)
    assert contents(undisturbed) == before


def test_stopped_before_the_first_round(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(undisturbed / "config.yaml", run)
    assert "stopped before its first round: starting it" in resume_to_the_end(runs, run)
    assert differences(run, undisturbed) == []


def test_no_run_there(runs: Runs, tmp_path: Path) -> None:
    code, output = runs.finish("resume", tmp_path / "nowhere")
    assert (code, "there is no such run folder" in output) == (2, True)
    assert "config.yaml is missing: this is no run folder" in refused(runs, tmp_path)


def test_two_processes(runs: Runs) -> None:
    run = runs.root / "runs" / "busy"
    process = runs.start("run", runs.config(expname=run.name, **CASES["scalars"]))
    wait_until(lambda: has_begun(run), "the journal")
    interrupt(process, signal.SIGSTOP)  # else it might be through by then
    code, output = runs.finish("resume", run)
    interrupt(process, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0
    assert code == 2
    assert "another process is working on this run" in output


def test_a_changed_configuration_is_refused_and_can_be_forced(runs: Runs, copy: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["train"]["optimizer"]["lr"] = 0.02
    config["outdir"] = "elsewhere"  # of no consequence
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    message = refused(runs, copy)
    assert "config.train.optimizer.lr: 0.01 then, 0.02 now" in message
    assert "outdir" not in message
    assert f"fedmezo resume {copy} --force" in message
    code, output = runs.finish("resume", copy, "--force")
    assert code == 0, output
    remark = (copy / "journal.jsonl").read_text().splitlines()[4]
    assert "resumed by force at round 3; config.train.optimizer.lr: 0.01 then, 0.02 now" in remark
    assert "resumed by force at round 3" in runs.finish("replay", copy)[1]


def test_changed_versions_and_machine_are_refused(runs: Runs, copy: Path) -> None:
    text = (copy / "environment.json").read_text()
    lanes = json.loads(text)["lanes"]
    changed = text.replace('"peft": "', '"peft": "0.').replace(f'"lanes": {lanes}', '"lanes": 77')
    (copy / "environment.json").write_text(changed)
    message = refused(runs, copy)
    assert "versions.peft: 0." in message
    assert f"lanes: 77 then, {lanes} now" in message


def test_threads_are_restored(runs: Runs, undisturbed: Path, copy: Path) -> None:
    """Had the resumed process kept its own count, which its command line sets, the comparison would refuse it."""
    path = copy / "environment.json"
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 2'))
    resume_to_the_end(runs, copy)


def test_lanes_are_restored(runs: Runs, copy: Path) -> None:
    path = copy / "environment.json"
    document = json.loads(path.read_text())
    assert document["lanes"] > 2
    path.write_text(json.dumps({**document, "lanes": 2}))
    resume_to_the_end(runs, copy)


def test_keys_that_are_new_are_no_change_at_their_defaults(runs: Runs, copy: Path) -> None:
    path = copy / "environment.json"
    document = json.loads(path.read_text())
    assert document["config"]["train"].pop("gradient_checkpointing") is False  # as if it had not been there yet
    assert document["config"]["llm"]["adapter"]["args"][0].pop("lora_dropout") == 0.1
    del document["config"]["fedprox"]
    path.write_text(json.dumps(document))
    message = refused(runs, copy)
    assert "lora_dropout" in message
    assert "gradient_checkpointing" not in message
    assert "fedprox" not in message
    document["config"]["llm"]["adapter"]["args"][0]["lora_dropout"] = 0.1
    path.write_text(json.dumps(document))
    resume_to_the_end(runs, copy)


def test_changed_data_are_refused(runs: Runs, copy: Path) -> None:
    data = runs.root / "data" / "words.jsonl"
    before = data.read_text()
    try:
        data.write_text("".join(reversed(before.splitlines(keepends=True))))
        assert "encoded data set: " in refused(runs, copy)
    finally:
        data.write_text(before)


def test_another_base_model_is_refused(runs: Runs, copy: Path) -> None:
    weights = runs.root / "base" / "model.safetensors"
    before = weights.read_bytes()
    try:
        state = safetensors.torch.load(before)
        state["model.norm.weight"] *= 2
        weights.write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}))
        assert "weights of the base model: " in refused(runs, copy)
    finally:
        weights.write_bytes(before)


def test_a_damaged_snapshot_is_refused(runs: Runs, undisturbed: Path, copy: Path) -> None:
    snapshot = copy / "snapshots" / "theta_00000003.safetensors"
    content = bytearray(snapshot.read_bytes())
    content[-1] ^= 1
    snapshot.write_bytes(content)
    assert f"{snapshot}: its state is" in refused(runs, copy)
    snapshot.unlink()  # as the message proposes: the journal alone will do
    resume_to_the_end(runs, copy)


def test_lines_missing_at_the_end_of_the_journal(runs: Runs, copy: Path) -> None:
    journal = copy / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    assert "journal.jsonl ends after round 1, but metrics and snapshots know round 3" in refused(runs, copy)
    journal.unlink()
    assert "journal.jsonl is missing, though the run had begun" in refused(runs, copy)


def test_missing_and_damaged_metrics(runs: Runs, copy: Path) -> None:
    metrics = copy / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"round": 2' not in line))
    assert "metrics.jsonl has nothing of 1 rounds, the first of them 2" in refused(runs, copy)
    metrics.write_text("".join([*lines[:5], "{]\n", *lines[5:]]))
    assert "metrics.jsonl, line 6: not a JSON object" in refused(runs, copy)


def test_a_weights_run_without_its_last_snapshot(runs: Runs, tmp_path: Path) -> None:
    run = runs.root / "runs" / "weights stopped"
    runs.finish("run", runs.config(expname=run.name, **CASES["weights"]), dies=Death(after_rounds=2))
    for snapshot in (run / "snapshots").iterdir():
        snapshot.unlink()
    assert "can go on only from the state after its last round" in refused(runs, run)


def test_a_run_from_a_saved_adapter(runs: Runs, undisturbed: Path) -> None:
    changes = {**CASES["scalars"], "federate.restore_from": str(undisturbed)}
    whole = runs.run("restored", **changes)
    run = runs.root / "runs" / "restored stopped"
    runs.finish("run", runs.config(expname=run.name, **changes), dies=Death(after_rounds=3))
    resume_to_the_end(runs, run)
    assert differences(run, whole) == []
    code, output = runs.finish("replay", run)
    assert (code, "replayed 5 of 5 planned rounds" in output) == (0, True), output


def test_publishing_a_run_from_a_saved_adapter(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    run = runs.run("restored published", **CASES["scalars"], **{"federate.restore_from": str(undisturbed / "adapter")})
    file, base = tmp_path / "restored.fmz", ("--model", runs.root / "base")
    code, output = runs.finish("export", run, "--as-log", file)
    assert (code, "--restore-from ADAPTER" in output) == (0, True), output
    for words, message in (
        ((), "the run started from a saved adapter, of the state"),
        (("--restore-from", run / "adapter"), "the run started from another adapter: its state was"),
        (("--restore-from", tmp_path / "nowhere"), "cannot be read"),
    ):
        code, output = runs.finish("import", file, *base, *words)
        assert (code, message in output, "Traceback" in output) == (2, True, False), output
    code, output = runs.finish("import", file, *base, "--restore-from", undisturbed / "adapter")
    assert code == 0, output
    for name in ADAPTER_FILES:
        assert (tmp_path / "restored-adapter" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    code, output = runs.finish("export", undisturbed, "--as-log", tmp_path / "fresh.fmz")
    code, output = runs.finish("import", tmp_path / "fresh.fmz", *base, "--restore-from", undisturbed / "adapter")
    assert (code, "the run started from a fresh adapter" in output) == (2, True), output


@pytest.mark.parametrize("largest_file", [300, 1000, 4000, 9000, 20000])
def test_a_full_disk(runs: Runs, undisturbed: Path, largest_file: int) -> None:
    run = runs.root / "runs" / f"full {largest_file}"
    code, output = runs.finish("run", runs.config(expname=run.name, **CASES["scalars"]), largest_file=largest_file)
    assert code == 1, output
    assert "Traceback" not in output
    [message] = [line for line in output.splitlines() if "File too large" in line]
    if not (run / "config.yaml").exists():
        assert "nothing had begun" in message
        return
    assert message.startswith(str(run))
    assert f"fedmezo resume {run}" in message
    resume_to_the_end(runs, run)
    assert differences(run, undisturbed) == []


def test_a_run_of_an_earlier_version_that_grew_its_base_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    described = base / "tokenizer_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"pad_token": None}))
    make_data(tmp_path / "data")
    config = write_config(tmp_path / "run.yaml", base, tmp_path / "data", **{"federate.total_round_num": 1})
    assert main(["run", str(config), "expname=old"]) == 0
    journal = tmp_path / "runs" / "old" / "journal.jsonl"
    header, first, *_ = [json.loads(line) for line in journal.read_text().splitlines()]
    grown, _ = load_base(str(base), None, torch.float32, torch.device("cpu"), grown=True)
    lines = [{**header, "base_hash": base_hash(grown)}, first]
    journal.write_bytes(chained([{key: line[key] for key in line if key != "chain"} for line in lines]))
    assert main(["resume", str(journal.parent)]) == 2
    assert "an earlier version began this run, on a base model to which it had added" in capsys.readouterr().err
