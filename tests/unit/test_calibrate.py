"""A calibration of federations whose answers are known, and the advice that follows from measurements."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedmezo.config import Config, load_config
from fedmezo.data.encode import EncodedDataset
from fedmezo.data.partition import Partition
from fedmezo.errors import ConfigError
from fedmezo.models.causal_lm import CausalLM
from fedmezo.records import Batch, Segment
from fedmezo.results.plots import png
from fedmezo.results.plots_theory import draw_calibration
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.studies.advice import Advice, Trial, advise, replaced, rival_of
from fedmezo.studies.bursts import FORWARD_PASSES, Bench, burst_rounds, run_burst, set_up
from fedmezo.studies.calibrate import (
    Calibration,
    calibrate,
    measure,
    outcome,
    show,
    step_in_words,
    with_rival,
)
from fedmezo.zo.calibration import Burst, GradientError, StepMoments, largest_rate
from fedmezo.zo.local import FlatThetas, LocalThetas
from fedmezo.zo.noise import Noise

SIZE = 60
EXAMPLES = 40


@dataclass
class Bowl:
    """L(theta; e) = |theta|^2 / 2 + noise b_e' theta + floor, with b_e that sum to 0; the losses are float32."""

    noise: float = 0.0
    calls: int = 0
    lanes: int = 1
    offsets: Tensor = field(init=False)

    device = torch.device("cpu")
    segments = (Segment("theta", (SIZE,), 0),)

    def __post_init__(self) -> None:
        drawn = torch.randn(EXAMPLES, SIZE, generator=torch.Generator().manual_seed(0))
        self.offsets = self.noise * (drawn - drawn.mean(0))

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        self.calls += 1
        return (theta.square().sum() / 2 + self.offsets[batch.input_ids[:, 0]] @ theta + 10).tolist()

    def local_thetas(self, theta: Tensor, members: int, noise: Noise, copies: int) -> LocalThetas:
        return FlatThetas(self, theta, members, noise, copies)

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        pairs = zip(thetas, batches, strict=True)
        rows = [self.example_losses(theta, batch) for theta, batch in pairs]
        return torch.tensor([sum(row) / len(row) for row in rows], dtype=torch.float64)


PLAIN = (
    *("train.zo.estimator=two-point", "train.zo.queries=1", "train.zo.clip=0", "train.local_update_steps=20"),
    "train.schedule.type=constant",
)


def bench_of(model: Bowl, *overrides: str) -> Bench:
    config = load_config(None, [*PLAIN, "dataloader.batch_size=1", "train.zo.eps=0.001", *overrides]).config
    count = config.federate.client_num
    ids = np.arange(EXAMPLES)
    parts = tuple(np.array_split(ids, count))
    none = tuple(ids[:0] for _ in range(count))
    dataset = EncodedDataset(
        tokens=ids.astype(np.int32),
        offsets=np.arange(EXAMPLES + 1),
        prompt_lengths=np.zeros(EXAMPLES, np.int32),
        kept=ids,
        dropped=0,
        pad_id=0,
    )
    holdings = Holdings((), dataset, Partition("iid", ("all",), ids * 0, parts, none, none))
    theta = torch.ones(SIZE)
    tuned = TunedModel(
        model=cast(CausalLM, model),
        tokenizer=cast(PreTrainedTokenizerFast, None),
        base_hash="",
        dtype=torch.float32,
        quantization="none",
        theta=theta,
        notices=(),
    )
    return Bench(config, tuned, holdings, assemble.make_shards(config, holdings, model.device), theta)


ONE_CLIENT = ("federate.client_num=1", "train.local_update_steps=10", "federate.total_round_num=30")
QUIET = Console(file=io.StringIO())


def test_a_step_contracts_a_bowl_as_the_closed_form_says() -> None:
    # theta' = theta - rate (z' theta) z: E|theta'|^2 = |theta|^2 (1 - 2 rate + rate^2 (d + 2)), least at 1 / (d + 2)
    rate = 1 / (SIZE + 2)
    burst = run_burst(bench_of(Bowl(), *ONE_CLIENT), 1e-3, rate, rounds=30)
    factor = (burst.after - 10) / (burst.before - 10)
    # 300 steps whose log has a standard deviation of about sqrt(2) / d each: 0.4 in all
    assert math.log(factor) == pytest.approx(300 * math.log(1 - rate), abs=4 * 0.4)


