"""What stands in a journal and in a published log: every field, what it may hold, and since which format version.

To add a field to the header or to a round's line, add it here, marked `Since(n)`, with a default that says what older
formats meant without it, and let `FORMAT_VERSION` be n. Reading, writing and what is said of a wrong value follow.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from fedmezo.config.markup import shorten
from fedmezo.config.schema import (
    MAX_CLIENTS,
    MAX_QUERIES,
    MAX_ROUNDS,
    MAX_SEED,
    MAX_STEPS,
    AdapterArgs,
    Allowed,
    Dtype,
    EstimatorName,
    Noise,
    Protocol,
    Quantization,
    Rank,
)
from fedmezo.config.strict import LONGEST_NAME, Client, Format, Hash, Name, Since
from fedmezo.federation.course import Course
from fedmezo.federation.server_optimizers import FEDAVG, PLAIN_AVERAGE, ServerOptimizer
from fedmezo.records import Segment
from fedmezo.zo.arithmetic import (
    LARGEST_FACTOR,
    decode_coefficients,
    decode_scalars,
    encode_coefficients,
    encode_scalars,
    factor_fault,
    largest,
    round_coefficient,
)
from fedmezo.zo.estimators.family import make_estimator
from fedmezo.zo.estimators.protocol import Estimator, Settings
from fedmezo.zo.noise import Directions
from fedmezo.zo.replay import LARGEST_SHARE

FORMAT_VERSION = 3
"""Of the journal, and of the published log, whose header is the journal's; older ones are read."""

MOST_SEGMENTS = 1_000_000
MOST_PARAMETERS = 2**40
_LONGEST_TEXT = 1_000_000


def _segments(value: Any) -> tuple[Segment, ...]:
    """Segments that lie one after the other, from pairs of a name and a shape, or from themselves."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MOST_SEGMENTS:
        raise ValueError(f"needs 1 to {MOST_SEGMENTS} pairs of a tensor's name and its shape")
    segments: list[Segment] = []
    for item in value:
        start = segments[-1].stop if segments else 0
        segment = item if isinstance(item, Segment) else _segment(item, start)
        if segment.start != start or segment.stop > MOST_PARAMETERS:
            raise ValueError(f"the tensors lie in no row of at most {MOST_PARAMETERS} elements")
        segments.append(segment)
    return tuple(segments)


def _segment(item: Any, start: int) -> Segment:
    match item:
        case [str(name), list(shape)] if 0 < len(name) <= LONGEST_NAME and name.isprintable() and len(shape) <= 8:
            if all(type(size) is int and 0 < size <= MOST_PARAMETERS for size in shape):
                return Segment(name, tuple(shape), start)
    raise ValueError("needs pairs of a tensor's name and its shape, such as ['a.weight', [8, 128]]")


def _adapter(value: Any) -> dict[str, Any] | None:
    """The adapter as configured; the rest of its keys are checked when it is attached."""
    if value is None:
        return None
    try:
        args = AdapterArgs.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
    if "adapter_method" not in args.model_fields_set:
        raise ValueError("adapter_method: missing")
    return dict(value)


def _coefficient(value: float) -> float:
    if round_coefficient(value) != value:
        raise ValueError(f"{value!r} has more than 16 significant bits")
    return value


def _scalars(value: Any) -> Any:
    """Scalars from base64 of little-endian bfloat16."""
    if value is None or isinstance(value, tuple):  # as they are in memory
        return value
    if not isinstance(value, str):
        raise ValueError(f"is no base64 of bfloat16 numbers: got {shorten(value)}")
    try:
        return decode_scalars(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is no base64 of bfloat16 numbers: {error}") from error


def _coefficients(value: Any) -> Any:
    """Coefficients from base64 of the upper three bytes of float32."""
    if isinstance(value, tuple):  # as they are in memory
        return value
    if not isinstance(value, str):
        return value
    try:
        return decode_coefficients(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is no base64 of coefficients: {error}") from error


def _distinct(clients: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(clients)) < len(clients):
        raise ValueError("names a client twice")
    return clients


Segments = Annotated[
    tuple[Segment, ...],
    PlainValidator(_segments),
    PlainSerializer(lambda segments: [[segment.name, list(segment.shape)] for segment in segments]),
    Allowed("a list of pairs of a tensor's name and its shape"),
]
Adapter = Annotated[
    dict[str, Any] | None, PlainValidator(_adapter), Allowed("a mapping with adapter_method in it, or null")
]
Patterns = Annotated[
    tuple[Name, ...], Field(max_length=MOST_SEGMENTS, strict=False), Allowed("a list of patterns of names")
]
Coefficient = Annotated[float, Field(ge=0, le=LARGEST_FACTOR), AfterValidator(_coefficient)]
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_coefficient)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Coefficients = Annotated[
    tuple[float, ...],
    Field(max_length=MAX_STEPS * MAX_QUERIES, strict=False),
    BeforeValidator(_coefficients),
    PlainSerializer(lambda values: base64.b64encode(encode_coefficients(values)).decode()),
    Allowed("base64 of coefficients, 3 bytes each"),
]
Scalars = Annotated[
    tuple[float, ...],
    Field(max_length=MAX_STEPS * MAX_QUERIES, strict=False),
    BeforeValidator(_scalars),
    PlainSerializer(lambda scalars: base64.b64encode(encode_scalars(scalars)).decode()),
    Allowed("base64 of finite bfloat16 numbers"),
]


class ServerLine(Format):
    """The server's optimiser; see `federation.server_optimizers.ServerOptimizer`."""

    method: Literal["FedAvgM", "FedAdam", "FedYogi"]
    lr: float = Field(gt=0, le=LARGEST_FACTOR)
    momentum: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    tau: float = Field(gt=0, le=LARGEST_FACTOR)


