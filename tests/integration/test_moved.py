"""A run whose model and data are somewhere else by now: each command finds them by its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import Death, Runs


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that was stopped after its third round, and whose model and data then moved."""
    runs = Runs(tmp_path_factory.mktemp("before") / "runs")
    runs.run("whole")
    runs.finish("run", runs.config(expname="stopped"), dies=Death(after_rounds=3))
    for name in ("base", "data"):
        (runs.root / name).rename(runs.root / f"{name}-moved")
    return runs


COMMANDS: dict[str, tuple[str, ...]] = {
    "eval": ("whole",),
    "generate": ("whole", "w5 w6", "--max-new-tokens", "3"),
    "replay": ("whole",),
    "resume": ("stopped",),
    "merge": ("whole", "--out", "merged"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_to_give_and_takes_it(moved: Runs, command: str) -> None:
    name, *more = COMMANDS[command]
    words = [command, str(moved.root / "runs" / name), *(str(moved.root / w) if w == "merged" else w for w in more)]
    code, output = moved.finish(*words)
    assert code == 2
    assert f"model.type is '{moved.root}/base', but there is no such directory" in output
    assert "If a run's model is somewhere else by now: --model BASE" in output
    places: list[str | Path] = ["--model", moved.root / "base-moved", "--data-root", moved.root / "data-moved"]
    code, output = moved.finish(*words, *places)
    assert code == 0, output
