"""`model.dtype: auto`: the fastest number format of this machine whose g is sound at the run's eps, by measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmezo.config import Config
from fedmezo.config.schema import Dtype, Quantization
from fedmezo.models.hardware import AUTO, choose_device, computes_int8, cpu_computes_bfloat16
from fedmezo.models.lane_budget import device_memory
from fedmezo.models.quantised import INT8_DYNAMIC, NONE, rounds_activations, scheme_of
from fedmezo.runs import assemble
from fedmezo.runs.assemble import Holdings, TunedModel
from fedmezo.zo.signal import Signal

PASSES = 3
"""Forward passes of which the fastest counts."""

GAIN = 1.1
"""How many times faster than float32 a coarser format must be: near that, the next start would choose another one."""

SECONDS_WORTH_IT = 120.0
"""What a coarser format must save over the whole run; shorter runs are all in float32, and so can be compared."""

MOST_TIMES_FASTER = 5.0
"""Than float32, of any format on any processor measured: a run that so many times the time is short in is not tried."""

SHARE_OF_MEMORY = 1 / 2
"""Of the device's memory, for weights in float32 beside those in half precision: larger models stay in the latter."""


@dataclass(frozen=True, slots=True)
class Format:
    """A precision of the base weights, and how they are quantised."""

    dtype: Dtype
    quantization: Quantization

    def __str__(self) -> str:
        return self.dtype if self.quantization == NONE else f"{self.dtype} with {self.quantization}"

    @property
    def is_exact(self) -> bool:
        """Whether its rounding is small at any useful eps."""
        return self.dtype == "float32" and not rounds_activations(self.quantization)

    def put_in(self, config: Config) -> Config:
        """The configuration with this format."""
        model = config.model.model_copy(update={"dtype": self.dtype, "quantization": self.quantization})
        return config.model_copy(update={"model": model})


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What `auto` has become."""

    config: Config
    tuned: TunedModel
    signals: tuple[Signal, ...]  # of g in this format, where that was measured
    reason: str  # what was chosen and why, in a line for the user


@dataclass(frozen=True, slots=True)
class _Trial:
    format: Format
    seconds: float  # of a forward pass, for each lane


def to_begin_with(config: Config) -> Config:
    """What a run is loaded as until its data are known: where `model.dtype` is auto, in the smallest precision."""
    if config.model.dtype != AUTO:
        return config
    quantization = config.model.quantization or NONE
    if _needs_float32(config):
        return Format("float32", quantization).put_in(config)
    device, _ = choose_device(config.use_gpu, config.device)
    return formats(device, quantization)[0].put_in(config)


def formats(device: torch.device, quantization: Quantization | None) -> list[Format]:
    """The formats that a device computes in, from half precision on.

    Args:
        device: where the model runs.
        quantization: as asked for; None leaves it open.
    """
    half: list[Dtype] = ["bfloat16"] if device.type != "cpu" or cpu_computes_bfloat16() else []
    some = [Format(dtype, quantization or NONE) for dtype in (*half, "float32")]
    if quantization is None and computes_int8(device):
        some.append(Format(some[0].dtype, INT8_DYNAMIC))
    return some


def settle(config: Config, tuned: TunedModel, holdings: Holdings, theta: Tensor | None) -> Settled:
    """Choose by measurement; one model is held beside the one that is tried.

    Args:
        config: whose `model.dtype` is auto.
        tuned: loaded as `to_begin_with` says, with its lanes.
        holdings: the examples.
        theta: (d,) where the run starts, if it does not start from the model's own.

    Raises:
        ModelError: the model cannot be loaded in another format.
        TrainingError: a loss is not finite.
    """
    first = Format(_name(tuned), tuned.quantization)
    if why := _needs_float32(config):
        return _in_float32(config, tuned, why)
    if not any(len(shard) for shard in holdings.partition.train):
        return _in_float32(config, tuned, "there are no examples here to measure with")
    passes = assemble.planned_passes(config)
    trials, held = [_Trial(first, _seconds(tuned, holdings))], (first, tuned)
    if MOST_TIMES_FASTER * trials[0].seconds * passes < SECONDS_WORTH_IT:
        return _in_float32(config, tuned, f"the run is too short to save {SECONDS_WORTH_IT:g} s")
    is_quantised = scheme_of(tuned.model.base) != NONE
    for other in formats(tuned.model.device, tuned.quantization if is_quantised else config.model.quantization)[1:]:
        if other.dtype != "float32" or first.dtype == "float32" or _has_room_for_float32(tuned):
            held = (other, _load(config, other, holdings))
            trials.append(_Trial(other, _seconds(held[1], holdings)))
    trials.sort(key=lambda trial: _cost(trial, passes))
    remarks: list[str] = []
    for trial in trials:
        tried = trial.format
        model = held[1] if held[0] == tried else tuned if tried == first else _load(config, tried, holdings)
        start = model.theta if theta is None else theta
        signals = [] if tried.is_exact else _noise(tried.put_in(config), model, holdings, start)
        if not signals or signals[0].is_sound or trial is trials[-1]:
            return _settled(config, model, tried, _reason(trial, trials, remarks), signals)
        noise, eps = signals[0].noise_to_signal, config.train.zo.scale
        remarks.append(f"in {tried} rounding would make up {noise:.0%} of g at train.zo.eps {eps:g}")
    raise AssertionError("there is always a last one")


def _needs_float32(config: Config) -> str:
    """Why there is nothing to choose; empty where there is."""
    if config.trainer.type != assemble.MEZO:
        return "llmtrainer needs its gradients"
    return "" if config.llm.adapter.use else "the weights themselves are trained"


def _noise(config: Config, tuned: TunedModel, holdings: Holdings, theta: Tensor) -> list[Signal]:
    return assemble.noise_of_g(config, tuned, holdings, theta, only_here=True)


def _cost(trial: _Trial, passes: int) -> float:
    """Seconds of the run's forward passes; a coarser format has to make up for what it is worth to keep to float32."""
    seconds = trial.seconds * passes
    return seconds if trial.format.is_exact else max(GAIN * seconds, seconds + SECONDS_WORTH_IT)