class PrivacyLine(Format):
    """How much noise hides what; see `config.schema.Privacy`."""

    level: Literal["client", "example"]
    clip: float = Field(ge=0, le=LARGEST_FACTOR)
    noise_multiplier: float = Field(ge=0, le=LARGEST_FACTOR)
    delta: float = Field(gt=0, lt=1)
    epsilon: Annotated[float | None, Field(gt=0), Allowed("a number above 0, or null")] = None


class Header(Format):
    """What replay needs besides the rounds and the base model itself, and what a resumed run must agree with."""

    seed: int = Field(ge=0, le=MAX_SEED)
    """The run's seed."""
    rounds: int = Field(ge=1, le=MAX_ROUNDS)
    """Rounds as planned; an early stop makes fewer."""
    protocol: Protocol
    """`scalars` or `weights`; only the first can be replayed."""
    noise: Noise
    """Distribution of the directions."""
    rank: Annotated[Rank, Since(2)] = 1
    """Of low-rank directions."""
    eps: float = Field(ge=2.0**-100, le=LARGEST_FACTOR)
    """Perturbation scale."""
    queries: int = Field(ge=1, le=MAX_QUERIES)
    """Directions per step, or per row of a batch."""
    estimator: Annotated[EstimatorName, Since(2)] = "two-point"
    """What a step asks for and what its scalars mean."""
    batch_size: Annotated[int, Field(ge=1, le=2**31 - 1), Since(2)] = 1
    """Rows of a batch; with the estimator and the queries they give the directions of a step."""
    scale_free: Annotated[bool, Since(2)] = False
    """Whether scalars are divided by their running size."""
    direction_groups: Annotated[int, Field(ge=0, lt=MAX_CLIENTS), Since(3)] = 0
    """How many groups of clients share directions; 0 where each client has its own."""
    secure_aggregation: Annotated[bool, Since(3)] = False
    """Whether the server saw the groups' sums alone."""
    privacy: Annotated[PrivacyLine | None, Since(3)] = None
    """The noise that hides clients or examples; null for none."""
    server_optimizer: Annotated[ServerLine | None, Since(2)] = None
    """What becomes of the average update; None is the average itself."""
    base: Name
    """Name of the base model, as configured."""
    base_hash: Hash
    """Of the base weights."""
    dtype: Dtype
    """Of the base weights, or of what multiplies them where they are quantised."""
    quantization: Annotated[Quantization, Since(2)] = "none"
    """How the base weights were quantised."""
    adapter: Adapter
    """The PEFT method and its keys, as configured; null where the model's own parameters are trained."""
    trainable: Annotated[Patterns, Since(2)] = ()
    """Then: patterns of the names of those that are; else none."""
    weights: Annotated[Literal["float32", "bfloat16"], Since(3)] = "float32"
    """What theta is; bfloat16 is rounded at random after each round."""
    theta_hash: Hash
    """Of the initial theta."""
    restored: bool
    """Whether the initial theta came from a saved adapter instead of base model and seed."""
    data_hash: Hash
    """Of the encoded examples."""
    partition_hash: Hash
    """Of who holds which of them."""
    segments: Segments
    """Canonical order and shapes of the trainable tensors."""

    @model_validator(mode="after")
    def _trains_one(self) -> Header:
        """Either an adapter is trained or the model's own parameters."""
        if (self.adapter is None) != bool(self.trainable):
            raise ValueError("adapter: needs a mapping where trainable is empty, and null where it is not")
        return self

    @property
    def num_parameters(self) -> int:
        """The size d of theta."""
        return self.segments[-1].stop

    @model_validator(mode="after")
    def _has_an_estimator(self) -> Header:
        self.estimator_with()
        return self

    def estimator_with(self, noise: Directions | None = None) -> Estimator:
        """The clients' estimator, as far as its moves depend on it; without a noise it only counts."""
        bare = Settings(self.eps, self.queries, scale_free=self.scale_free)
        return make_estimator(self.estimator, bare if noise is None else replace(bare, noise=noise), self.batch_size)

    @property
    def directions(self) -> int:
        """Directions of a step."""
        return self.estimator_with().directions

    def course_with(self, noise: Directions) -> Course:
        """What it takes to follow the run through its rounds."""
        line = self.server_optimizer
        server = PLAIN_AVERAGE if line is None else ServerOptimizer(**line.model_dump())
        return Course(self.seed, self.estimator_with(noise), server)


