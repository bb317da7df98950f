"""Where a run's files are: stored absolute, and replaced after a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmezo.config import Config, load_config
from fedmezo.models.loading import locate
from fedmezo.runs.places import Moved, anchored


def relative(**model: object) -> Config:
    return Config.model_validate(
        {
            "federate": {"client_num": 2, "save_to": "out", "restore_from": "old"},
            "data": {"type": "mine.jsonl", "root": "texts"},
            "model": {"type": "base@huggingface_llm", **model},
            "llm": {"adapter": {"use": True}, "cache": {"model": "hub"}},
        }
    )


def test_what_is_stored_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config = anchored(relative())
    assert config.model.type == f"{tmp_path}/base"
    assert (config.data.root, config.outdir) == (f"{tmp_path}/texts", f"{tmp_path}/runs")
    assert (config.federate.save_to, config.federate.restore_from) == (f"{tmp_path}/out", f"{tmp_path}/old")
    assert config.llm.cache.model == f"{tmp_path}/hub"
    assert locate("base") == locate("./base") == f"{tmp_path}/base"
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    monkeypatch.chdir("/")
    assert anchored(load_config(tmp_path / "config.yaml").config) == config


def test_a_hub_name_stays_one_and_nothing_stays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = relative(type="owner/model")
    assert anchored(config).model.type == "owner/model"
    nothing = config.model_copy(update={"federate": config.federate.model_copy(update={"save_to": ""})})
    assert anchored(nothing).federate.save_to == ""


def test_a_move_replaces_what_it_names_alone() -> None:
    config = relative()
    assert Moved().applied(config) == config
    moved = Moved("elsewhere", Path("/data"), own_code=True).applied(config)
    assert (moved.model.type, moved.data.root, moved.model.trust_remote_code) == ("elsewhere", "/data", True)
    trusted = relative(trust_remote_code=True)
    assert Moved("elsewhere").applied(trusted).model.trust_remote_code
