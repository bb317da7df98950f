"""Frozen data that crosses a boundary between parts, and the protocol of a model that can be tuned."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # annotations only: reading a record must not cost an import of torch
    import torch
    from torch import Tensor

IGNORE_LABEL = -100
"""Label of a position that the loss does not count (the value PyTorch and Hugging Face use)."""


Form = Literal["instruction", "completion", "text", "conversation"]
"""What an example is: an instruction with its answer, a text with how it goes on, a text alone, or turns."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says."""

    role: str  # system, user, assistant
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its answer; `category` is what the lda and meta splitters divide by.

    In the other forms `instruction` and `output` hold what comes closest: the text before a completion and the
    completion; nothing and the text; what was last asked in a conversation and the assistant's last answer.
    """

    instruction: str
    input: str
    output: str
    category: str
    form: Form = "instruction"
    turns: tuple[Turn, ...] = ()  # of a conversation; the last is the assistant's
    choices: tuple[str, ...] = ()  # the answers to choose from, `output` among them; none where the answer is free


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Token ids of b examples, padded on the right to a common length t.

    The labels stay on the host, where it is found out which positions count.
    """

    input_ids: Tensor  # (b, t) int64
    attention_mask: Tensor  # (b, t) int64, 1 for a token and 0 for padding
    labels: Tensor  # (b, t) int64, IGNORE_LABEL for the prompt and the padding; not yet shifted

    @property
    def num_examples(self) -> int:
        """Rows of the batch."""
        return self.input_ids.shape[0]

    @property
    def length(self) -> int:
        """Padded length t in tokens."""
        return self.input_ids.shape[1]


@dataclass(frozen=True, slots=True)
class Segment:
    """One trainable tensor's place in the flat vector theta: elements [start, stop), row-major."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + prod(self.shape)


class Trainable(Protocol):
    """A model as a function of one flat float32 vector theta of d elements. The base weights never change."""

    @property
    def segments(self) -> Sequence[Segment]:
        """The trainable tensors in canonical order; the last one's `stop` is d."""
        ...

    @property
    def device(self) -> torch.device:
        """Where theta and the batches are expected."""
        ...

    def losses(self, thetas: Tensor | Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """Mean loss over the label tokens of batch j at theta j, (lanes,) float32; dropout off, no gradient.

        A GPU may still be at work on them when this returns: whoever reads the values waits for it.

        Args:
            thetas: (lanes, d), or as many (d,).
            batches: one for each lane.
        """
        ...


class Differentiable(Trainable, Protocol):
    """A trainable model that can also be back-propagated through."""

    def parameters(self) -> list[Tensor]:
        """The live trainable tensors in the order of `segments`, for a torch.optim optimiser."""
        ...

    def load(self, theta: Tensor) -> None:
        """Copy theta (d,), wherever it is, into the live trainable tensors."""
        ...

    def flat(self) -> Tensor:
        """Copy the live trainable tensors into a new theta (d,)."""
        ...

    def training_loss(self, batch: Batch) -> Tensor:
        """Mean loss over the label tokens at the live tensors, a scalar with its graph; dropout on."""
        ...


class ClientData(Protocol):
    """The training examples that one client holds."""

    @property
    def num_examples(self) -> int:
        """How many training examples the client holds."""
        ...

    @property
    def num_batches(self) -> int:
        """How many batches a round has for the client."""
        ...

    def batches(self, round_index: int) -> Sequence[Batch]:
        """The client's local steps of a round, in order: a pure function of (run seed, client, round)."""
        ...


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What the server decides before a round: who takes part and at which rate."""

    round: int
    cohort: tuple[int, ...]  # in ascending order
    rates: tuple[float, ...]  # one per member of the cohort, of 16 significant bits
    size: float = 0.0  # of a scalar so far, of 16 significant bits, where the rates are scale-free; 0 if none is known
    groups: tuple[int, ...] = ()  # the direction group of each member; empty where each has directions of its own

    def includes(self, client: int) -> bool:
        """Whether a client is in the cohort."""
        at = bisect_left(self.cohort, client)
        return at < len(self.cohort) and self.cohort[at] == client

    def tasks(self) -> list[ClientTask]:
        """The work of each member, in the cohort's order."""
        groups = self.groups or (None,) * len(self.cohort)
        members = zip(self.cohort, self.rates, groups, strict=True)
        return [ClientTask(self.round, client, rate, self.size, group) for client, rate, group in members]


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's work in a round."""

    round: int
    client: int
    rate: float
    size: float = 0.0  # see `RoundPlan`
    group: int | None = None  # whose directions it shares; None for directions of its own

    @property
    def owner(self) -> int:
        """Whose directions it goes along: the streams' client word."""
        return self.client if self.group is None else self.group


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a client returns. One of `scalars` and `update` is set, as the protocol says."""

    round: int
    client: int
    state_hash: str  # of the theta the client started from
    num_examples: int  # of the steps that were not skipped: the aggregation weight before normalisation
    train_loss: float  # mean over the local steps that were not skipped
    skipped_steps: int  # steps whose loss was not finite
    scalars: tuple[float, ...] | None = None  # g of each step and query, exactly representable in bfloat16
    update: Tensor | None = None  # (d,) float32, theta after the local steps minus theta before


@dataclass(frozen=True, slots=True)
class Contribution:
    """One client's part of a closed round, as the journal keeps it."""

    client: int
    rate: float
    weight: float  # share in the average, of 16 significant bits
    num_examples: int
    train_loss: float
    skipped_steps: int
    scalars: tuple[float, ...] | None  # None in a `weights` run
    drift: float | None = None  # D_i of the model-diff strategy, where that strategy runs
    size: float = 0.0  # of a scalar before the round, where the rates are scale-free; see `RoundPlan`


@dataclass(frozen=True, slots=True)
class GroupSum:
    """What the clients of a direction group did together in a closed round: all that is kept of them."""

    group: int
    clients: int  # that are in the sum
    weight: int  # of them together: examples, or clients where all weigh the same
    train_loss: float  # their mean by weight
    skipped_steps: int
    coefficients: tuple[float, ...]  # of each direction: sum of weight x rate x scalar, of 16 significant bits
    clipped: float | None = None  # share of the clients that were clipped, under noise; no loss is known then


@dataclass(frozen=True, slots=True)
class Refusal:
    """A report that the aggregation did not accept, and why."""

    client: int
    reason: str


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A closed round: with the state before it, enough to compute the state after it.

    Where directions are shared, the record has groups and neither cohort nor contributions: it is as long for ten
    clients as for a million. The cohort follows from the run's seed and the round.
    """

    round: int
    cohort: tuple[int, ...]
    contributions: tuple[Contribution, ...]
    refusals: tuple[Refusal, ...]
    state_hash: str  # SHA-256 of theta after the round, as little-endian float32
    groups: tuple[GroupSum, ...] = ()
    epsilon: float | None = None  # spent so far, in a private run that has noise
    common_rate: float = 0.0  # of all clients, where there are groups

    @property
    def num_coefficients(self) -> int:
        """Along how many directions the round goes."""
        own = sum(len(part.scalars or ()) for part in self.contributions)
        return own + sum(len(part.coefficients) for part in self.groups)

    @property
    def is_void(self) -> bool:
        """Whether the round was not taken: nothing that was reported has any weight in it."""
        return not any(part.weight for part in self.contributions) and not any(
            coefficient for part in self.groups for coefficient in part.coefficients
        )
