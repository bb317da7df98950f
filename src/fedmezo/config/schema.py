"""The configuration as frozen data: every key, its default, what it may hold, and one sentence on what it does.

The keys and defaults are those of FederatedScope's FedMeZO branch; `train.zo`, `train.lr_width`, `federate.protocol`,
`federate.min_clients`, `fedopt`, `eval.samples`, `model.dtype`, `model.quantization` and `model.streamed` are ours. To
add a key, add a field with its sentence below it: reading, errors and docs/config.md follow. What concerns two keys
together belongs in `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedmezo.config.markup import to_yaml
from fedmezo.errors import ConfigError

Split = Literal["val", "test"]
Strategy = Literal["frozen", "random", "round-wise", "five-round", "model-diff", "scale-free"]
Protocol = Literal["scalars", "weights"]
Method = Literal["FedAvg", "FedAvgM", "FedAdam", "FedYogi"]
Aggregation = Literal["mean", "median", "trimmed-mean", "krum", "sign-vote"]
EstimatorName = Literal["two-point", "one-sided", "per-example"]
Dtype = Literal["float32", "bfloat16", "float16"]
Noise = Literal["gaussian", "rademacher", "low-rank"]
Rank = Literal[1, 4, 16, 64, 256]
Quantization = Literal["none", "int8", "int8-dynamic", "nf4", "int8-all", "int8-dynamic-all", "nf4-all"]
# torch.optim without LBFGS (needs a closure) and SparseAdam (needs sparse gradients); torch is not imported here.
OptimizerName = Literal[
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD",
]  # fmt: skip
# torch.optim.lr_scheduler without those that take functions, other schedulers or a metric; two of FederatedScope's own.
SchedulerName = Literal[
    "", "warmup_step", "warmup_noam", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR",
    "ExponentialLR", "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR",
]  # fmt: skip
AUTO: Literal["auto"] = "auto"
"""A value that is measured before the run."""
AdapterMethod = Literal["lora", "prefix", "prompt", "p-tuning", "ia3"]

# Widths of the counter words that number rounds, steps and queries of a run's random draws.
MAX_ROUNDS = 2**28 - 1
MAX_STEPS = 2**24 - 1
MAX_QUERIES = 255
MAX_CLIENTS = 2**32
MAX_SEED = 2**64 - 1

# Far above any use, and low enough that a server's settings cannot ask a site for terabytes.
MAX_BATCH_SIZE = 2**16
MAX_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a field may hold, in words, where its type alone does not say it."""

    text: str


def _adapter_method(value: Any) -> Any:
    """The spelling of the schema for FederatedScope's, which is case-blind and writes (IA)3 as ia_3."""
    if not isinstance(value, str):
        return value
    lowered = value.lower()
    return "ia3" if lowered == "ia_3" else lowered


def _method(value: Any) -> Any:
    """The spelling of the schema, whatever the letter case, as in FederatedScope."""
    if not isinstance(value, str):
        return value
    return next((method for method in get_args(Method) if method.lower() == value.lower()), value)


def _below(name: str) -> str:
    """A path as it is, unless it leads out of the folder that it is meant for, or nowhere."""
    path = PurePath(name)
    if name and (path.is_absolute() or ".." in path.parts or not path.parts):
        raise ValueError("leaves the folder")
    return name


def _measured(key: str, value: float | Literal["auto"]) -> float:
    if value == AUTO:
        raise ConfigError(
            f"{key} is auto, which `fedmezo run` alone measures before it starts; give a number here, such as what "
            "`fedmezo calibrate` finds"
        )
    return value


class Section(BaseModel):
    """A mapping of the file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, data: Any) -> Any:
        """A section whose keys are all commented out is read as None by YAML: all defaults."""
        return {} if data is None else data


class OpenSection(Section):
    """A section whose further keys belong to another library, which checks them when the object is built."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class EarlyStop(Section):
    """When to stop before the last round."""

    patience: int = 5
    """Stop after so many evaluations without a better `eval.best_res_update_round_wise_key`; 0 or less is never."""
    delta: float = Field(0.0, ge=0)
    """By how much the metric must fall to count as an improvement."""
    improve_indicator_mode: Literal["best", "mean"] = "best"
    """Whether the last `patience` evaluations are compared with the best before them or with the mean before them."""


