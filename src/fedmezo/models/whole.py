"""All parameters of a language model, or those that patterns choose, as the flat vector theta.

Theta is the weights themselves: the model's tensors are views of it, and closing a round changes them in place; or they
are copies of it in half precision, which are rounded anew when a round begins. Theta is float32, or bfloat16 that is
rounded at random (`zo.rounding`). Perturbed weights are never made; see `perturbed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fedmezo.errors import ModelError
from fedmezo.models.foreign import attempt, explained
from fedmezo.models.label_loss import PlainPath, losses_agree, probe_of
from fedmezo.models.lane_budget import peak_memory_of
from fedmezo.models.lanes import rows_of
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.loading import without_progress_bar
from fedmezo.models.local_lanes import LaneThetas
from fedmezo.models.perturbed import PerturbedForward
from fedmezo.models.sums import check_sums, write_sums
from fedmezo.records import Batch
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.local import FlatThetas, LocalThetas, Probe
from fedmezo.zo.low_rank import LowRankNoise
from fedmezo.zo.noise import RADEMACHER, Directions, Noise, Purpose, Stream
from fedmezo.zo.replay import Move

ALL = ("*",)
"""The patterns that choose every parameter."""

SHARD_SIZE = "2GB"
"""Largest file of weights that are written."""


class WholeLM(LanguageModel):
    """A language model without an adapter.

    Args:
        base: a causal language model in the format of theta, frozen.
        tokenizer: written beside the model.
        patterns: names of the parameters to train, with * and ? and [...] as in names of files.
        low_rank: whether directions have low rank over the matrices.
        dtype: what it computes in: float32, or half precision on a copy beside theta.
        held: what theta is: float32, or bfloat16 where that is computed in as well.

    Raises:
        ModelError: a pattern fits no parameter, the model is not in the format of theta, or has no form that can do
            with theta in bfloat16.
    """

    folder, loader = "model", "transformers"

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        patterns: Sequence[str] = ALL,
        *,
        low_rank: bool = True,
        dtype: torch.dtype = torch.float32,
        held: torch.dtype = torch.float32,
    ) -> None:
        choose_parameters(base, patterns, held)
        for parameter in base.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        super().__init__(base, base, dtype, held)
        self._tokenizer = tokenizer
        self._most_lanes = 1 << 30
        self._forward: PerturbedForward | None = PerturbedForward(
            base, self._flat, self._token_losses, low_rank=low_rank
        )
        self._check()

    def initial(self) -> Tensor:
        """The live theta itself: there is no second copy of the weights."""
        return self._flat.live

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """One theta after the other."""
        self._set_training(False)
        with torch.inference_mode():
            return torch.stack([self._mean_loss(theta, batch) for theta, batch in zip(thetas, batches, strict=True)])

    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        """Moves over theta itself, which the live tensors are left at."""
        self._set_training(False)
        if self._forward is None:
            return FlatThetas(self, theta, members, noise, copies)
        self.show(theta)
        return LaneThetas(self._forward, theta, members, noise, min(copies, self.lanes), self.device)

    def use_lanes(self, lanes: int) -> list[str]:
        """See `LanguageModel.use_lanes`."""
        self.lanes = min(lanes, self._most_lanes)
        return []

    def bytes_per_lane(self, longest: Batch, theta: Tensor, estimator: Estimator) -> int:
        """Half of what a forward pass of two lanes allocates."""
        noise = self._probing_noise()
        thetas = self.local_thetas(theta, 1, noise, 2)
        stream = Stream(0, Purpose.DIRECTION)
        probes = [Probe(longest, stream, amount) for amount in (0.25, -0.25)]
        return peak_memory_of(lambda: thetas.losses([0, 0], probes), self.device) // 2

    def compile(self, rows: int) -> list[str]:
        """It stays as it is: the number of directions grows from step to step, and with it every shape."""
        return ["train.compile: the forward pass over all parameters is not compiled, and stays as it was"]

    def save(self, theta: Tensor, directory: Path) -> None:
        """Write what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""
        self.show(theta)
        with without_progress_bar(), self._as_held():
            state = _apart(self.base.state_dict())
            self.base.save_pretrained(directory, state_dict=state, max_shard_size=SHARD_SIZE)
        self._tokenizer.save_pretrained(directory)
        write_sums(directory)

    def saved_loss(self, directory: Path, batch: Batch) -> float:
        """See `LanguageModel.saved_loss`; transformers loads it."""
        auto_model: Any = AutoModelForCausalLM  # has no annotations
        what = f"{directory}: the saved model cannot be loaded"
        check_sums(directory)
        with explained(what), torch.inference_mode(), without_progress_bar():
            saved = auto_model.from_pretrained(directory, dtype=self.base.dtype).to(self.device)
            return float(PlainPath(saved.train(False))(batch).mean())

    def read(self, directory: Path) -> Tensor:
        """There is nothing to read: a saved model is a base model."""
        raise ModelError(f"federate.restore_from: without an adapter, set model.type to {directory} instead")

    @contextmanager
    def _as_held(self) -> Iterator[None]:
        """Within the block the model is theta itself, and what is not trained is in its format."""
        frozen = {parameter: parameter.data for parameter in self.base.parameters() if not parameter.requires_grad}
        for parameter, data in frozen.items():
            parameter.data = data.to(self._flat.live.dtype)
        try:
            with self._flat.unrounded():
                yield
        finally:
            for parameter, data in frozen.items():
                parameter.data = data

    def _check(self) -> None:
        """Compare two lanes together with each alone, and see that every tensor is where a lane can have its own."""
        name = type(self.base).__name__
        one_by_one = PerturbedForward(self.base, self._flat, self._token_losses, low_rank=False)
        alone = self._probe(one_by_one, lanes=1)
        if alone is None and self._flat.live.dtype != torch.float32:
            raise ModelError(
                f"model.weights: {name} uses some of its weights outside of the layer that holds them, and needs "
                "copies of all of them: leave the key out"
            )
        if alone is None:
            self._forward = None
            self.notices += (
                f"{name} uses some of its weights outside of the layer that holds them: a copy of all weights is "
                "kept for each client, and one to perturb",
            )
            return
        together = self._probe(self._forward, lanes=2) if self._forward is not None else None
        if together is None or not losses_agree(together, alone, self.base.dtype):
            self._forward, self._most_lanes = one_by_one, 1
            self.notices += (
                f"train.lanes: {name} has no form that computes several perturbed weights at once: one at a time",
            )

    def _probe(self, forward: PerturbedForward, lanes: int) -> Tensor | None:
        """The losses of two lanes, so many at a time; None if that fails or leaves a layer out."""
        noise = self._probing_noise()
        theta = self._flat.live
        thetas = LaneThetas(forward, theta, 1, noise, lanes, self.device)
        steps = [Stream(0, Purpose.DIRECTION, step=step) for step in range(2)]
        thetas.move_(0, [Move(steps[0], 2.0**-8)])
        both = probe_of(self.base)
        probes = [
            Probe(row, steps[1], amount) for row, amount in zip(rows_of(both), (2.0**-7, -(2.0**-7)), strict=True)
        ]
        with forward.reached() as reached:
            losses = attempt(lambda: thetas.losses([0, 0], probes))
        return losses if len(reached) == len(forward.layers) else None

    def _probing_noise(self) -> Directions:
        low_rank = self._forward is None or self._forward.low_rank
        return LowRankNoise(1, self.segments) if low_rank else Noise(RADEMACHER)