def test_the_largest_rate_of_a_bowl_is_the_one_of_the_theory() -> None:
    result = measure(bench_of(Bowl(), *ONE_CLIENT), QUIET, FORWARD_PASSES)
    stable, best = 2 / (SIZE + 2), 1 / (SIZE + 2)
    found = largest_rate(result.bursts)
    assert found is not None
    assert stable / 2 <= found <= 1.3 * stable  # rates are a factor 2 apart; single paths outlive the mean square
    rate = {item.key: item.value for item in result.advice}["train.optimizer.lr"]
    assert best / 2 <= float(rate) <= 2 * best
    assert result.moments.slope == pytest.approx(SIZE, abs=5 * result.moments.slope_error)
    assert result.moments.curvature == pytest.approx(SIZE, rel=0.2)  # 32 directions: 3 %; float32 losses


def test_clients_average_their_noise_so_that_the_rate_may_grow() -> None:
    short = (*ONE_CLIENT, "train.local_update_steps=1", "federate.total_round_num=12")
    one, eight = (
        largest_rate(measure(bench_of(Bowl(2.0), *short, f"federate.client_num={count}"), QUIET, 6000).bursts)
        for count in (1, 8)
    )
    assert one is not None
    assert eight is not None
    # a step of 8 averaged directions is stable up to 2 * 8 / (d + 2 + 7): 7.2 times the rate of one; a factor 2 apart
    assert 7.2 / 2 <= eight / one <= 7.2 * 2


def test_a_burst_that_diverges_ends_at_once_and_says_where() -> None:
    model = Bowl()
    burst = run_burst(bench_of(model, *ONE_CLIENT), 1e-3, 1.0, rounds=30)
    assert burst.diverged == 1
    assert model.calls < 30
    assert outcome(burst) == "diverged in round 1"


def test_losses_that_are_not_finite_count_as_diverged() -> None:
    burst = run_burst(bench_of(Bowl(), *ONE_CLIENT), 1e-3, 1e25, rounds=30)
    assert burst.diverged is not None
    assert not burst.lowers


def test_rounds_of_a_burst_fit_the_budget_and_the_run() -> None:
    bench = bench_of(Bowl(), *ONE_CLIENT)
    assert burst_rounds(bench, 10**6) == 30
    assert burst_rounds(bench, 0) == 1
    assert burst_rounds(bench, 5 * (160 + 5 * 20)) == 5  # ten evaluations of 64, a quarter each; 20 passes a round


def errors() -> list[GradientError]:
    return [GradientError(1e-3, 1.0, 0.8, 0.0), GradientError(2e-3, 1.0, 0.1, 0.0), GradientError(4e-3, 1.0, 0.0, 0.4)]


def bursts(*afters: float) -> list[Burst]:
    return [Burst(0.01 * 2**i, ((0, 2.0), (10, after)), None if after < 9 else 4) for i, after in enumerate(afters)]


def config_of(rounds: int) -> Config:
    return load_config(None, [*PLAIN, f"federate.total_round_num={rounds}"]).config


MOMENTS = StepMoments(slope=2.0, slope_error=0.1, power=4.0, curvature=5.0, resistance=20.0, noise=16.0)


def advice_of(config: Config, *afters: float, rival: Sequence[float] = ()) -> dict[str, Advice]:
    """What is advised where a setting, and its rival, come to these losses at rates from 0.01 on."""
    other = Trial(tuple(bursts(*rival)), 10) if rival else None
    return {item.key: item for item in advise(config, errors(), MOMENTS, Trial(tuple(bursts(*afters)), 10), other)}


