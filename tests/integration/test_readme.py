"""The README's common tasks, each command as it stands there, only with fewer rounds."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SHORT = {
    "run": "federate.total_round_num=2 train.local_update_steps=2 eval.freq=1 data.subsample=0.05 "
    "data.splits=[0.8,0.1,0.1] llm.tok_len=200",
    "calibrate": "--forward-passes 200",
    "generate": "--max-new-tokens 8",
}


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text().split("## Common tasks")[1]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's reader has: the repository, a model and data."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("src", "configs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "src" / "fedmezo" / "bundled" / "base", folder / "models" / "open_llama_3b_v2")
    (folder / "data").mkdir()
    questions = [{"question": f"What is {i} plus one?", "answer": f"It is #### {i + 1}"} for i in range(300)]
    (folder / "data" / "gsm8k_train.jsonl").write_text("\n".join(map(json.dumps, questions)))
    shutil.copy(ROOT / "src" / "fedmezo" / "bundled" / "instructions.json", folder / "mine.json")
    rows = json.loads((folder / "mine.json").read_text())
    (folder / "data" / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_every_command_of_the_common_tasks(workplace: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "fedmezo"
        command = [sys.executable, "-m", *words, *shlex.split(SHORT.get(words[1], ""))]
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    adapters = [
        workplace / place / "adapter_model.safetensors" for place in ("runs/first/adapter", "replayed", "imported")
    ]
    assert len({path.read_bytes() for path in adapters}) == 1


def test_the_python_block(workplace: Path) -> None:
    if not (workplace / "runs" / "first" / "adapter").exists():
        pytest.fail("the commands before it did not make runs/first")
    (block,) = blocks("python")
    subprocess.run([sys.executable, "-c", block], cwd=workplace, check=True, env=os.environ, timeout=PATIENCE)
