"""What must hold between keys, each of which is right in itself, and what a run does not use of what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter
from typing import Any

from fedmezo.config.conflict import Conflict
from fedmezo.config.hiding import hiding_conflicts
from fedmezo.config.schema import AUTO, MAX_QUERIES, Adapter, Config, Optimizer, RateSchedule, Scheduler, Zo
from fedmezo.config.sharing import sharing_conflicts


def conflicts(config: Config) -> Iterator[Conflict]:
    """All of them."""
    for check in (_rates, _splits, _evaluation, _early_stop, _cohort, _protocol, _server, _fedprox, _optimizer):
        yield from check(config)
    for check in (_schedule, _estimator, _scale_free, _adapter, _quantization, _streamed, _options, _template):
        yield from check(config)
    for check in (_answers, _automatic):
        yield from check(config)
    yield from sharing_conflicts(config)
    yield from hiding_conflicts(config)


def _rates(config: Config) -> Iterator[Conflict]:
    """Each strategy moves the rate by up to lr_width either way, and a rate of 0 or less would undo the learning."""
    train = config.train
    if train.optimizer.lr == AUTO:
        return  # whose width is found with it
    lowest = train.optimizer.lr - train.lr_width
    if train.train_strategy not in ("frozen", "scale-free") and lowest <= 0:
        yield Conflict(
            ("train.lr_width", "train.optimizer.lr", "train.train_strategy"),
            f"is {train.lr_width}, with which train.train_strategy {train.train_strategy} can bring the rate "
            f"down to {lowest:.3g}; needs a width below train.optimizer.lr, which is {train.optimizer.lr}",
        )


def _schedule(config: Config) -> Iterator[Conflict]:
    schedule, rounds = config.train.schedule, config.federate.total_round_num
    if schedule.warmup_rounds >= rounds:
        text = f"is {schedule.warmup_rounds}, but the run has {rounds} rounds; needs fewer"
        yield Conflict(("train.schedule.warmup_rounds", "federate.total_round_num"), text)


def _estimator(config: Config) -> Iterator[Conflict]:
    zo, rows = config.train.zo, config.dataloader.batch_size
    if zo.estimator == "per-example" and zo.queries * rows > MAX_QUERIES:
        text = (
            f"is {zo.queries}, which makes {zo.queries * rows} directions of a step with dataloader.batch_size {rows}"
        )
        keys = ("train.zo.queries", "dataloader.batch_size", "train.zo.estimator")
        yield Conflict(keys, f"{text}; needs at most {MAX_QUERIES} together")


def _scale_free(config: Config) -> Iterator[Conflict]:
    """The size of the scalars is known where they are reported."""
    if config.train.train_strategy == "scale-free" and config.federate.protocol != "scalars":
        text = "is scale-free, which follows the clients' scalars; needs federate.protocol: scalars"
        yield Conflict(("train.train_strategy", "federate.protocol"), text)


def _automatic(config: Config) -> Iterator[Conflict]:
    if config.trainer.type == "mezotrainer":
        return
    for key, value in (("train.optimizer.lr", config.train.optimizer.lr), ("train.zo.eps", config.train.zo.eps)):
        if value == AUTO:
            text = "is auto, but what is measured is for mezotrainer's steps alone; give a number"
            yield Conflict((key, "trainer.type"), text)


def _splits(config: Config) -> Iterator[Conflict]:
    splits = config.data.splits
    if min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:  # decimal shares such as .998 + .001 + .001 miss 1 by an ulp
        text = f"is {list(splits)}, whose sum is {sum(splits):.6g}; needs three numbers of at least 0 that sum to 1"
        yield Conflict(("data.splits",), text)
        return
    if splits[0] == 0:
        yield Conflict(("data.splits",), f"is {list(splits)}, which leaves nothing to train on; needs a first above 0")
    shares = dict(zip(("train", "val", "test"), splits, strict=True))
    empty = [split for split in config.eval.split if shares[split] == 0]
    if config.eval.active and empty:
        kept = [split for split in config.eval.split if split not in empty]
        text = f"is {list(config.eval.split)}, but data.splits gives {' and '.join(empty)} no examples; "
        remedy = f"set eval.split: {kept}" if kept else "set eval.freq: 0"
        yield Conflict(("eval.split", "data.splits"), f"{text}{remedy} or change data.splits")


def _evaluation(config: Config) -> Iterator[Conflict]:
    if len(set(config.eval.split)) < len(config.eval.split):
        yield Conflict(("eval.split",), f"is {list(config.eval.split)}; needs each split at most once")
    key = config.eval.best_res_update_round_wise_key
    metrics = ("loss", *(metric for metric in config.eval.metrics if metric != "loss"))
    measured = [f"{split}_{metric}" for metric in metrics for split in config.eval.split]
    if config.eval.active and key not in measured:
        remedy = "eval.metrics" if key.endswith("accuracy") and "accuracy" not in metrics else "eval.split"
        text = f"is {key}, which is not measured; needs {' or '.join(measured)}, or another {remedy}"
        yield Conflict(("eval.best_res_update_round_wise_key", "eval.split", "eval.metrics"), text)


def _early_stop(config: Config) -> Iterator[Conflict]:
    if config.early_stop.patience > 0 and not config.eval.active:
        text = f"is {config.early_stop.patience}, but nothing is evaluated; set it to 0, or eval.freq above 0"
        yield Conflict(("early_stop.patience", "eval.freq", "eval.split"), f"{text} and eval.split to val or test")


def _cohort(config: Config) -> Iterator[Conflict]:
    federate = config.federate
    if federate.client_idx_for_local_train:
        yield from _lone_client(config)
    if federate.sample_client_num == 0 or federate.sample_client_num > federate.client_num:
        text = f"is {federate.sample_client_num}; needs 1 to {federate.client_num}, or -1 for all clients"
        yield Conflict(("federate.sample_client_num", "federate.client_num"), text)
        return
    if federate.sample_client_rate <= 0 and federate.sample_client_rate != -1:
        text = f"is {federate.sample_client_rate}; needs a number above 0 and up to 1, or -1 for all clients"
        yield Conflict(("federate.sample_client_rate",), text)
    elif federate.min_clients > federate.cohort_size:
        text = f"is {federate.min_clients}, but {federate.cohort_size} take part in a round; needs at most that"
        keys = ("min_clients", "sample_client_rate", "sample_client_num", "client_num")
        yield Conflict(tuple(f"federate.{key}" for key in keys), text)


def _lone_client(config: Config) -> Iterator[Conflict]:
    key, federate = "federate.client_idx_for_local_train", config.federate
    if federate.client_idx_for_local_train > federate.client_num:
        text = f"is {federate.client_idx_for_local_train}; needs 1 to {federate.client_num}, or 0 for all clients"
        yield Conflict((key, "federate.client_num"), text)
    if federate.mode == "distributed":
        text = f"is {federate.client_idx_for_local_train}, but a client alone needs no other machine; needs 0, or"
        yield Conflict((key, "federate.mode"), f"{text} federate.mode: standalone")


def _protocol(config: Config) -> Iterator[Conflict]:
    if config.federate.protocol != "scalars":
        return
    if config.trainer.type == "llmtrainer":
        text = "is scalars, but llmtrainer has no scalars to send; set it to weights, or trainer.type: mezotrainer"
        yield Conflict(("federate.protocol", "trainer.type"), text)
    elif config.train.optimizer.weight_decay != 0:
        text = f"is {config.train.optimizer.weight_decay}; needs 0, or federate.protocol: weights"
        yield Conflict(("train.optimizer.weight_decay", "federate.protocol"), text)


def _server(config: Config) -> Iterator[Conflict]:
    method = config.federate.method
    if method == "FedAvg":
        return
    if method != "FedAvgM" and config.fedopt.lr_server is None:
        text = f"must be given for federate.method {method}: roughly how far a weight moves in a round; try 1e-3"
        yield Conflict(("fedopt.lr_server", "federate.method"), text)


def _fedprox(config: Config) -> Iterator[Conflict]:
    prox = config.fedprox
    if prox.use and prox.mu == 0:
        yield Conflict(("fedprox.mu", "fedprox.use"), "is 0, which pulls nothing; needs a number above 0")
    if prox.use and config.federate.protocol == "scalars":
        text = "is True, but a pull cannot be replayed from scalars; needs False, or federate.protocol: weights"
        yield Conflict(("fedprox.use", "federate.protocol"), text)


def _optimizer(config: Config) -> Iterator[Conflict]:
    name = config.train.optimizer.type
    if config.trainer.type == "mezotrainer" and name != "SGD":
        text = f"is {name}; mezotrainer is SGD: remove the key, or set trainer.type: llmtrainer"
        yield Conflict(("train.optimizer.type", "trainer.type"), text)


def _adapter(config: Config) -> Iterator[Conflict]:
    if not config.llm.adapter.use:
        yield from _whole(config)
    elif config.llm.adapter.method == "prefix" and config.train.gradient_checkpointing:
        text = "is True, but a prefix is lost when activations are computed again; set it to False"
        yield Conflict(("train.gradient_checkpointing", "llm.adapter.args"), text)


def _whole(config: Config) -> Iterator[Conflict]:
    """Without an adapter the state is the weights themselves."""
    why = "but without an adapter (llm.adapter.use: False) the weights themselves are trained"
    if config.trainer.type == "llmtrainer" and config.model.dtype not in (None, "auto", "float32"):
        text = f"is {config.model.dtype}, {why}, by llmtrainer in float32; set it to float32, or train an adapter"
        yield Conflict(("model.dtype", "llm.adapter.use"), text)
    elif config.trainer.type == "llmtrainer" and config.train.is_enable_half and config.model.dtype is None:
        text = f"is True, {why}, by llmtrainer in float32; set it to False, or train an adapter"
        yield Conflict(("train.is_enable_half", "llm.adapter.use"), text)
    if config.model.quantization not in (None, "none"):
        text = f"is {config.model.quantization}, {why}; leave it out, or train an adapter"
        yield Conflict(("model.quantization", "llm.adapter.use"), text)
    if config.trainer.type == "mezotrainer" and config.train.optimizer.weight_decay != 0:
        text = f"is {config.train.optimizer.weight_decay}, {why}, and all clients share them; needs 0, or an adapter"
        yield Conflict(("train.optimizer.weight_decay", "llm.adapter.use"), text)
    if config.model.weights == "bfloat16":
        yield from _bfloat16_alone(config)
    if config.federate.restore_from:
        text = f"is {config.federate.restore_from}, {why}; set model.type to that folder instead"
        yield Conflict(("federate.restore_from", "llm.adapter.use"), text)


def _bfloat16_alone(config: Config) -> Iterator[Conflict]:
    """Weights that are rounded once, when a round is closed from its scalars."""
    needed = {
        "model.dtype": (config.model.dtype, "bfloat16"),
        "trainer.type": (config.trainer.type, "mezotrainer"),
        "federate.protocol": (config.federate.protocol, "scalars"),
        "federate.method": (config.federate.method, "FedAvg"),
    }
    for key, (given, wanted) in needed.items():
        if given != wanted:
            yield Conflict(("model.weights", key), f"is bfloat16, which needs {key} {wanted}, not {given or 'unset'}")


def _quantization(config: Config) -> Iterator[Conflict]:
    scheme = config.model.quantization or ""
    if scheme.startswith("int8-dynamic") and config.trainer.type == "llmtrainer":
        text = f"is {scheme}, whose rounded activations have no gradient; set it to int8 or nf4"
        yield Conflict(("model.quantization", "trainer.type"), f"{text}, or trainer.type: mezotrainer")


def _streamed(config: Config) -> Iterator[Conflict]:
    """Layers that are read in each pass are there in one format, for losses alone."""
    if not config.model.streamed:
        return
    why = "is True, but layers that are read in each pass have no gradients and stay as they are"
    if config.trainer.type == "llmtrainer":
        yield Conflict(("model.streamed", "trainer.type"), f"{why}; leave it out, or set trainer.type: mezotrainer")
    if not config.llm.adapter.use:
        yield Conflict(("model.streamed", "llm.adapter.use"), f"{why}; leave it out, or train an adapter")
    if config.model.dtype == AUTO:
        text = "is auto, but a streamed model (model.streamed) is not tried in several formats; name the checkpoint's"
        yield Conflict(("model.dtype", "model.streamed"), text)
    if config.train.compile is True:
        text = "is True, but a streamed model (model.streamed) is not compiled; set it to auto or False"
        yield Conflict(("train.compile", "model.streamed"), text)


def _options(config: Config) -> Iterator[Conflict]:
    """Keys of torch's classes are checked by torch; what can never be one is said here."""
    sections: dict[str, Optimizer | Scheduler] = {
        "train.optimizer": config.train.optimizer,
        "train.scheduler": config.train.scheduler,
    }
    for above, section in sections.items():
        for key, value in section.options.items():
            if not _is_option(value):
                text = f"got {value!r}; needs a number, text, True, False, or a list of numbers"
                yield Conflict((f"{above}.{key}",), text)
    scheduler = config.train.scheduler
    if not scheduler.type and scheduler.options:
        text = (
            f"is a key of a scheduler, but none is chosen; set train.scheduler.type or remove {min(scheduler.options)}"
        )
        yield Conflict((f"train.scheduler.{min(scheduler.options)}",), text)