def test_the_advice_keeps_a_margin_that_grows_with_the_run() -> None:
    def rate(rounds: int) -> float:
        advice = advice_of(config_of(rounds), 1.9, 1.5, 9.0)
        found = advice["train.optimizer.lr"].value
        assert isinstance(found, float)
        assert advice["train.lr_width"].value == found / 2
        assert advice["train.zo.eps"].value == 2e-3
        assert "from 0.002 to 0.004" in advice["train.zo.eps"].reason
        return found

    assert rate(10) == pytest.approx(0.02 / 1.5, rel=0.05)  # two digits
    assert rate(40) == pytest.approx(0.02 / 1.5 / 2, rel=0.05)


def test_a_lowest_loss_well_below_the_limit_is_taken_as_it_is() -> None:
    advice = advice_of(config_of(10), 1.2, 1.5, 1.6, 9.0)
    assert advice["train.optimizer.lr"].value == 0.01
    assert advice["train.optimizer.lr"].reason == "lowest loss after 10 rounds"


def test_no_advice_where_nothing_lowers_the_loss() -> None:
    assert advice_of(config_of(10), 9.0, 9.0) == {}


def test_the_advised_configuration_loads_and_changes_nothing_else(tmp_path: Path) -> None:
    config = config_of(10)
    advice = advice_of(config, 1.2, 1.5, 9.0)
    path = tmp_path / "advised.yaml"
    path.write_text(replaced(config, {key: item.value for key, item in advice.items()}).to_yaml())
    loaded = load_config(path).config
    assert (loaded.train.optimizer.lr, loaded.train.lr_width) == (0.01, 0.005)
    assert (loaded.train.zo.eps, loaded.train.zo.queries) == (2e-3, 1)
    assert loaded.dataloader.batch_size == 8
    assert loaded.model_copy(update={"train": config.train, "dataloader": config.dataloader}) == config


def test_a_batch_is_doubled_up_to_the_one_whose_noise_equals_the_signal() -> None:
    batch = advice_of(config_of(10), 1.2, 1.5, 9.0)["dataloader.batch_size"]
    assert (batch.present, batch.value) == (4, 8)  # of 16 / 2
    assert "8.0 times the signal" in batch.reason
    assert f"{(2 + 16 / 4) / (2 + 16 / 8):.2g} times as far" in batch.reason
    unsure = replace(MOMENTS, slope_error=1.5)
    own = Trial(tuple(bursts(1.2, 9.0)), 10)
    assert "dataloader.batch_size" not in {item.key for item in advise(config_of(10), errors(), unsure, own)}
    [few] = [
        item.value
        for item in advise(config_of(10), errors(), MOMENTS, own, most_rows=5)
        if item.key == "dataloader.batch_size"
    ]
    assert few == 4
    many = load_config(None, [*PLAIN, "train.zo.estimator=per-example", "train.zo.queries=40"]).config
    assert advice_of(many, 1.2, 9.0)["dataloader.batch_size"].value == 4  # 8 rows would have 320 directions


RANK_8 = ("llm.adapter.args.0.r=8", "llm.adapter.args.0.lora_alpha=20", "train.zo.clip=0.3")


def test_another_setting_is_recommended_whole_where_it_came_lower_and_not_at_all_where_it_did_not() -> None:
    config = load_config(None, [*PLAIN, *RANK_8, "federate.total_round_num=10"]).config
    rival = rival_of(config)
    assert rival is not None
    advice = advice_of(config, 1.9, 1.8, 9.0, rival=[1.7, 1.2, 1.6, 9.0])
    values = {key: item.value for key, item in advice.items()}
    assert (values["train.zo.estimator"], values["train.zo.clip"], values["train.optimizer.lr"]) == (
        "per-example",
        0,
        0.02,
    )
    assert (values["llm.adapter.args.0.r"], values["llm.adapter.args.0.lora_alpha"]) == (1, 2.5)
    assert "loss 1.2000 where the present setting comes to 1.8000" in advice["train.zo.estimator"].reason
    advised = replaced(config, values)
    assert advised.llm == rival.llm
    assert advised.train.zo.estimator == rival.train.zo.estimator
    unchanged = advice_of(config, 1.1, 1.8, 9.0, rival=[1.7, 1.2, 1.6])
    assert unchanged.keys().isdisjoint({"train.zo.estimator", "llm.adapter.args.0.r", "train.zo.clip"})
    assert unchanged["train.optimizer.lr"].value == 0.01