class Federate(Section):
    """Clients, rounds, and what travels between them."""

    mode: Literal["standalone", "distributed"] = "standalone"
    """Clients simulated in this process, or on several machines."""
    client_num: int = Field(ge=1, le=MAX_CLIENTS, examples=[3])
    """How many clients hold the data."""
    client_idx_for_local_train: int = Field(0, ge=0)
    """The only client that trains, and is evaluated, on its own share of the data, counted from 1; 0 is all clients."""
    sample_client_num: Annotated[int, Allowed("a whole number from 1 to federate.client_num, or -1 for all")] = Field(
        -1, ge=-1
    )
    """How many clients take part in a round; -1 is all."""
    sample_client_rate: Annotated[float, Allowed("a number above 0 and up to 1, or -1 for all")] = Field(
        -1.0, ge=-1, le=1
    )
    """Which share of the clients takes part in a round, rounded down but at least one client; -1 is all."""
    min_clients: int = Field(1, ge=1)
    """A round needs this many usable reports."""
    max_ratio: Annotated[float | None, Allowed("a number of at least 0")] = Field(None, ge=0)
    """Refuse reports so many times larger than the round's median; 0 is off. Unset: 5 on several machines, else off."""
    round_deadline: Annotated[float | None, Allowed("a number above 0")] = Field(None, gt=0)
    """Several machines: seconds until a round closes without the rest. Unset: 60 and ten times what half of it took."""
    round_tries: int = Field(5, ge=1)
    """Several machines: tries of a round with too few reports, each twice as long as the last; then the run stops."""
    total_round_num: int = Field(50, ge=1, le=MAX_ROUNDS)
    """How many rounds to train."""
    protocol: Protocol = "scalars"
    """What a client sends: projected gradients, or its adapter's change. The default of llmtrainer is weights."""
    downlink: Literal["scalars", "snapshot"] = "scalars"
    """What a client is sent to catch up in the scalars protocol: what the others have reported, or the weights."""
    method: Annotated[Method, BeforeValidator(_method)] = "FedAvg"
    """How the server combines the reports: their average, or the average as a gradient for an optimiser of its own."""
    ignore_weight: bool = False
    """Give every client of a round the same weight, whatever it has processed."""
    direction_groups: int = Field(0, ge=0, lt=MAX_CLIENTS)
    """Groups of clients that share directions, dealt anew each round: only sums matter. 0: each client has its own."""
    secure_aggregation: bool = False
    """Sum each direction group's reports so that the server sees the sum alone ([privacy](privacy.md))."""
    aggregation: Aggregation = "mean"
    """How the scalars of a group become one for each direction; all but the mean bear up to a third of liars."""
    save_to: str = ""
    """Also write the final adapter here; empty is the run directory alone."""
    save_freq: int = Field(-1, ge=-1)
    """Write a snapshot every so many rounds; 0 and -1 are only where resuming needs one."""
    restore_from: str = ""
    """Start from this saved adapter instead of a fresh one."""

    @property
    def lone_client(self) -> int | None:
        """The client that trains alone, counted from 0 as everywhere here; None where all clients train together."""
        return self.client_idx_for_local_train - 1 if self.client_idx_for_local_train else None

    @property
    def cohort_size(self) -> int:
        """How many clients take part in a round; the rate goes before the number, as in FederatedScope."""
        if self.lone_client is not None:
            return 1
        if self.sample_client_rate > 0:  # rounded first: 0.29 * 100 is 28.999999999999996
            return max(1, int(round(self.sample_client_rate * self.client_num, 9)))
        return self.sample_client_num if self.sample_client_num > 0 else self.client_num


class Privacy(Section):
    """Differential privacy: noise that hides whether a client or an example took part ([privacy](privacy.md))."""

    level: Literal["none", "client", "example"] = "none"
    """What is hidden: nothing, all that a client holds, or each example that it holds."""
    clip: float = Field(0.0, ge=0)
    """Largest L2 norm of a client's scalars of a round, or of an example's scalars of a step; 0 is no limit."""
    epsilon: Annotated[float | None, Allowed("a number above 0")] = Field(None, gt=0)
    """What the run may spend; it stops before it would spend more. Unset: no limit."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability with which the bound on epsilon may fail: far below one in the number of clients or examples."""
    noise_multiplier: Annotated[float | None, Allowed("a number of at least 0")] = Field(None, ge=0)
    """Standard deviation of the noise in units of `privacy.clip`. Unset: what spends epsilon in all rounds."""