def _template(config: Config) -> Iterator[Conflict]:
    data = config.data
    if data.format != "template":
        if data.template:
            text = f"is given, but data.format is {data.format}; remove it, or set data.format: template"
            yield Conflict(("data.template", "data.format"), text)
        return
    try:
        parts = [part[1:] for part in Formatter().parse(data.template) if part[1] is not None]
    except ValueError as error:  # a brace alone
        yield Conflict(("data.template",), f"is no template ({error}); braces that are text are written {{{{ and }}}}")
        return
    places = [name for name, form, conversion in parts if not form and not conversion]
    if len(places) < len(parts) or not {"instruction", "input"}.issuperset(places):
        text = f"is {data.template!r}; its places can be {{instruction}} and {{input}} alone"
        yield Conflict(("data.template",), f"{text}; braces that are text are written {{{{ and }}}}")
    elif "instruction" not in places:
        text = f"is {data.template!r}; needs a place {{instruction}}" if data.template else "is missing"
        yield Conflict(("data.template", "data.format"), f"{text}, for example 'Q: {{instruction}}\\nA:'")


def _answers(config: Config) -> Iterator[Conflict]:
    answers = config.data.answers
    if answers and (len(answers) < 2 or len(set(answers)) < len(answers) or not all(answers)):
        text = f"is {list(answers)}; needs two answers or more, none of them empty and each once"
        yield Conflict(("data.answers",), text)


