"""Every configuration of the catalogue is a good one, and equal ones share a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmezo.campaign.catalogue import choose, read_scale, scale_names
from fedmezo.campaign.reproduce import ReproduceRequest, _plan
from fedmezo.campaign.runs import job_for
from fedmezo.campaign.tables import COLUMNS
from fedmezo.config import Config, load_config
from fedmezo.errors import ConfigError

ROOT = Path(__file__).parents[2]


def plans(scale_name: str) -> dict[tuple[str, str], Config]:
    request = ReproduceRequest("all", scale_name, [], None, None, 1, 1, Path("out"))
    scale = read_scale(scale_name)
    return {
        (item.name, point.label): _plan(request, scale, point).config
        for item in scale.items.values()
        for point in item.points
    }


@pytest.mark.parametrize("scale", scale_names())
def test_every_point_loads_and_measures_what_its_item_shows(scale: str) -> None:
    found = plans(scale)
    items = read_scale(scale).items
    assert {name for name, _ in found} == set(items)
    for (name, label), config in found.items():
        part = "val" if scale == "laptop" else "test"
        assert config.eval.best_res_update_round_wise_key == f"{part}_loss", (name, label)
        assert set(items[name].columns) <= set(COLUMNS), name


def test_the_papers_scale_is_that_of_its_shipped_configurations() -> None:
    found = plans("paper")
    for label, path in (
        ("GSM8K-IID, FedMeZO", "gsm8k/gsm8k_mezo_iid"),
        ("CodeAlpaca-LDA, FedMeZO", "code/code_mezo_lda"),
        ("Dolly-Meta, BP", "dolly/dolly_bpbased_meta"),
        ("Alpaca-IID, BP", "alpaca/alpaca_bpbased_iid"),
    ):
        ours = found["table1", label].model_dump()
        theirs = load_config(ROOT / "configs" / "frozen" / f"{path}.yaml").config.model_dump()
        for section in ("trainer", "dataloader", "model", "train", "data"):
            assert ours[section] == theirs[section], (label, section)
        assert ours["llm"]["adapter"] == theirs["llm"]["adapter"]
        assert ours["llm"]["tok_len"] == theirs["llm"]["tok_len"]
        assert ours["federate"]["protocol"] == theirs["federate"]["protocol"]


def test_what_varies_varies_and_nothing_else() -> None:
    found = plans("small")
    rows = [found["mu", label].model_dump() for label in ("5 x mu", "mu", "mu / 5")]
    assert [row["train"]["zo"].pop("eps") for row in rows] == [0.05, 0.01, 0.002]
    assert rows[0] == rows[1] == rows[2]


def test_equal_configurations_share_a_run_and_others_do_not() -> None:
    found = plans("small")
    folders = {key: job_for(Path("runs"), config, "").folder for key, config in found.items()}
    assert folders["splitters", "meta"] == folders["baselines", "FedMeZO"] == folders["table1", "Dolly-Meta, FedMeZO"]
    assert folders["strategies", "frozen"] == folders["mu", "mu"]
    assert len(set(folders.values())) == len({config.to_yaml() for config in found.values()})
    config = found["baselines", "FedMeZO"]
    for changed in ({"outdir": "x"}, {"expname": "x"}):
        assert job_for(Path("runs"), config.model_copy(update=changed), "").folder == folders["baselines", "FedMeZO"]
    assert job_for(Path("runs"), config.model_copy(update={"seed": 9}), "").folder not in folders.values()


def test_names() -> None:
    scale = read_scale("small")
    assert [item.name for item in choose(scale, "table6")] == ["table6"]
    assert len(choose(scale, "all")) == len(scale.items)
    with pytest.raises(
        ConfigError, match=r"there is no item 'tabel6' \(did you mean table6\?\); there are all, table1"
    ):
        choose(scale, "tabel6")


def test_every_figure_of_the_paper_has_its_items() -> None:
    scale = read_scale("paper")
    found = {number: [item.name for item in choose(scale, f"figure{number}")] for number in range(1, 11)}
    assert found[1] == found[10] == ["convergence"]
    assert found[7] == ["clients"]
    with pytest.raises(ConfigError, match="there is no item 'figure11'"):
        choose(scale, "figure11")


def test_the_papers_text_where_it_differs_from_its_configurations() -> None:
    found = plans("paper")
    assert found["mu", "mu"].early_stop.patience == 30
    assert found["rates", "rate"].early_stop.patience == 0
    epoch = found["convergence", "Dolly-Meta, BP at the paper's rate, one epoch"].train
    assert (epoch.batch_or_epoch, epoch.local_update_steps) == ("epoch", 1)
    assert found["table8", "Dolly-Meta, 7B"].model.name == "meta-llama/Llama-2-7b-hf"
    assert found["table8", "GSM8K-IID"].model.name == "openlm-research/open_llama_3b_v2"
    assert "Dolly-Meta, 7B" not in {point.label for point in read_scale("small").items["table8"].points}