@pytest.mark.parametrize(
    ("overrides", "has_rival"),
    [
        (RANK_8, True),
        (("train.zo.estimator=per-example", "train.zo.queries=1", "train.zo.clip=0"), False),
        (("dataloader.batch_size=300",), False),  # more directions than a step can have
        (("llm.adapter.args.0.adapter_method=prompt", "llm.adapter.args.0.num_virtual_tokens=2"), True),
    ],
)
def test_a_setting_has_a_rival_unless_it_is_that_itself_or_cannot_be(overrides: Sequence[str], has_rival: bool) -> None:
    assert (rival_of(load_config(None, [*PLAIN, *overrides]).config) is not None) == has_rival


def test_the_rank_stays_where_its_alpha_is_not_in_proportion() -> None:
    config = load_config(None, [*PLAIN, *RANK_8, "llm.adapter.args.0.use_rslora=True"]).config
    rival = rival_of(config)
    assert rival is not None
    assert rival.llm == config.llm


def test_the_rival_is_trained_within_as_many_forward_passes() -> None:
    bench = bench_of(Bowl(), *ONE_CLIENT, "train.zo.queries=3")  # 6 passes a step, and per-example takes 2
    result = measure(bench, QUIET, FORWARD_PASSES)
    other = replace(bench, config=replaced(bench.config, {"train.zo.estimator": "per-example", "train.zo.queries": 1}))
    compared = with_rival(result, bench.config, other, QUIET)
    assert compared.rival is not None
    assert compared.rival.rounds == 3 * result.rounds
    assert compared.better.lowest == min(compared.rival.lowest, *(burst.after for burst in result.bursts))


def test_bursts_keep_one_rate_whatever_the_schedule() -> None:
    schedule = ("train.schedule.type=cosine", "train.schedule.warmup_rounds=8", "train.trust=True")
    bench = set_up(load_config(None, [*schedule, "train.train_strategy=random"]).config, QUIET)
    train = bench.config.train
    assert (train.schedule.type, train.schedule.warmup_rounds, train.trust) == ("constant", 0, False)
    assert train.train_strategy == "frozen"


def test_what_is_printed_names_every_value_and_its_reason() -> None:
    advice = tuple(advice_of(config_of(40), 1.9, 1.5, 9.0).values())
    result = Calibration(tuple(errors()), MOMENTS, 3, tuple(bursts(1.9, 1.5, 9.0)), 10, 40, advice)
    text = io.StringIO()
    show(Console(file=text, width=160), result)
    for words in ("train.zo.eps", "train.optimizer.lr", "train.lr_width", "train.zo.queries", "sqrt(40/10)", "80.0%"):
        assert words in text.getvalue()
    assert "up to batches of 8, twice the batch takes half the steps; it lowers the loss most at 0.3" in text.getvalue()
    unsure = step_in_words(replace(MOMENTS, slope_error=1.5), 3)
    assert "twice the batch" not in unsure
    assert "no curvature" in step_in_words(replace(MOMENTS, resistance=-1.0), 3)


@pytest.mark.parametrize("afters", [(1.9, 1.5, 9.0), (9.0, 9.0), (math.nan,)])
def test_the_picture_is_drawn_whatever_came_out(afters: tuple[float, ...]) -> None:
    figure = draw_calibration(errors(), bursts(*afters), eps=2e-3, present_eps=1e-3, rate=None)
    assert png(figure).startswith(b"\x89PNG")


def test_a_first_order_trainer_and_a_taken_file_are_refused(tmp_path: Path) -> None:
    taken = tmp_path / "config.yaml"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match=r"--write .*config\.yaml: the file exists; choose a new name"):
        calibrate(load_config().config, write=taken)
    first_order = load_config(None, ["trainer.type=llmtrainer", "federate.protocol=weights"]).config
    with pytest.raises(ConfigError, match=r"trainer\.type is llmtrainer: only the zeroth-order mezotrainer has an eps"):
        calibrate(first_order)