class FedOpt(Section):
    """The server's optimiser, where `federate.method` names one (Hsu et al. 2019, Reddi et al. 2021)."""

    lr_server: Annotated[float | None, Allowed("a number above 0")] = Field(None, gt=0)
    """Rate of the server. Unset: 1 for FedAvgM; FedAdam and FedYogi need it."""
    momentum: Annotated[float, Allowed("a number from 0 to below 1")] = Field(0.9, ge=0, lt=1)
    """Momentum of FedAvgM; share of the first moment that FedAdam and FedYogi keep."""
    beta2: Annotated[float, Allowed("a number from 0 to below 1")] = Field(0.99, ge=0, lt=1)
    """Share of the second moment that FedAdam keeps; FedYogi's pace."""
    tau: float = Field(1e-3, gt=0)
    """Added to the root of the second moment: the larger, the less the update's size is adapted."""


class FedProx(Section):
    """A pull of each client towards the state that it started the round from (Li et al. 2020)."""

    use: bool = False
    """Add mu/2 times the squared distance to that state to each client's loss."""
    mu: float = Field(0.0, ge=0)
    """Strength of the pull."""


class SplitterArgs(Section):
    """Arguments of the splitter."""

    alpha: float = Field(0.5, gt=0)
    """Concentration of the Dirichlet distribution of `lda`: the smaller, the more the clients differ."""


class Columns(Section):
    """Names of a table's columns, where they are not those of the keys here; empty is the key's own name."""

    instruction: str = ""
    """What is asked."""
    input: str = ""
    """What it is asked about; no row needs one."""
    output: str = ""
    """The answer."""
    category: str = ""
    """What the lda and meta splitters divide by; no row needs one."""
    messages: str = ""
    """TRL's conversations: a list of objects with role and content."""
    prompt: str = ""
    """TRL's prompt, with a completion."""
    completion: str = ""
    """How the prompt goes on."""
    text: str = ""
    """TRL's plain text, all of which is learnt."""
    choices: str = ""
    """A row's own candidate answers, a list of texts; no row needs any."""


class Table(Section):
    """How a file, a saved folder or a hub data set of one's own is read."""

    columns: Columns = Columns()
    split: str = Field("train", min_length=1)
    """Which split of a saved folder or a hub data set, as `datasets.load_dataset` takes it."""
    subset: str = ""
    """Which configuration of a hub data set; empty for the only one."""


class Data(Section):
    """Which examples, how they are put to the model, and who holds which."""

    root: str = "data"
    """Folder where data files are found and kept."""
    type: Annotated[str, Allowed("NAME or NAME@llm, for example alpaca@llm or mine.jsonl@llm")] = Field(
        pattern=r"^[^@]+(@llm)?$", examples=["alpaca@llm"]
    )
    """A known data set, a file or saved folder under `data.root`, or OWNER/NAME on the hub ([data](data.md))."""
    table: Table = Table()
    answers: Annotated[tuple[str, ...], Allowed("a list of two texts or more, each once")] = Field((), strict=False)
    """Candidate answers of a classification, in the order of the numbers or of false and true that stand for them."""
    format: Literal["alpaca", "template", "chat", "original"] = "alpaca"
    """The Alpaca prompt, `data.template`, the model's chat template, or the original's ([why](differences.md))."""
    template: Annotated[str, Allowed("a text with the place {instruction}, and {input} if there are any")] = ""
    """With `data.format: template`, the text before the answer."""
    splits: Annotated[tuple[float, float, float], Allowed("three numbers of at least 0 that sum to 1")] = Field(
        (0.8, 0.1, 0.1), strict=False
    )
    """Shares of the training, validation and test examples."""
    splitter: Literal["iid", "lda", "meta"] = "iid"
    """How examples go to clients: evenly at random, by a Dirichlet draw over categories, or whole categories."""
    splitter_args: Annotated[tuple[SplitterArgs, ...], Allowed("a list of at most one mapping: [{alpha: 0.5}]")] = (
        Field((), max_length=1, strict=False)
    )
    """Arguments of the splitter, as a list of one mapping."""
    subsample: float = Field(1.0, gt=0, le=1)
    """Use only this share of the data set."""
    keep_tokens: bool = True
    """Keep the tokenised examples in the user's cache folder, where the owner alone can read them, for the next run."""

    @property
    def name(self) -> str:
        """The data set's name without the suffix @llm."""
        return self.type.removesuffix("@llm")

    @property
    def alpha(self) -> float:
        """Concentration for the lda splitter."""
        return (self.splitter_args[0] if self.splitter_args else SplitterArgs()).alpha