def choose_parameters(base: PreTrainedModel, patterns: Sequence[str], held: torch.dtype = torch.float32) -> None:
    """Let the parameters whose names fit one of the patterns, and no others, require gradients.

    Raises:
        ModelError: a pattern fits no parameter, or a chosen one is not of the format that theta is held in.
    """
    named = dict(base.named_parameters())
    chosen = {name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ModelError(
                f"train.trainable: {pattern!r} fits no parameter of {type(base).__name__}; they are named like "
                f"{', '.join(_examples(list(named)))}"
            )
    for name, parameter in named.items():
        if name in chosen and parameter.dtype != held:
            raise ModelError(
                f"{name} is {parameter.dtype}: without an adapter (llm.adapter.use: False) the weights themselves are "
                f"trained, and are to be given in {held}; model.dtype says what is computed in"
            )
        parameter.requires_grad_(name in chosen)


def _examples(names: Sequence[str]) -> list[str]:
    """A name of each kind: those that differ in a number only count once."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "0", name), name)
    return list(kinds.values())


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share the memory of one theta as tensors of their own, without a copy, for who looks at storages."""

    def apart(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bfloat16:  # which numpy has not
            return apart(tensor.view(torch.int16)).view(torch.bfloat16)
        return torch.from_numpy(tensor.detach().cpu().numpy())

    return {name: apart(tensor) for name, tensor in state.items()}
