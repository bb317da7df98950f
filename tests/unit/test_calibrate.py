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
from fedmezo.studies.calibrate import (
    FORWARD_PASSES,
    Bench,
    Calibration,
    advise,
    advised,
    burst_rounds,
    calibrate,
    measure,
    outcome,
    run_burst,
    show,
    step_in_words,
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
    assert best / 2 <= rate <= 2 * best
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
    assert burst_rounds(bench, 4 * (160 + 5 * 20)) == 5  # ten evaluations of 64, a quarter each; 20 passes a round


def errors() -> list[GradientError]:
    return [GradientError(1e-3, 1.0, 0.8, 0.0), GradientError(2e-3, 1.0, 0.1, 0.0), GradientError(4e-3, 1.0, 0.0, 0.4)]


def bursts(*afters: float) -> list[Burst]:
    return [Burst(0.01 * 2**i, ((0, 2.0), (10, after)), None if after < 9 else 4) for i, after in enumerate(afters)]


def config_of(rounds: int) -> Config:
    return load_config(None, [*PLAIN, f"federate.total_round_num={rounds}"]).config


def test_the_advice_keeps_a_margin_that_grows_with_the_run() -> None:
    def rate(rounds: int) -> float:
        advice = {item.key: item for item in advise(config_of(rounds), errors(), bursts(1.9, 1.5, 9.0), 10)}
        assert advice["train.lr_width"].value == advice["train.optimizer.lr"].value / 2
        assert advice["train.zo.eps"].value == 2e-3
        assert "from 0.002 to 0.004" in advice["train.zo.eps"].reason
        return advice["train.optimizer.lr"].value

    assert rate(10) == pytest.approx(0.02 / 1.5, rel=0.05)  # two digits
    assert rate(40) == pytest.approx(0.02 / 1.5 / 2, rel=0.05)


def test_a_lowest_loss_well_below_the_limit_is_taken_as_it_is() -> None:
    advice = {item.key: item for item in advise(config_of(10), errors(), bursts(1.2, 1.5, 1.6, 9.0), 10)}
    assert advice["train.optimizer.lr"].value == 0.01
    assert advice["train.optimizer.lr"].reason == "lowest loss after 10 rounds"


def test_no_advice_where_nothing_lowers_the_loss() -> None:
    assert list(advise(config_of(10), errors(), bursts(9.0, 9.0), 10)) == []


def test_the_advised_configuration_loads_and_changes_nothing_else(tmp_path: Path) -> None:
    config = config_of(10)
    advice = list(advise(config, errors(), bursts(1.2, 1.5, 9.0), 10))
    path = tmp_path / "advised.yaml"
    path.write_text(advised(config, advice).to_yaml())
    loaded = load_config(path).config
    assert (loaded.train.optimizer.lr, loaded.train.lr_width) == (0.01, 0.005)
    assert (loaded.train.zo.eps, loaded.train.zo.queries) == (2e-3, 1)
    assert loaded.model_copy(update={"train": config.train}) == config


def test_what_is_printed_names_every_value_and_its_reason() -> None:
    advice = tuple(advise(config_of(40), errors(), bursts(1.9, 1.5, 9.0), 10))
    moments = StepMoments(slope=2.0, slope_error=0.1, power=4.0, curvature=5.0, resistance=20.0, noise=16.0)
    result = Calibration(tuple(errors()), moments, 3, tuple(bursts(1.9, 1.5, 9.0)), 10, 40, advice)
    text = io.StringIO()
    show(Console(file=text, width=160), result)
    for words in ("train.zo.eps", "train.optimizer.lr", "train.lr_width", "train.zo.queries", "sqrt(40/10)", "80.0%"):
        assert words in text.getvalue()
    assert "up to batches of 8, twice the batch takes half the steps; it lowers the loss most at 0.3" in text.getvalue()
    unsure = step_in_words(replace(moments, slope_error=1.5), 3)
    assert "twice the batch" not in unsure
    assert "no curvature" in step_in_words(replace(moments, resistance=-1.0), 3)


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