class Cache(Section):
    """Where downloads are kept."""

    model: str = ""
    """Folder for models fetched from the hub; empty is the hub's own cache."""


class Chat(Section):
    """Generation."""

    max_len: int = Field(100, ge=1)
    """Longest generated answer in tokens."""


class AdapterArgs(OpenSection):
    """Which adapter; further keys are those of its PEFT config, for LoRA `r`, `lora_alpha`, `lora_dropout`, ..."""

    adapter_package: Literal["peft"] = "peft"
    """Library that makes the adapter."""
    adapter_method: Annotated[AdapterMethod, BeforeValidator(_adapter_method)] = "lora"
    """LoRA, prefix tuning, prompt tuning, p-tuning, or (IA)3."""


class Adapter(Section):
    """The trainable part of the model."""

    use: bool = False
    """Train an adapter; otherwise the model's own parameters, all of them or those of `train.trainable`."""
    args: Annotated[tuple[AdapterArgs], Allowed("a list of one mapping: [{adapter_method: lora, r: 8}]")] = Field(
        (AdapterArgs(),), strict=False
    )
    """The adapter and its settings, as a list of one mapping."""

    @property
    def method(self) -> AdapterMethod:
        """Which adapter."""
        return self.args[0].adapter_method

    @property
    def options(self) -> dict[str, Any]:
        """The PEFT config's own keys."""
        return self.args[0].options


class Llm(Section):
    """The language model's input, output and adapter."""

    tok_len: int = Field(128, ge=1, le=MAX_TOKENS)
    """Longest example in tokens; longer ones are cut on the right."""
    cache: Cache = Cache()
    chat: Chat = Chat()
    adapter: Adapter = Adapter()


class Dataloader(Section):
    """Batches."""

    batch_size: int = Field(64, ge=1, le=MAX_BATCH_SIZE)
    """Examples in a local step."""


class Model(Section):
    """The base model."""

    type: Annotated[str, Allowed("NAME or NAME@huggingface_llm, NAME being on the hub or a local folder or file")] = (
        Field(pattern=r"^[^@]+(@huggingface_llm)?$", examples=["openlm-research/open_llama_3b_v2@huggingface_llm"])
    )
    """A causal language model: a name on the Hugging Face hub, a local folder, or a GGUF file ([models](models.md))."""
    dtype: Annotated[Literal["auto"] | Dtype | None, Allowed("auto, float32, bfloat16 or float16")] = None
    """Number format that the base computes in; auto: the fastest here with a sound g. Unset: float32, or half."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Without an adapter: how the weights are held; bfloat16 is half the memory, and rounded at random each round."""
    quantization: Quantization | None = None
    """Linear layers in 8 or 4 bits; -dynamic: products too; -all: embedding and head in 8. Unset: none, or by auto."""
    streamed: bool = False
    """Read the layers from the disk in each forward pass, two in memory: for models larger than memory."""

    trust_remote_code: bool = False
    """Run Python code that the model brings along, where transformers has none for it: it has all your rights."""

    @property
    def name(self) -> str:
        """Hub name or folder without the suffix @huggingface_llm."""
        return self.type.removesuffix("@huggingface_llm")


class Optimizer(OpenSection):
    """The local optimiser; further keys are those of the torch.optim class."""

    type: OptimizerName = "SGD"
    """Class of torch.optim that llmtrainer uses; mezotrainer is SGD."""
    lr: Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], Allowed("auto, or a number above 0")] = 0.1
    """Learning rate, eta_0 of the strategies; auto: `fedmezo run` calibrates first ([calibration](calibration.md))."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of the adapter's weights; the scalars protocol needs 0."""

    @property
    def rate(self) -> float:
        """The learning rate as a number; ConfigError where it is still to be measured."""
        return _measured("train.optimizer.lr", self.lr)


