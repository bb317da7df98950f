"""What every tuned language model does, whichever of its tensors are trained."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from fedmezo.models.fitness import require_causal
from fedmezo.models.flat import FlatParameters
from fedmezo.models.label_loss import choose_path
from fedmezo.models.lanes import base_of
from fedmezo.records import Batch, Segment
from fedmezo.zo.estimators.protocol import Estimator
from fedmezo.zo.local import LocalThetas
from fedmezo.zo.noise import Directions


class LanguageModel(ABC):
    """Implements `records.Differentiable`, as a function of the flat vector theta of its trainable tensors.

    Args:
        network: the model, whose trainable tensors require gradients.
        base: the causal language model inside.
        dtype: what is computed in; see `FlatParameters`.
        held: what theta is.

    Raises:
        ModelError: the model is not causal.
    """

    folder: ClassVar[str]
    """Name of a run's folder for what comes out."""
    loader: ClassVar[str]
    """The library that loads it."""

    def __init__(
        self,
        network: PreTrainedModel | PeftModel,
        base: PreTrainedModel,
        dtype: torch.dtype = torch.float32,
        held: torch.dtype = torch.float32,
    ) -> None:
        self.network = network
        """The model at the live tensors: to generate text with."""
        self._flat = FlatParameters(network, dtype, held)
        self._set_training(False)
        require_causal(network, base)
        self._token_losses, notices = choose_path(network, base)
        self.lanes = 1
        """Thetas that share a forward pass; see `use_lanes`."""
        self.compiled = False
        """Whether the forward pass over lanes is; see `compile`."""
        self.notices: tuple[str, ...] = tuple(notices)
        """What the user should be told about this model."""

    def at(self, theta: Tensor) -> PreTrainedModel | PeftModel:
        """The model at theta (d,), in evaluation mode: to be used, not to be changed."""
        self._set_training(False)
        self.show(theta)
        return self.network

    @property
    def base(self) -> PreTrainedModel:
        """The causal language model inside."""
        return base_of(self.network)

    @property
    def virtual_tokens(self) -> int:
        """Tokens that are put before each example."""
        return 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The trainable tensors in canonical order."""
        return self._flat.segments

    @property
    def device(self) -> torch.device:
        """Where theta and the batches are expected."""
        return self._flat.device

    @abstractmethod
    def initial(self) -> Tensor:
        """Theta (d,) before training, as the live tensors hold it now, for whoever is to change it."""

    @abstractmethod
    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """Mean loss over the label tokens of batch j at theta j; the live tensors may be left at any of the thetas."""

    @abstractmethod
    def local_thetas(self, theta: Tensor, members: int, noise: Directions, copies: int) -> LocalThetas:
        """The thetas of a group of clients; see `zo.local.Tunable`."""

    @abstractmethod
    def use_lanes(self, lanes: int) -> list[str]:
        """Take the losses of up to so many thetas in one forward pass; returns what the user should be told."""

    @abstractmethod
    def bytes_per_lane(self, longest: Batch, theta: Tensor, estimator: Estimator) -> int:
        """What a lane adds to memory at most.

        Args:
            longest: the largest batch that there can be.
            theta: (d,).
            estimator: of the clients.
        """

    @abstractmethod
    def compile(self, rows: int) -> list[str]:
        """Make the forward pass over lanes faster; returns what the user should be told.

        Args:
            rows: of most batches.
        """

    @abstractmethod
    def save(self, theta: Tensor, directory: Path) -> None:
        """Write theta so that the libraries it comes from load it."""

    @abstractmethod
    def saved_loss(self, directory: Path, batch: Batch) -> float:
        """Mean loss over the label tokens of what was saved, loaded as others load it, by the model's own forward pass.

        Raises:
            ModelError: it cannot be loaded.
        """

    @abstractmethod
    def read(self, directory: Path) -> Tensor:
        """Theta (d,) of what was saved; the live tensors take its values.

        Raises:
            ModelError: it cannot be read, or does not fit.
        """

    def example_losses(self, theta: Tensor, batch: Batch) -> list[float]:
        """Mean loss over the label tokens of each row of a batch; the live tensors are left at theta."""
        self._set_training(False)
        self.show(theta)
        with torch.inference_mode():
            return self._token_losses(batch).row_means().tolist()

    def parameters(self) -> list[Tensor]:
        """The live trainable tensors in the order of `segments`."""
        return list(self._flat.parameters)

    def load(self, theta: Tensor) -> None:
        """Copy theta (d,) into the live trainable tensors."""
        self._flat.load(theta)

    def show(self, theta: Tensor) -> None:
        """Let the live tensors be theta (d,) itself where it is on their device, for whoever only reads them."""
        self._flat.point_at(theta.detach().to(self.device))

    def flat(self) -> Tensor:
        """Copy the live trainable tensors into a new theta (d,)."""
        return self._flat.flat()

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean loss over the label tokens at the live tensors, a scalar with its graph.

        Dropout is on in the whole model, as in the reference code: it draws from torch's generator, so that the caller
        forks and seeds that.
        """
        self._set_training(True)
        return self._token_losses(batch).mean()

    def checkpoint_gradients(self) -> None:
        """From now on, compute activations again on the way back instead of keeping them."""
        with warnings.catch_warnings():  # the name that all of transformers 5 has is to go in 6
            warnings.filterwarnings("ignore", category=FutureWarning)
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]  # has no annotations

    def _mean_loss(self, theta: Tensor, batch: Batch) -> Tensor:
        self.show(theta)
        return self._token_losses(batch).mean()

    def _set_training(self, training: bool) -> None:
        if self.network.training is not training:  # walks over every module
            self.network.train(training)