def server_line(server: ServerOptimizer) -> ServerLine | None:
    """The server's optimiser as the header has it."""
    return None if server.method == FEDAVG else ServerLine.model_validate(asdict(server))


class ContributionLine(Format):
    """One client's part of a round; see `records.Contribution`. The mean of float32 losses fits float32, too."""

    client: Client
    rate: Coefficient
    weight: Share
    num_examples: Count
    train_loss: float = Field(ge=-(2.0**128), le=2.0**128)
    skipped_steps: Count
    scalars: Scalars | None = None
    drift: Annotated[float | None, Field(ge=0), Allowed("a number of at least 0")] = None
    size: Annotated[Coefficient | None, Since(2)] = None


class GroupLine(Format):
    """A direction group's part of a round; see `records.GroupSum`."""

    group: Client
    clients: Count
    weight: Count
    train_loss: float = Field(ge=-(2.0**128), le=2.0**128)
    skipped_steps: Count
    coefficients: Coefficients
    clipped: Annotated[float | None, Field(ge=-(2.0**64), le=2.0**64)] = None
    """Share of the clients that were clipped, under noise; no loss is known then."""


class RefusalLine(Format):
    """A report that was not accepted, and why."""

    client: Client
    reason: Annotated[str, Field(max_length=_LONGEST_TEXT)]


class RoundLine(Format):
    """A closed round; see `records.RoundRecord`."""

    round: int = Field(ge=0, lt=MAX_ROUNDS)
    cohort: Annotated[
        tuple[Client, ...], Field(strict=False), AfterValidator(_distinct), Allowed("a list of numbers of clients")
    ]
    clients: Annotated[tuple[ContributionLine, ...], Field(strict=False)]
    common_rate: Annotated[Coefficient | None, Since(3)] = None
    """Of all clients, where there are groups."""
    groups: Annotated[tuple[GroupLine, ...] | None, Field(strict=False), Since(3)] = None
    epsilon: Annotated[float | None, Field(ge=0), Since(3)] = None
    """Spent so far, in a private run that has noise."""
    refused: Annotated[tuple[RefusalLine, ...], Field(strict=False)]
    state_hash: Hash


class RemarkLine(Format):
    """Something a later reader must know."""

    text: Annotated[str, Field(max_length=_LONGEST_TEXT)]


class EndLine(Format):
    """The results were written."""

    rounds: int = Field(ge=0, le=MAX_ROUNDS)


class LogDocument(Format):
    """What a published log says before its columns."""

    header: Header
    rounds: int = Field(ge=0, le=MAX_ROUNDS)
    state_hash: Hash


def round_fault(line: RoundLine, header: Header) -> str | None:
    """What keeps a round from being one of a run; None if nothing does."""
    if (line.groups is not None) != (header.direction_groups > 0) or (line.groups is None) != (
        line.common_rate is None
    ):
        return f"groups, common_rate: belong to a run of direction groups, and this one has {header.direction_groups}"
    if line.groups is not None:
        return _groups_fault(line, line.groups, header)
    members = [part.client for part in line.clients]
    if len(set(members)) < len(members) or not set(members) <= set(line.cohort):
        return "clients: each must be one of the cohort, and stand there once"
    for part in line.clients:
        fault = _scalars_fault(part, header)
        if fault is not None:
            return f"client {part.client}: {fault}"
    return None


def _groups_fault(line: RoundLine, groups: tuple[GroupLine, ...], header: Header) -> str | None:
    numbers = [part.group for part in groups]
    if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= header.direction_groups:
        return f"groups: each must be one of {header.direction_groups}, and stand there once"
    if line.cohort or line.clients:
        return "cohort, clients: must be empty where there are groups"
    if any(part.weight < 1 or part.clients < 1 for part in groups):
        return "groups: each must have clients, and they a weight"
    if any(len(part.coefficients) > MAX_STEPS * header.directions for part in groups):
        return f"groups: one has too many coefficients for {MAX_STEPS} steps"
    return None


def _scalars_fault(part: ContributionLine, header: Header) -> str | None:
    scalars = part.scalars
    if (scalars is None) != (header.protocol != "scalars"):
        return f"scalars belong to a run of the scalars protocol, and this one's is {header.protocol}"
    if scalars is None:
        return None
    if len(scalars) > MAX_STEPS * header.directions:
        return f"{len(scalars)} scalars are too many for {MAX_STEPS} steps"
    reach = max(largest(scalars), LARGEST_SHARE) if header.scale_free else largest(scalars)
    return factor_fault(part.rate, part.weight, reach)