class Scheduler(OpenSection):
    """Learning rate within llmtrainer's local steps; further keys are those of the torch.optim.lr_scheduler class."""

    type: SchedulerName = ""
    """Class of torch.optim.lr_scheduler, or warmup_step or warmup_noam; empty is a constant rate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of warm-up."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Warm-up as a share of all steps, where `warmup_steps` is 0."""


class RateSchedule(Section):
    """How the rate changes over the rounds, whatever the strategy: a share of what the strategy says."""

    type: Literal["constant", "linear", "cosine", "step"] = "constant"
    """Constant, or from 1 down to `train.schedule.floor`: straight, along half a cosine, or in steps."""
    warmup_rounds: int = Field(0, ge=0, le=MAX_ROUNDS)
    """Rounds of a straight rise from 0 to 1 before it."""
    floor: float = Field(0.0, ge=0, le=1)
    """Share of the rate that is left at the end."""
    step_rounds: int = Field(10, ge=1, le=MAX_ROUNDS)
    """step: rounds between two falls."""
    step_factor: Annotated[float, Allowed("a number above 0 and below 1")] = Field(0.5, gt=0, lt=1)
    """step: what each of them leaves of the share before it."""


class Zo(Section):
    """The zeroth-order estimate of mezotrainer."""

    estimator: EstimatorName = "two-point"
    """A pair of losses around theta per direction (the paper's), one loss, or a pair on one row of the batch each."""
    eps: Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], Allowed("auto, or a number above 0")] = 1e-3
    """Perturbation scale, mu of the paper; auto: `fedmezo run` calibrates first ([calibration](calibration.md))."""
    queries: int = Field(1, ge=1, le=MAX_QUERIES)
    """Directions per step; for per-example, directions per row of the batch."""
    noise: Noise = "gaussian"
    """Distribution of the directions. The default without an adapter is low-rank: outer products of random signs."""
    rank: Rank = 1
    """Rank of a low-rank direction over each matrix."""
    clip: float = Field(0.0, ge=0)
    """Largest size of a scalar; 0 is no limit. Over several machines two-point's default is 1 / (2 eps): a nat."""

    @property
    def scale(self) -> float:
        """The perturbation scale as a number; ConfigError where it is still to be measured."""
        return _measured("train.zo.eps", self.eps)


class Train(Section):
    """A client's local training."""

    train_strategy: Strategy = "frozen"
    """How a client's rate follows from `train.optimizer.lr`, its losses, its updates or the size of the scalars."""
    schedule: RateSchedule = RateSchedule()
    trust: bool = False
    """Leave out a round whose train loss is twice that of the rounds before it, and halve the rate from then on."""
    lr_width: float = Field(5e-6, ge=0)
    """How far the strategies move the rate at most, alpha of the paper."""
    local_update_steps: int = Field(1, ge=1, le=MAX_STEPS)
    """Local steps in a round, or passes over the client's data, see `train.batch_or_epoch`."""
    batch_or_epoch: Literal["batch", "epoch"] = "batch"
    """What `train.local_update_steps` counts."""
    lanes: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], Allowed("auto, or a whole number above 0")] = "auto"
    """Perturbed copies that share a forward pass: as many as memory allows, or a number; 1 is one after the other."""
    compile: Annotated[Literal["auto"] | bool, Allowed("auto, true or false")] = "auto"
    """Compile directions and forward pass (on a GPU: CUDA graphs), for a slower start; auto: in long runs on a CPU."""
    trainable: Annotated[
        tuple[str, ...], Allowed("a list of names with *, ? and [0-9], such as ['*norm*', '*.bias']")
    ] = Field(("*",), min_length=1, strict=False)
    """Without an adapter: which parameters to train, by patterns of their names."""
    gradient_checkpointing: bool = False
    """llmtrainer: compute activations again on the way back instead of keeping them, for less memory and more time."""
    is_enable_half: bool = False
    """Hold the base weights in half precision: float16 on a GPU, bfloat16 on a CPU that has it."""
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    zo: Zo = Zo()


class Grad(Section):
    """What llmtrainer does to gradients."""

    grad_clip: float = -1.0
    """Largest norm of the gradient; 0 or less is no limit."""
    grad_accum_count: int = Field(1, ge=1)
    """Batches whose gradients are added up before a step."""