def _in_float32(config: Config, tuned: TunedModel, why: str) -> Settled:
    """Without trying anything else; a model for which there is no room in it stays as it is."""
    plain = Format("float32", config.model.quantization or NONE)
    if _name(tuned) == plain.dtype:
        return _settled(config, tuned, plain, f"{plain}: {why}")
    if _has_room_for_float32(tuned):
        return _settled(config, assemble.load_model(plain.put_in(config)), plain, f"{plain}: {why}")
    held = Format(_name(tuned), plain.quantization)
    return _settled(config, tuned, held, f"{held}: {why}, and float32 would take most of the memory")


def _settled(config: Config, tuned: TunedModel, chosen: Format, reason: str, signals: Sequence[Signal] = ()) -> Settled:
    return Settled(chosen.put_in(config), tuned, tuple(signals), f"model.dtype auto is {reason}")


def _reason(chosen: _Trial, trials: Sequence[_Trial], remarks: Sequence[str]) -> str:
    others = [f"{trial.format} {1e3 * trial.seconds:.3g}" for trial in trials if trial is not chosen]
    compared = f" ({', '.join(others)})" if others else ""
    return "; ".join([f"{chosen.format}: {1e3 * chosen.seconds:.3g} ms for each lane of a step{compared}", *remarks])


def _load(config: Config, wanted: Format, holdings: Holdings) -> TunedModel:
    tuned = assemble.load_model(wanted.put_in(config))
    assemble.use_lanes(config, tuned, holdings.dataset)
    return tuned


def _seconds(tuned: TunedModel, holdings: Holdings) -> float:
    """Time of a forward pass over the model's lanes, for each of them, on a batch of middling length."""
    dataset, model = holdings.dataset, tuned.model
    middling = dataset.lengths.argsort()[len(dataset) // 2 :][:1]
    batches = [dataset.batch(middling, model.device)] * model.lanes
    thetas = tuned.theta.to(model.device).expand(model.lanes, -1).contiguous()
    times = []
    for _ in range(PASSES):
        started = time.perf_counter()
        model.losses(thetas, batches).tolist()
        times.append(time.perf_counter() - started)
    return min(times) / model.lanes


def _has_room_for_float32(tuned: TunedModel) -> bool:
    weights = sum(parameter.numel() for parameter in tuned.model.base.parameters())
    return (4 + 2) * weights <= SHARE_OF_MEMORY * device_memory(tuned.model.device)


def _name(tuned: TunedModel) -> Dtype:
    return assemble.dtype_name(tuned.dtype)