def _is_option(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def unused(config: Config) -> Iterator[str]:
    """Settings that this run does not use, one line each.

    FederatedScope's own zeroth-order trainer ignores the same ones, so its files run unmodified and mean the same.
    """
    if config.trainer.type == "mezotrainer":
        yield from _unused_by_mezo(config)
    else:
        yield from _unused_by_bp(config)
    yield from _unused_by_schedule(config.train.schedule)
    yield from _unused_of_the_server(config)
    if config.trainer.type == "mezotrainer" and "lr" not in config.train.optimizer.model_fields_set:
        yield (
            f"train.optimizer.lr is not given: {config.train.optimizer.lr} is far from right for most models. `fedmezo "
            "calibrate` measures what suits this one; train.optimizer.lr: auto does so before the run"
        )
    if config.train.is_enable_half and config.model.dtype is not None:
        yield f"train.is_enable_half has no effect: model.dtype says {config.model.dtype}"
    yield from _unused_of_the_model(config)
    if config.data.splitter_args and config.data.splitter != "lda":
        yield f"data.splitter_args has no effect: the {config.data.splitter} splitter takes none"
    yield from _unused_sampling(config)


def _unused_by_schedule(schedule: RateSchedule) -> Iterator[str]:
    taken = {"constant": set(), "step": {"floor", "step_rounds", "step_factor"}}.get(schedule.type, {"floor"})
    for key in schedule.model_dump(exclude_defaults=True).keys() - taken - {"type", "warmup_rounds"}:
        yield f"train.schedule.{key} has no effect: train.schedule.type is {schedule.type}"


def _unused_sampling(config: Config) -> Iterator[str]:
    federate = config.federate
    if federate.lone_client is not None:
        for key in ("sample_client_num", "sample_client_rate"):
            if getattr(federate, key) > 0:
                yield f"federate.{key} has no effect: a client trains alone (federate.client_idx_for_local_train)"
    elif federate.sample_client_rate > 0 and federate.sample_client_num > 0:
        yield f"federate.sample_client_num has no effect: federate.sample_client_rate makes it {federate.cohort_size}"


def _unused_of_the_model(config: Config) -> Iterator[str]:
    adapter = config.llm.adapter
    if adapter.use and config.train.trainable != ("*",):
        yield "train.trainable has no effect: an adapter is trained (llm.adapter.use)"
    if adapter.use and config.model.weights != "float32":
        yield "model.weights has no effect: an adapter is trained (llm.adapter.use)"
    if not adapter.use and adapter.args != Adapter().args:
        yield "llm.adapter.args has no effect: llm.adapter.use is False, and the model's own parameters are trained"


def _unused_of_the_server(config: Config) -> Iterator[str]:
    method, given = config.federate.method, config.fedopt.model_dump(exclude_defaults=True)
    taken = {"FedAvg": set(), "FedAvgM": {"lr_server", "momentum"}}.get(method, given.keys())
    for key in given.keys() - taken:
        yield f"fedopt.{key} has no effect: federate.method is {method}"
    if config.fedprox.mu and not config.fedprox.use:
        yield "fedprox.mu has no effect: fedprox.use is False"


def _unused_by_mezo(config: Config) -> Iterator[str]:
    for key in config.train.optimizer.options:
        yield f"train.optimizer.{key} has no effect: mezotrainer is plain SGD"
    if config.train.scheduler.type:
        yield "train.scheduler has no effect: mezotrainer's rate changes by train.train_strategy"
    zo = config.train.zo
    if zo.rank != 1 and zo.noise != "low-rank":
        yield f"train.zo.rank has no effect: train.zo.noise is {zo.noise}"
    if config.grad.grad_clip > 0:
        yield "grad.grad_clip has no effect: mezotrainer has no gradient; train.zo.clip limits its scalars"
    if config.grad.grad_accum_count > 1:
        yield "grad.grad_accum_count has no effect: mezotrainer steps after each batch"
    if config.train.gradient_checkpointing:
        yield "train.gradient_checkpointing has no effect: mezotrainer keeps no activations"


def _unused_by_bp(config: Config) -> Iterator[str]:
    if config.train.zo != Zo():
        yield "train.zo has no effect: llmtrainer does not perturb"
    if config.train.lanes != "auto":
        yield "train.lanes has no effect: llmtrainer does not perturb"
    if config.train.compile != "auto":
        yield "train.compile has no effect: llmtrainer does not perturb"
    scheduler = config.train.scheduler
    if (scheduler.warmup_steps or scheduler.warmup_ratio) and not scheduler.type.startswith("warmup_"):
        yield "the warm-up of train.scheduler has no effect: its type is neither warmup_step nor warmup_noam"