class Criterion(Section):
    """The loss."""

    type: Literal["CrossEntropyLoss"] = "CrossEntropyLoss"
    """Cross-entropy of the answer's tokens."""


class Trainer(Section):
    """The client's algorithm."""

    type: Literal["mezotrainer", "llmtrainer"] = "mezotrainer"
    """Zeroth-order steps (FedMeZO), or back-propagation (the BP baseline)."""


class Eval(Section):
    """When and what to evaluate."""

    freq: int = Field(1, ge=0)
    """Evaluate every so many rounds; 0 is never."""
    metrics: tuple[Literal["loss", "accuracy"], ...] = Field(("loss",), strict=False)
    """What to measure: the loss, which always is, and the share of right answers among `data.answers` or choices."""
    split: tuple[Split, ...] = Field(("test", "val"), strict=False)
    """On which examples."""
    best_res_update_round_wise_key: Literal["val_loss", "test_loss", "val_accuracy", "test_accuracy"] = "val_loss"
    """The metric that says which round was best, and when to stop early."""
    samples: int = Field(0, ge=0)
    """After training, show the model's answers to so many instructions it has not seen, before and after training."""

    @property
    def active(self) -> bool:
        """Whether the run evaluates at all."""
        return self.freq > 0 and bool(self.split)


class Wandb(Section):
    """Weights & Biases, an optional extra."""

    use: bool = False
    """Send the metrics there."""
    name_user: str = ""
    """Your entity there."""
    name_project: str = ""
    """The project there."""
    online_track: bool = True
    """Send each round when it ends; otherwise everything when the run ends."""
    client_train_info: bool = False
    """Send each client's training metrics too, not only those over all clients."""


class Mlflow(Section):
    """MLflow, an optional extra."""

    use: bool = False
    """Send the metrics there."""
    tracking_uri: str = ""
    """A server's address, or a database such as sqlite:///mlflow.db; empty is what MLflow takes by itself."""
    experiment: str = "fedmezo"
    """The experiment there, made if it does not exist."""


class Config(Section):
    """A run's configuration, complete and consistent."""

    use_gpu: bool = False
    """Compute on a GPU where there is one."""
    device: int = Field(-1, ge=-1)
    """Number of the GPU; -1 is the first."""
    threads: int = Field(0, ge=0)
    """Threads that a CPU computes with; 0 is as many as PyTorch takes by itself."""
    workers: int = Field(0, ge=0)
    """Processes that clients are dealt to with `--engine ray`; 0 is one for each GPU, or for each core."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of everything random in the run."""
    outdir: str = "runs"
    """Folder in which the run makes its own."""
    expname: Annotated[str, AfterValidator(_below), Allowed("a name, or a path that stays below outdir")] = ""
    """Name of the run's folder; empty is made from the data set, the trainer and the time."""
    early_stop: EarlyStop = EarlyStop()
    federate: Federate
    privacy: Privacy = Privacy()
    fedopt: FedOpt = FedOpt()
    fedprox: FedProx = FedProx()
    data: Data
    llm: Llm = Llm()
    dataloader: Dataloader = Dataloader()
    model: Model
    train: Train = Train()
    grad: Grad = Grad()
    criterion: Criterion = Criterion()
    trainer: Trainer = Trainer()
    eval: Eval = Eval()
    wandb: Wandb = Wandb()
    mlflow: Mlflow = Mlflow()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Sections with required keys exist, and the protocol follows the trainer where it is not given."""
        if not isinstance(data, dict):
            return data
        federate = data.get("federate")
        federate = {} if federate is None else federate
        trainer = data.get("trainer")
        is_bp = isinstance(trainer, dict) and trainer.get("type") == "llmtrainer"
        if isinstance(federate, dict) and is_bp:
            federate = {"protocol": "weights"} | federate
        return {"data": {}, "model": {}} | data | {"federate": federate}

    @property
    def is_automatic(self) -> bool:
        """Whether the rate or eps is to be measured before the run."""
        return AUTO in (self.train.optimizer.lr, self.train.zo.eps)

    def to_yaml(self) -> str:
        """Every key with its value, as YAML that loads back equal."""
        return to_yaml(self.model_dump())
