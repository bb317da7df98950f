"""Whole runs whose sums or noise hide what clients have."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")
pytest.importorskip("Crypto")
pytest.importorskip("opacus")

import fedmezo
from fedmezo.config import load_config
from fedmezo.errors import ConfigError
from fedmezo.machines.guards import guarded
from fedmezo.machines.settings import WorkerOptions, shared_settings, site_config
from fedmezo.machines.worker import make_masking
from fedmezo.runs import assemble
from fedmezo.runs.journal import read_journal
from tests.runs import make_base, make_data, write_config

GROUPS = {
    "federate.client_num": 7,
    "federate.direction_groups": 2,
    "federate.total_round_num": 3,
    "federate.ignore_weight": True,
    "eval.freq": 0,
}
CLIENTS = {"privacy.level": "client", "privacy.clip": 0.5}


class Small:
    """A folder with a model, data, and runs that are made in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base, self._data = make_base(root / "base"), make_data(root / "data")

    def config(self, name: str, **changes: Any) -> Path:
        return write_config(self.root / f"{name}.yaml", self._base, self._data, **changes)

    def run(self, name: str, **changes: Any) -> fedmezo.Run:
        return fedmezo.run(self.config(name, **{"expname": name, "data.keep_tokens": False, **changes}), quiet=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def open_run(small: Small) -> fedmezo.Run:
    return small.run("open", **GROUPS)


def hashes(run: fedmezo.Run) -> list[str]:
    return [record.state_hash for record in run.journal.records]


def test_secure_sums_give_the_open_run_to_the_bit(small: Small, open_run: fedmezo.Run) -> None:
    secure = small.run("secure", **GROUPS, **{"federate.secure_aggregation": True})
    assert hashes(secure) == hashes(open_run)
    assert secure.journal.header.secure_aggregation
    assert [record.groups for record in secure.journal.records] == [
        record.groups for record in open_run.journal.records
    ]
    assert secure.values("bytes_up")[3] > open_run.values("bytes_up")[3]


def test_no_clip_and_no_noise_change_nothing(small: Small, open_run: fedmezo.Run) -> None:
    for level in ("client", "example"):
        none = small.run(f"none {level}", **GROUPS, **{"privacy.level": level, "privacy.noise_multiplier": 0.0})
        assert hashes(none) == hashes(open_run)
        assert "epsilon" not in {metric["name"] for metric in none.metrics}


def test_noise_is_the_systems_and_what_is_spent_is_kept(small: Small, open_run: fedmezo.Run) -> None:
    noise = GROUPS | CLIENTS | {"privacy.epsilon": 4.0}
    first, second = small.run("noise", **noise), small.run("again", **noise)
    assert first.journal.records[0].groups[0].coefficients != second.journal.records[0].groups[0].coefficients
    assert [record.epsilon for record in first.journal.records] == [record.epsilon for record in second.journal.records]
    spent = [record.epsilon or 0.0 for record in first.journal.records]
    assert spent == sorted(spent)
    assert 3.9 < spent[-1] <= 4.0
    assert first.values("epsilon")[3] == spent[-1]
    assert first.summary.epsilon == spent[-1]
    assert not first.values("train_loss")
    assert fedmezo.replay(first.folder) == hashes(first)[-1]
    journal = (first.folder / "journal.jsonl").read_text()
    header = json.loads(journal.splitlines()[0])
    assert header["privacy"]["noise_multiplier"] == pytest.approx(first.config.privacy.noise_multiplier)


def test_a_run_stops_before_it_spends_too_much_and_goes_on_no_further(small: Small) -> None:
    changes = GROUPS | CLIENTS | {"privacy.epsilon": 1.9, "privacy.noise_multiplier": 3.0}
    spent = small.run("spent", **changes, **{"federate.secure_aggregation": True})
    assert [record.round for record in spent.journal.records] == [0, 1]
    assert "one more would spend more than privacy.epsilon" in (spent.folder / "log.txt").read_text()
    assert read_journal(spent.folder / "journal.jsonl").ended
    with pytest.raises(ConfigError, match="first round alone"):
        small.run("broke", **changes | {"privacy.epsilon": 0.5})


def test_opacus_leaves_logging_as_it_was(open_run: fedmezo.Run) -> None:
    assert not [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"federate.secure_aggregation": True, "federate.direction_groups": 0}, "no directions are shared"),
        ({"federate.secure_aggregation": True, "federate.direction_groups": 3}, "needs 3 in each"),
        ({"federate.secure_aggregation": True, "federate.aggregation": "median"}, "secure sums hide them"),
        ({"federate.secure_aggregation": True, "federate.max_ratio": 5.0}, "secure sums hide the reports"),
        ({"federate.secure_aggregation": True, "train.train_strategy": "round-wise"}, "own numbers"),
        ({"privacy.level": "client"}, "nothing says how much noise"),
        (CLIENTS | {"privacy.epsilon": 1.0, "federate.ignore_weight": False}, "no client may weigh more"),
        ({"privacy.level": "client", "privacy.epsilon": 1.0}, "needs a number above 0"),
        (CLIENTS | {"privacy.epsilon": 1.0, "privacy.noise_multiplier": 0.0}, "spends all there is"),
        (CLIENTS | {"privacy.epsilon": 1.0, "train.trust": True}, "hides"),
        ({"privacy.epsilon": 1.0}, "privacy.level is none"),
        (CLIENTS | {"privacy.epsilon": 1.0, "train.optimizer.lr": "auto"}, "without noise"),
        ({"privacy.level": "example", "privacy.clip": 1.0, "privacy.epsilon": 1.0, "train.zo.estimator": "one-sided"},
         "two-point"),
    ],
)  # fmt: skip
def test_what_does_not_hide_anybody_is_refused(small: Small, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small.run("refused", **GROUPS | changes)


@pytest.mark.parametrize("noise", [{}, CLIENTS | {"privacy.noise_multiplier": 2.0}], ids=["sums", "clients"])
def test_a_site_makes_the_words_that_the_server_reads(small: Small, noise: dict[str, Any]) -> None:
    """From the settings of a setup message alone: else masks would hide words of another unit."""
    changes = GROUPS | noise | {"federate.secure_aggregation": True, "federate.mode": "distributed"}
    config = guarded(load_config(small.config("sites", **changes)).config)
    settings = json.loads(json.dumps(shared_settings(config, "float32")))
    options = WorkerOptions(socket="", data="", model=config.model.name)
    federation = assemble.make_federation(config, assemble.load_model(config).model)
    masking = make_masking(settings, site_config(settings, options))
    assert masking is not None
    assert masking.coding == federation.codes()
    assert masking.fewest == 3
    with pytest.raises(ConfigError, match="not sound"):
        make_masking({**settings, "sums": {"clients": 2}}, site_config(settings, options))


def test_a_stopped_run_goes_on_knowing_what_it_has_spent(small: Small) -> None:
    def interrupt(event: fedmezo.RoundEvent) -> None:
        if event.round == 2:
            signal.raise_signal(signal.SIGTERM)

    changes = GROUPS | CLIENTS | {"privacy.epsilon": 4.0, "expname": "stopped", "data.keep_tokens": False}
    stopped = fedmezo.run(small.config("stopped", **changes), quiet=True, on_round=interrupt)
    assert not stopped.finished
    resumed = fedmezo.resume(stopped.folder, quiet=True)
    spent = [record.epsilon or 0.0 for record in resumed.journal.records]
    assert len(spent) == 3
    assert spent == sorted(spent)
    assert 3.9 < spent[-1] <= 4.0
