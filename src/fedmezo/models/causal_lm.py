"""A causal language model with an adapter, as a function of the flat vector theta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmezo.models import fitness
from fedmezo.models.adapters import attach_adapter, loaded_beside, read_adapter, write_adapter
from fedmezo.models.compiled import compiled_forward
from fedmezo.models.label_loss import PlainPath
from fedmezo.models.lane_budget import bytes_per_lane
from fedmezo.models.lanes import EagerForward, LaneForward, base_of, laned_losses, spread, with_lanes
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.targets import with_targets
from fedmezo.records import Batch
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.local import FlatThetas, LocalThetas
from fedmezo.zo.noise import Directions


class CausalLM(LanguageModel):
    """A base model with a PEFT adapter.

    Args:
        base: a frozen causal language model; the adapter is built into it.
        adapter_args: the mapping in `llm.adapter.args`.
        seed: run seed, which the adapter's initial values follow from.
        tokenizer: to be saved beside the adapter; None where the base model's own will do.

    Raises:
        ModelError: the adapter cannot be built as asked, or the model is not causal.
    """

    folder, loader = "adapter", "PEFT"

    def __init__(
        self,
        base: PreTrainedModel,
        adapter_args: Mapping[str, object],
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        adapter_args, chosen = with_targets(adapter_args, base)
        self._model = attach_adapter(base, adapter_args, seed)
        super().__init__(self._model, base)
        self.notices = (*chosen, *self.notices)
        self._laned: LaneForward | None = None

    @property
    def virtual_tokens(self) -> int:
        """Tokens, or keys and values of tokens, that the adapter puts before each example."""
        return fitness.virtual_tokens(self._model)

    def initial(self) -> Tensor:
        """A copy on the host."""
        return self.flat().cpu()

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """Mean loss over the label tokens of batch j at theta j; the live tensors may be left at any of the thetas."""
        if len(thetas) != len(batches):
            raise ValueError(f"{len(thetas)} thetas and {len(batches)} batches do not pair")
        self._set_training(False)
        with torch.inference_mode():
            means = [
                self._means(thetas[first : first + self.lanes], batches[first : first + self.lanes])
                for first in range(0, len(thetas), self.lanes)
            ]
            return torch.cat(means) if means else torch.empty(0)

    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        """A flat vector for each client of a group; see `zo.local.Tunable`."""
        return FlatThetas(self, theta, members, noise, copies)

    def use_lanes(self, lanes: int) -> list[str]:
        """Take the losses of up to so many thetas in one forward pass; returns what the user should be told.

        Where the adapter has no laned form, or one that does not give the same losses, `lanes` stays 1.
        """
        notices: list[str] = []
        if lanes > 1 and self._laned is None:
            self._set_training(False)
            self._laned, notices = with_lanes(self._model, self._flat, self._token_losses)
        self.lanes = 1 if self._laned is None else lanes
        return notices

    def bytes_per_lane(self, longest: Batch, theta: Tensor, estimator: Estimator) -> int:
        """See `lane_budget.bytes_per_lane`."""
        return bytes_per_lane(self, longest, theta, estimator)

    def compile(self, rows: int) -> list[str]:
        """Make the forward pass over `lanes` lanes faster, at the cost of seconds or a minute.

        Returns what the user should be told.

        Args:
            rows: of most batches.

        Raises:
            ValueError: `use_lanes` did not give the model a laned form before.
        """
        if not isinstance(self._laned, EagerForward):
            raise ValueError("only a laned form that is not compiled yet can be compiled")
        thetas = spread(self.flat(), self.lanes + 1)[: self.lanes]  # part of a larger tensor, as in training
        faster = compiled_forward(self._laned, base_of(self._model), thetas, rows)
        if faster is None:
            return ["train.compile: the forward pass cannot be compiled here, and stays as it was"]
        self._laned, self.compiled = faster, True
        return []

    def save(self, theta: Tensor, directory: Path) -> None:
        """Write theta as an adapter that `PeftModel.from_pretrained` loads; the live tensors keep their values."""
        live = self.flat()
        self.load(theta)
        write_adapter(self._model, directory)
        self.load(live)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(directory)

    def saved_loss(self, directory: Path, batch: Batch) -> float:
        """See `LanguageModel.saved_loss`; PEFT loads it."""
        self._set_training(False)
        with loaded_beside(self._model, directory), torch.inference_mode():
            return float(PlainPath(self._model)(batch).mean())

    def read(self, directory: Path) -> Tensor:
        """Theta (d,) of a saved adapter; the live tensors take its values.

        Raises:
            ModelError: see `models.adapters.read_adapter`.
        """
        read_adapter(self._model, directory)
        return self.flat()

    def _means(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """The loss of each of at most `lanes` thetas, (len(thetas),); one alone has the plain form, unless compiled."""
        if self._laned is not None and (len(thetas) > 1 or self.compiled):
            return laned_losses(self._laned, thetas, batches)
        return torch.stack([self._mean_loss(theta, batch) for theta, batch in zip(thetas, batches, strict=True)])
