"""The command line up to the point where a run starts: forms of arguments, exit codes, and what is imported."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from fedmezo import __version__
from fedmezo.cli import main
from fedmezo.config import Config
from fedmezo.errors import TrainingError

ROOT = Path(__file__).resolve().parents[2]
TESTCASE = str(ROOT / "configs" / "mezo_testcase.yaml")


class FakeExperiment(types.ModuleType):
    """Stands in for the module that trains, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__("fedmezo.runs.experiment")
        self.configs: list[Config] = []
        self.outcome: int | BaseException = 0

    def run(self, config: Config, notices: Sequence[str]) -> int:
        self.configs.append(config)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> FakeExperiment:
    fake = FakeExperiment()
    monkeypatch.setitem(sys.modules, "fedmezo.runs.experiment", fake)
    return fake


def test_check_sums_up_and_says_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TESTCASE, "eval.count_flops=False"]) == 0
    assert (
        capsys.readouterr().out
        == """\
trainer: mezotrainer, scalars protocol
model:   openlm-research/open_llama_3b_v2, lora
data:    alpaca, iid over 3 clients
rounds:  100, each of 3 clients with 5 steps, batch size 1
rate:    1e-05, frozen
notice: eval.count_flops has no effect: floating-point operations are not counted
ok
"""
    )


def test_check_shows_epochs_and_the_width_of_a_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TESTCASE, "train.batch_or_epoch=epoch", "train.train_strategy=random"]) == 0
    output = capsys.readouterr().out
    assert "rounds:  100, each of 3 clients with 5 passes over their data, batch size 1\n" in output
    assert "rate:    1e-05 +/- 5e-06, random\n" in output


def test_a_mistake_is_one_message_on_stderr_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TESTCASE, "seed=x"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "override 'seed=x': seed: got 'x'; needs a whole number from 0 to 18446744073709551615\n"


@pytest.mark.parametrize(
    "words",
    [
        ["run", TESTCASE, "seed=7", "train.optimizer.lr=2e-5"],
        ["run", TESTCASE, "seed=7", "--engine", "simulation", "train.optimizer.lr=2e-5"],
        ["run", "--cfg", TESTCASE, "seed", "7", "train.optimizer.lr", "2e-5"],
        ["--cfg", TESTCASE, "seed", "7", "train.optimizer.lr", "2e-5"],
        ["--cfg", TESTCASE, "seed=7", "train.optimizer.lr=2e-5"],
        [f"--cfg={TESTCASE}", "seed", "7", "train.optimizer.lr", "2e-5", "device", "-1"],
    ],
)
def test_the_forms_of_run_mean_the_same(experiment: FakeExperiment, words: list[str]) -> None:
    assert main(words) == 0
    (config,) = experiment.configs
    assert (config.seed, config.train.optimizer.lr, config.federate.total_round_num) == (7, 2e-5, 100)


@pytest.mark.parametrize("words", [["run", TESTCASE, "--bogus", "seed=7"], ["replay", "a", "b"]])
def test_words_that_no_command_takes_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"unrecognized arguments: {' '.join(words[2:])}\n" in capsys.readouterr().err


def test_run_returns_what_the_experiment_returns(experiment: FakeExperiment) -> None:
    experiment.outcome = 130
    assert main(["run", TESTCASE]) == 130


def test_errors_for_users_have_no_traceback(experiment: FakeExperiment, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.outcome = TrainingError("every loss is infinite")
    assert main(["run", TESTCASE]) == 1
    assert capsys.readouterr().err == "every loss is infinite\n"


def test_an_interrupt_is_130(experiment: FakeExperiment) -> None:
    experiment.outcome = KeyboardInterrupt()
    assert main(["run", TESTCASE]) == 130


def test_a_defect_is_not_hidden(experiment: FakeExperiment) -> None:
    experiment.outcome = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["run", TESTCASE])


def test_several_machines_are_explained_by_run_and_pass_the_check(
    experiment: FakeExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", TESTCASE, "federate.mode=distributed"]) == 0
    assert main(["run", TESTCASE, "federate.mode=distributed"]) == 2
    error = capsys.readouterr().err
    for way in ("fedmezo serve KIT CONFIG", "fedmezo run CONFIG --engine flare", "federate.mode=standalone"):
        assert way in error
    assert experiment.configs == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fedmezo {__version__}\n"
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "fedmezo run my.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fedmezo.cli import main; status = main(sys.argv[1:]);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code, "check", TESTCASE], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "peft", "numpy", "rich", "matplotlib", "tensorboard", "safetensors"}
    assert result.stdout.endswith("ok\n")
    assert heavy.isdisjoint(result.stderr.split())


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "fedmezo", "check", TESTCASE], capture_output=True, check=True)
    assert result.stdout.endswith(b"ok\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_terminal_cannot_show_ends_nothing(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = (TextIOWrapper(BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    assert main(["check", "expname=\u8bad\u7ec3", "federate.share_local_model=True"]) == 0
    assert main(["check", "outdir=\u8bad", "seed=\u7ec3"]) == 2
    print("\u8bad\ud800")
    for stream in (out, error):
        stream.flush()
    assert "seed: got '?'" in error.buffer.getvalue().decode(encoding)
    assert out.buffer.getvalue().decode(encoding).endswith("??\n")


def test_check_says_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", f"data.root={tmp_path}"]
    assert main([*words, f"model.type={tmp_path}/none", "data.type=mine.jsonl"]) == 2
    assert capsys.readouterr().err == (
        f"model.type is {tmp_path}/none, but there is no such folder or file here\n"
        f"data.type is mine.jsonl, but there is no file {tmp_path}/mine.jsonl; put it there, or change data.root\n"
    )
    (tmp_path / "mine.jsonl").touch()
    assert main([*words, "model.type=owner/model", "data.type=mine.jsonl"]) == 0
    assert main([*words, "data.type=gsm8k"]) == 0  # would be fetched


def test_a_name_in_a_folder_that_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "model.type=models/mine"]) == 0
    (tmp_path / "models").mkdir()
    assert main(["check", "model.type=models/mine"]) == 2


def test_a_run_without_a_rate_hears_of_calibrate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(TESTCASE).read_text().replace("    lr: 1e-5\n", "")
    (tmp_path / "c.yaml").write_text(text)
    for words, said in (([], True), (["train.optimizer.lr=1e-5"], False), (["train.optimizer.lr=auto"], False)):
        assert main(["check", str(tmp_path / "c.yaml"), *words]) == 0
        assert ("`fedmezo calibrate` measures what suits this one" in capsys.readouterr().out) is said


def test_a_present_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["check"]) == 2
    assert "the folder that you are in is not there any more" in capsys.readouterr().err
