"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "own_data.py": "after 5 rounds: validation loss",
    "compare.py": "train_strategy=model-diff",
    "own_parts.py": "replayed: True",
}


def read_notebook() -> Any:
    return nbformat.read(EXAMPLES / "first_run.ipynb", as_version=4)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", SAID)
def test_a_script_says_what_it_should(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAID[name] in done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own machinery
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = read_notebook()
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert any("image/png" in str(cell.get("outputs")) for cell in notebook.cells)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = read_notebook()
    assert not any(cell.get("outputs") for cell in notebook.cells)
