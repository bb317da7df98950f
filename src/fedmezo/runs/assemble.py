"""From a configuration to the parts of a run: model, data, clients and server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fedmezo.config import Config
from fedmezo.config.schema import Dtype, Quantization
from fedmezo.data.encode import EncodedDataset, encode_examples
from fedmezo.data.fingerprint import dataset_hash, partition_hash
from fedmezo.data.partition import Indices, Partition, partition, subsample
from fedmezo.data.prompt import ALPACA, Prompts, prompts_for
from fedmezo.data.shard import Schedule, Shard
from fedmezo.data.sources import Reading, load_examples, without_rare_categories
from fedmezo.data.splitters import Splitter, make_splitter
from fedmezo.errors import ConfigError
from fedmezo.federation.aggregate import ReportRules
from fedmezo.federation.clients import ClientWork, FirstOrderClients, ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.optimizers import OptimizerFactory
from fedmezo.federation.rates import SCALE_FREE, RateStrategy
from fedmezo.federation.round import Federation
from fedmezo.federation.schedule import RateSchedule
from fedmezo.federation.server_optimizers import ServerOptimizer
from fedmezo.models import fitness
from fedmezo.models.causal_lm import CausalLM
from fedmezo.models.fingerprint import base_hash
from fedmezo.models.foreign import explained
from fedmezo.models.hardware import AUTO, DTYPES, choose_device, choose_dtype
from fedmezo.models.lane_budget import fitting_lanes, longest_batch
from fedmezo.models.language_model import LanguageModel
from fedmezo.models.loading import load_base
from fedmezo.models.quantised import NONE, quantise_, rounds_activations, scheme_of
from fedmezo.models.vocabulary import settle_special_tokens
from fedmezo.models.whole import WholeLM
from fedmezo.privacy.examples import PrivateTwoPoint
from fedmezo.records import Example
from fedmezo.results.console import work_progress
from fedmezo.results.metrics import ACCURACY
from fedmezo.runs.choosing import make_candidates
from fedmezo.runs.directory import environment
from fedmezo.runs.evaluate import Evaluation, accuracy, evaluate
from fedmezo.runs.format import Header, server_line
from fedmezo.runs.hiding import hides_examples, hides_losses, privacy_line, private_estimator, private_work, with_coding
from fedmezo.runs.own import NOTHING, Own
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.estimators.family import make_estimator as estimator_of
from fedmezo.zo.estimators.own import OwnScalars
from fedmezo.zo.estimators.protocol import Estimator, Settings
from fedmezo.zo.low_rank import LOW_RANK, directions_for
from fedmezo.zo.noise import Directions, Noise, Purpose, Stream, compiles, words
from fedmezo.zo.signal import Signal, find_sound_eps, measure_signal

MEZO = "mezotrainer"
BATCHES_FOR_NOISE = 4

OPERATIONS_WORTH_COMPILING = 1e14
"""Of a run's forward passes: ten minutes on a core of 160 GFLOP/s, a tenth of which makes up for compiling them."""


@dataclass(frozen=True, slots=True, eq=False)
class TunedModel:
    """A base model with what of it is trained, as a run uses it."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerFast
    base_hash: str
    dtype: torch.dtype
    quantization: Quantization  # as asked for
    theta: Tensor  # (d,) initial: of an adapter a copy on the host; of all parameters the weights themselves
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Holdings:
    """The encoded examples, and who holds which of them."""

    examples: tuple[Example, ...]  # those that were kept, in the order of the data set
    dataset: EncodedDataset
    partition: Partition
    prompts: Prompts = ALPACA


@dataclass(frozen=True, slots=True, eq=False)
class HandedBase:
    """A base model that a program brings instead of a name; what is tuned is tuned in it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_model(config: Config, handed: HandedBase | None = None) -> TunedModel:
    """The model that the configuration names or a program hands over, with a fresh adapter if it is to have one.

    Raises:
        ModelError: see `models.loading` and `models.adapters`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device, device_notices = choose_device(config.use_gpu, config.device)
    dtype, dtype_notices = choose_dtype(config.model.dtype, config.train.is_enable_half, device)
    scheme = config.model.quantization or NONE
    if handed is not None:
        if config.model.streamed:
            raise ConfigError("model.streamed is True, but the program's model is in memory already: leave it out")
        base, tokenizer = handed.model.requires_grad_(False).train(False).to(device), handed.tokenizer
        quantise_(base, scheme)
    else:
        own_code = config.model.trust_remote_code
        name, cache = config.model.type, config.llm.cache.model
        loaded = dtype if config.llm.adapter.use else DTYPES[config.model.weights]
        base, tokenizer = load_base(
            name, cache, loaded, device, quantization=scheme, own_code=own_code, streamed=config.model.streamed
        )
    assert isinstance(tokenizer, PreTrainedTokenizerFast), "load_base asks for a fast tokenizer"
    fingerprint = base_hash(base)
    ending = settle_special_tokens(base, tokenizer)
    model: LanguageModel
    if config.llm.adapter.use:
        beside = tokenizer if ending.is_new else None
        model = CausalLM(base, config.llm.adapter.args[0].model_dump(), config.seed, beside)
    else:
        held, low_rank = DTYPES[config.model.weights], _has_low_rank(config)
        model = WholeLM(base, tokenizer, config.train.trainable, low_rank=low_rank, dtype=dtype, held=held)
    notices = (*device_notices, *dtype_notices, *ending.notices, *model.notices)
    return TunedModel(model, tokenizer, fingerprint, dtype, scheme, model.initial(), notices)


def initial_thetas(config: Config, tuned: TunedModel) -> Callable[[], Tensor]:
    """Gives theta (d,) before training as often as it is asked, on the model's device, for whoever asks to change.

    All parameters are in memory once: for a second time they are loaded again.
    """
    if config.llm.adapter.use:
        return lambda: tuned.theta.to(tuned.model.device, copy=True)
    loaded = [tuned.theta]
    return lambda: loaded.pop() if loaded else load_model(config).theta


def load_holdings(
    config: Config, tokenizer: PreTrainedTokenizerFast, console: Console, splitter: Splitter | None = None
) -> Holdings:
    """Read, encode and divide the data set, by a splitter of a program's own if there is one.

    Raises:
        DataError: the data cannot be had, is damaged, or cannot be divided as asked.
    """
    with work_progress(console, f"reading {config.data.name}", is_bytes=True) as show:
        examples = load_examples(config.data.type, Path(config.data.root), show, reading_of(config))
    if config.data.splitter == "meta":
        examples = without_rare_categories(config.data.type, examples)
    rng = np.random.default_rng(words(Stream(config.seed, Purpose.PARTITION), 0, 8).tolist())
    if config.data.subsample < 1:
        categories = [example.category for example in examples]
        examples = [examples[i] for i in subsample(categories, config.data.subsample, rng)]
    prompts = make_prompts(config, tokenizer)
    dataset = encode_examples(examples, tokenizer, config.llm.tok_len, tokens_folder(config), prompts)
    kept = tuple(examples[i] for i in dataset.kept)
    splitter = splitter or make_splitter(config.data.splitter, config.data.alpha)
    categories = [example.category for example in kept]
    divided = partition(categories, config.data.splits, config.federate.client_num, splitter, rng)
    return Holdings(kept, dataset, divided, prompts)


def reading_of(config: Config) -> Reading:
    """How the configuration has tables read."""
    table = config.data.table
    columns = {field: name for field, name in table.columns.model_dump().items() if name}
    return Reading(columns, table.split, table.subset, config.data.answers)


def make_prompts(config: Config, tokenizer: PreTrainedTokenizerFast) -> Prompts:
    """How examples are put to the model.

    Raises:
        ModelError: they are to be put as a chat, and the model has no template for one.
    """
    return prompts_for(config.data.format, config.data.template, tokenizer)


def prompt_notices(holdings: Holdings) -> list[str]:
    """What the user should be told about how the model is asked."""
    prompts = holdings.prompts
    if prompts.format != "alpaca" or prompts.chat is None:
        return []
    if all(example.form != "instruction" for example in holdings.examples):
        return []
    return ["the model has a chat template of its own, but is asked in the Alpaca prompt; to use it: data.format: chat"]


def require_fit(config: Config, tuned: TunedModel, dataset: EncodedDataset) -> None:
    """See that the model has room for the examples, before anything is computed from them.

    On a CPU, which survives it, the longest example is also tried: some models know limits that no config states.

    Raises:
        DataError: the longest has too few positions, or a token no row.
        ModelError: the model fails on the longest example.
    """
    model, base = tuned.model, tuned.model.base
    fitness.require_fit(base, model.virtual_tokens, dataset, config.llm.tok_len)
    if len(dataset) and model.device.type == "cpu":
        longest = int(dataset.lengths.argmax())
        with explained(f"{type(base).__name__} fails on the longest example, of {dataset.lengths[longest]} tokens"):
            model.example_losses(tuned.theta, dataset.batch([longest]))


def tokens_folder(config: Config) -> Path | None:
    """Where tokenised data sets are kept, if they may be: under `$XDG_CACHE_HOME`, by default ~/.cache."""
    if not config.data.keep_tokens:
        return None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedmezo"


def use_lanes(config: Config, tuned: TunedModel, dataset: EncodedDataset, clients: int | None = None) -> list[str]:
    """Give the model the lanes that the configuration asks for; returns what the user should be told.

    With `auto`, as many as a round's clients can fill and memory has room for, by a measurement of two lanes on the
    longest batch of the data set.

    Args:
        config: of the run.
        tuned: the model.
        dataset: what it is to be tuned on.
        clients: that are run here in a round; None for the whole cohort.
    """
    if config.trainer.type != MEZO:
        return []
    wanted, model = config.train.lanes, tuned.model
    compiled = _compiles_forward(config, model, dataset)
    if wanted == 1 and not compiled:
        return []
    estimator = bare_estimator(config)
    useful = estimator.losses_per_step * (config.federate.cohort_size if clients is None else clients)
    rows = config.dataloader.batch_size * estimator.passes // estimator.losses_per_step
    notices = model.use_lanes(2)
    if model.lanes > 1:
        if wanted == "auto":
            longest = longest_batch(rows, int(dataset.lengths.max()), model.device)
            bytes_per_lane = model.bytes_per_lane(longest, tuned.theta, estimator)
            wanted = fitting_lanes(bytes_per_lane, useful, model.device, streamed=config.model.streamed)
        model.use_lanes(min(wanted, useful))
        notices += model.compile(rows) if compiled else []
    return notices


def _compiles_forward(config: Config, model: LanguageModel, dataset: EncodedDataset) -> bool:
    """Whether the forward pass is to be compiled; with `auto`, that over lanes if the run is long enough on a CPU.

    A model whose number format is not settled yet is not, nor one whose layers are read in each pass.
    """
    if config.model.dtype == AUTO or config.model.streamed:
        return False
    if config.train.compile != "auto":
        return config.train.compile
    if config.train.lanes == 1 or not config.llm.adapter.use:
        return False
    tokens = planned_passes(config) * config.dataloader.batch_size * float(dataset.lengths.mean())
    operations = 2 * tokens * sum(parameter.numel() for parameter in model.network.parameters())
    return model.device.type == "cpu" and operations >= OPERATIONS_WORTH_COMPILING


def noise_of_g(
    config: Config, tuned: TunedModel, holdings: Holdings, theta: Tensor, *, only_here: bool = False
) -> list[Signal]:
    """Measure how much of g is rounding, at the configuration's eps and, where that is too much, at larger ones.

    With `only_here` nothing is measured at larger ones. Nor is anything in plain float32, whose rounding is small at
    any useful eps, nor without training examples here.

    Raises:
        TrainingError: a loss is not finite.
    """
    shards = [shard for shard in parts_in_use(config, holdings.partition)["train"] if len(shard)]
    is_plain = tuned.dtype == torch.float32 and scheme_of(tuned.model.base) == NONE
    if config.trainer.type != MEZO or is_plain or not shards:
        return []
    rows, zo = config.dataloader.batch_size, config.train.zo
    batches = [holdings.dataset.batch(shard[:rows], tuned.model.device) for shard in shards[:BATCHES_FOR_NOISE]]
    start, noise = theta.to(tuned.model.device), make_noise(config, tuned.model)
    if only_here:
        return [measure_signal(tuned.model, start, batches, seed=config.seed, noise=noise, eps=zo.scale)]
    return find_sound_eps(tuned.model, start, batches, seed=config.seed, noise=noise, eps=zo.scale)


def finer_format(tuned: TunedModel) -> str:
    """What to set, in place of a larger eps, where g is mostly rounding."""
    if rounds_activations(tuned.quantization):
        return f"model.quantization to {tuned.quantization.replace('-dynamic', '')}"
    return "model.dtype to float32"


def clients_at_once(config: Config, model: LanguageModel) -> int:
    """How many clients fill the model's lanes."""
    return max(1, model.lanes // bare_estimator(config).losses_per_step)


def planned_passes(config: Config) -> int:
    """Forward passes of the clients of all rounds, each over a whole batch."""
    return _planned_steps(config) * bare_estimator(config).passes


def _planned_steps(config: Config) -> int:
    """Steps of the clients in all rounds; too few where `local_update_steps` counts passes over the data."""
    return config.federate.total_round_num * config.train.local_update_steps * config.federate.cohort_size


def make_estimator(config: Config, model: LanguageModel) -> Estimator:
    """The zeroth-order clients' estimator."""
    settings = replace(bare_estimator(config).settings, noise=make_noise(config, model))
    return private_estimator(config, estimator_of(config.train.zo.estimator, settings, config.dataloader.batch_size))


def _estimator_of_clients(named: Estimator, own: Own) -> Estimator:
    if own.estimator is None:
        return named
    if isinstance(named, PrivateTwoPoint):
        raise ConfigError("estimator: privacy.level example clips the scalars of two-point, and of no other one")
    try:
        return OwnScalars(own.estimator(named.settings), named)
    except ValueError as error:
        raise ConfigError(f"estimator: {error}") from error


def bare_estimator(config: Config) -> Estimator:
    """The estimator as far as it counts losses and scalars; its noise is any."""
    zo, rows = config.train.zo, config.dataloader.batch_size
    scale_free = config.train.train_strategy == SCALE_FREE
    settings = Settings(zo.scale, zo.queries, clip=zo.clip, scale_free=scale_free)
    return private_estimator(config, estimator_of(zo.estimator, settings, rows))


def make_course(config: Config, model: LanguageModel) -> Course:
    """What it takes to follow the run through its rounds."""
    return Course(config.seed, make_estimator(config, model), make_server_optimizer(config))


def make_server_optimizer(config: Config) -> ServerOptimizer:
    """What becomes of the average update."""
    method, opt = config.federate.method, config.fedopt
    return ServerOptimizer(method, 1.0 if opt.lr_server is None else opt.lr_server, opt.momentum, opt.beta2, opt.tau)


def make_noise(config: Config, model: LanguageModel) -> Directions:
    """The directions, compiled as `train.compile` says; a client generates each of them, and so does the server."""
    zo, wanted = config.train.zo, config.train.compile
    if wanted == "auto" or _has_low_rank(config):
        directions = 2 * _planned_steps(config) * bare_estimator(config).directions
        return directions_for(zo.noise, zo.rank, model.segments, directions, model.device)
    return Noise(zo.noise, compiled=wanted and compiles(zo.noise, model.device))


def _has_low_rank(config: Config) -> bool:
    return config.trainer.type == MEZO and config.train.zo.noise == LOW_RANK


def make_federation(config: Config, model: LanguageModel, own: Own = NOTHING) -> Federation:
    """What the server needs in each round."""
    train, federate = config.train, config.federate
    batches = make_schedule(config).batches
    rules = ReportRules(
        protocol=federate.protocol,
        estimator=make_estimator(config, model) if config.trainer.type == MEZO else None,
        steps=train.local_update_steps if batches else None,
        num_parameters=model.segments[-1].stop,
        most_examples=batches * config.dataloader.batch_size if batches else None,
        max_ratio=federate.max_ratio or 0.0,
    )
    federation = Federation(
        seed=config.seed,
        num_clients=federate.client_num,
        cohort_size=federate.cohort_size,
        min_clients=federate.min_clients,
        equal_weights=federate.ignore_weight,
        groups=federate.direction_groups,
        aggregation=federate.aggregation,
        lone_client=federate.lone_client,
        strategy=RateStrategy(train.train_strategy, train.optimizer.rate, train.lr_width, own.strategy),
        weigh=own.weigh,
        rules=rules,
        segments=model.segments,
        schedule=_make_rate_schedule(config),
        tells_losses=not hides_losses(config),
        trusting=not train.trust,
        server=make_server_optimizer(config),
        device=model.device,
    )
    return with_coding(config, federation)


def _make_rate_schedule(config: Config) -> RateSchedule:
    schedule = config.train.schedule
    return RateSchedule(
        schedule.type,
        config.federate.total_round_num,
        schedule.warmup_rounds,
        schedule.floor,
        schedule.step_rounds,
        schedule.step_factor,
    )


def make_optimizer(config: Config) -> OptimizerFactory:
    """The first-order clients' optimiser.

    Raises:
        ConfigError: it does not take its keys.
    """
    optimizer, scheduler = config.train.optimizer, config.train.scheduler
    return OptimizerFactory(
        name=optimizer.type,
        options={"weight_decay": optimizer.weight_decay, **optimizer.options},
        scheduler=scheduler.type,
        scheduler_options=scheduler.options,
        warmup_steps=scheduler.warmup_steps,
        warmup_ratio=scheduler.warmup_ratio,
    )


def check_optimizer(config: Config) -> None:
    """Make the optimiser once for nothing, before anything is loaded.

    Raises:
        ConfigError: the optimiser or scheduler does not take its keys or their values.
    """
    if config.trainer.type != MEZO:
        make_optimizer(config).build([torch.zeros(1, 1, requires_grad=True)], config.train.optimizer.rate, num_steps=1)


def make_work(config: Config, tuned: TunedModel, own: Own = NOTHING) -> ClientWork:
    """The clients' local steps.

    Raises:
        ConfigError: the optimiser or scheduler does not take its keys; an estimator of a program's own does not fit.
    """
    train = config.train
    proximal = config.fedprox.mu if config.fedprox.use else 0.0
    if config.trainer.type == MEZO:
        work = ZerothOrderClients(
            model=tuned.model,
            estimator=_estimator_of_clients(make_estimator(config, tuned.model), own),
            seed=config.seed,
            protocol=config.federate.protocol,
            lanes=tuned.model.lanes,
            weight_decay=train.optimizer.weight_decay,
            proximal=proximal,
        )
        return private_work(config, work)
    if train.gradient_checkpointing:
        tuned.model.checkpoint_gradients()
    return FirstOrderClients(
        model=tuned.model,
        optimizer=make_optimizer(config),
        seed=config.seed,
        grad_clip=config.grad.grad_clip,
        grad_accum_count=config.grad.grad_accum_count,
        loss_scaling=tuned.dtype == torch.float16,
        proximal=proximal,
    )


def make_schedule(config: Config) -> Schedule:
    """How much a client does in a round."""
    steps = config.train.local_update_steps
    accumulated = config.grad.grad_accum_count if config.trainer.type != MEZO else 1
    return (
        Schedule(config.dataloader.batch_size, batches=steps * accumulated, poisson=hides_examples(config))
        if config.train.batch_or_epoch == "batch"
        else Schedule(config.dataloader.batch_size, passes=steps)
    )


def make_shards(config: Config, holdings: Holdings, device: torch.device) -> dict[int, Shard]:
    """Every client's training examples and its order through them."""
    schedule = make_schedule(config)
    return {
        client: Shard(holdings.dataset, indices, config.seed, client, schedule, device)
        for client, indices in enumerate(holdings.partition.train)
    }


def environment_of(model: LanguageModel) -> dict[str, object]:
    """What the last bits of this model's losses depend on; see `runs.directory.environment`."""
    return environment(model.device, model.lanes, model.compiled)


def make_header(config: Config, tuned: TunedModel, holdings: Holdings, theta: Tensor) -> Header:
    """The journal's first line, for a run that starts from theta (d,)."""
    return Header(
        seed=config.seed,
        rounds=config.federate.total_round_num,
        protocol=config.federate.protocol,
        noise=config.train.zo.noise,
        eps=config.train.zo.scale,
        queries=config.train.zo.queries,
        estimator=config.train.zo.estimator,
        batch_size=config.dataloader.batch_size,
        scale_free=config.train.train_strategy == SCALE_FREE,
        direction_groups=config.federate.direction_groups,
        secure_aggregation=config.federate.secure_aggregation,
        privacy=privacy_line(config),
        server_optimizer=server_line(make_server_optimizer(config)),
        base=config.model.name,
        base_hash=tuned.base_hash,
        dtype=dtype_name(tuned.dtype),
        quantization=tuned.quantization,
        adapter=config.llm.adapter.args[0].model_dump() if config.llm.adapter.use else None,
        trainable=() if config.llm.adapter.use else config.train.trainable,
        weights="float32" if config.llm.adapter.use else config.model.weights,
        rank=config.train.zo.rank,
        theta_hash=state_hash(theta),
        restored=bool(config.federate.restore_from),
        data_hash=dataset_hash(holdings.dataset),
        partition_hash=partition_hash(holdings.partition),
        segments=tuned.model.segments,
    )


def dtype_name(dtype: torch.dtype) -> Dtype:
    """As the configuration has it."""
    return cast(Dtype, str(dtype).removeprefix("torch."))


def category_counts(divided: Partition) -> dict[str, list[dict[str, int]]]:
    """For train, val and test, each client's number of examples by category."""
    counts: dict[str, list[dict[str, int]]] = {part: [{} for _ in range(divided.num_clients)] for part in divided.parts}
    for row in divided.rows():
        counts[row.part][row.client][row.category] = row.num_examples
    return counts


def parts_in_use(config: Config, divided: Partition) -> dict[str, tuple[Indices, ...]]:
    """Each client's examples of each part; where a client trains alone, all others have none."""
    alone = config.federate.lone_client
    if alone is None:
        return divided.parts
    return {
        name: tuple(shard if client == alone else shard[:0] for client, shard in enumerate(part))
        for name, part in divided.parts.items()
    }


def measures(config: Config, tuned: TunedModel, holdings: Holdings) -> dict[str, Callable[[Tensor], Evaluation]]:
    """What is measured of a theta (d,), by the name of the metric.

    Raises:
        DataError: accuracy is asked for, and no held-out example has candidate answers.
    """
    parts, model = held_out(config, holdings.partition), tuned.model
    found: dict[str, Callable[[Tensor], Evaluation]] = {
        name: partial(evaluate, model, dataset=holdings.dataset, shards=shards) for name, shards in parts.items()
    }
    if ACCURACY not in config.eval.metrics or not config.eval.active:
        return found
    for name, shards in parts.items():
        wanted = np.concatenate(shards).tolist()
        candidates = make_candidates(holdings.examples, wanted, holdings.prompts, tuned.tokenizer)
        found[name.replace("loss", ACCURACY)] = partial(accuracy, model, candidates=candidates, shards=shards)
    return found


def held_out(config: Config, divided: Partition) -> dict[str, tuple[Indices, ...]]:
    """The parts to evaluate that have any examples, by the name of their loss: `val_loss`, `test_loss`."""
    parts = parts_in_use(config, divided)
    return {f"{name}_loss": parts[name] for name in config.eval.split if any(map(len, parts[name]))}
