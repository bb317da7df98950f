"""The configuration: what is accepted, what it becomes, and the exact words in which mistakes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmezo.config import Config, as_overrides, load, load_config
from fedmezo.config.checks import conflicts
from fedmezo.config.describe import fields, nearest_key, reference_page
from fedmezo.config.markup import to_yaml
from fedmezo.config.reference import ALIASES, UNSUPPORTED_KEYS, UNSUPPORTED_SECTIONS, WITHOUT_EFFECT
from fedmezo.config.schema import OptimizerName, SchedulerName
from fedmezo.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = """\
federate:
  client_num: 3
data:
  type: alpaca@llm
model:
  type: somewhere/model@huggingface_llm
llm:
  adapter:
    use: True
train:
  optimizer:
    lr: 1e-5
"""


def load_text(tmp_path: Path, text: str, *overrides: str) -> load.Loaded:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    """The whole error message, with the file's folder left out."""
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


# ---------------------------------------------------------------- shipped files and files of the reference

LORA = {"adapter_package": "peft", "adapter_method": "lora", "r": 128, "lora_alpha": 256, "lora_dropout": 0.05}
SHARED = {
    "federate.mode": "standalone", "federate.client_num": 3, "federate.cohort_size": 3, "federate.total_round_num": 500,
    "federate.save_freq": 100, "dataloader.batch_size": 1, "train.optimizer.weight_decay": 0.0,
    "train.optimizer.type": "SGD", "train.is_enable_half": True, "train.batch_or_epoch": "batch",
    "train.local_update_steps": 30, "train.train_strategy": "frozen", "train.lr_width": 5e-6, "train.zo.eps": 1e-3,
    "eval.freq": 10, "eval.metrics": ("loss",), "early_stop.patience": 0, "llm.adapter.use": True,
    "model.name": "openlm-research/open_llama_3b_v2", "llm.tok_len": 1000, "llm.chat.max_len": 2000,
    "use_gpu": True, "device": 0,
}  # fmt: skip
ALPACA = {
    "data.type": "alpaca@llm", "data.splitter": "iid", "data.splits": (0.998, 0.001, 0.001), "train.optimizer.lr": 1e-5,
    "eval.best_res_update_round_wise_key": "val_loss", "eval.split": ("test", "val"),
}  # fmt: skip
GSM8K = ALPACA | {"data.type": "gsm8k@llm", "train.optimizer.lr": 2.5e-5}
ON_TEST = {
    "eval.best_res_update_round_wise_key": "test_loss",
    "eval.split": ("test",),
    "data.splits": (0.99, 0.0, 0.01),
}
DOLLY = ON_TEST | {
    "data.type": "dolly-15k@llm", "data.splitter": "meta", "train.optimizer.lr": 1e-5, "llm.chat.max_len": 1000,
}  # fmt: skip
CODE = ON_TEST | {
    "data.type": "rosetta_alpaca@llm", "data.splitter": "lda", "data.alpha": 0.5, "train.optimizer.lr": 2e-5,
    "llm.tok_len": 650, "llm.chat.max_len": 1000,
}  # fmt: skip
MEZO = {"trainer.type": "mezotrainer", "federate.protocol": "scalars"}
BP = {"trainer.type": "llmtrainer", "federate.protocol": "weights"}
TESTCASE = {
    "federate.total_round_num": 100, "train.local_update_steps": 5, "federate.save_freq": 50,
    "data.splits": (0.98, 0.01, 0.01), "data.splitter": "iid", "data.type": "alpaca@llm", "train.optimizer.lr": 1e-5,
}  # fmt: skip
SHIPPED: dict[str, dict[str, Any]] = {"mezo_testcase": MEZO | TESTCASE}
for _task, _splitter, _values in (
    ("alpaca", "iid", ALPACA), ("gsm8k", "iid", GSM8K), ("dolly", "meta", DOLLY), ("code", "lda", CODE),
):  # fmt: skip
    SHIPPED[f"frozen/{_task}/{_task}_mezo_{_splitter}"] = MEZO | _values
    SHIPPED[f"frozen/{_task}/{_task}_bpbased_{_splitter}"] = BP | _values
for _strategy in ("frozen", "random", "round-wise", "five-round", "model-diff"):
    SHIPPED[f"dynamic/alpaca_{_strategy}"] = MEZO | ALPACA | {"train.train_strategy": _strategy}


def value_at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def test_the_14_configs_of_the_paper_are_shipped_and_nothing_else() -> None:
    found = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(SHIPPED) == 14
    assert found >= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_holds_the_values_of_the_paper(name: str) -> None:
    config, notices = load_config(ROOT / "configs" / f"{name}.yaml")
    expected = SHARED | SHIPPED[name]
    assert {key: value_at(config, key) for key in expected} == expected
    rank = {"r": 8, "lora_alpha": 16} if name == "mezo_testcase" else {}
    assert config.llm.adapter.options == {key: value for key, value in (LORA | rank).items() if "adapter" not in key}
    assert config.llm.adapter.method == "lora"
    assert notices == ()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_its_resolved_form_loads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path).config
    assert load_text(tmp_path, config.to_yaml()).config == config


REFERENCE_STYLE = """\
use_gpu: True
device: 0
seed: 12345
outdir: exp
expname: 'try'
early_stop:
  patience: 5
  delta: 0.0
  improve_indicator_mode: mean
federate:
  mode: standalone
  client_num: 8
  sample_client_num: 4
  sample_client_rate: -1.0
  total_round_num: 200
  save_to: "model.ckpt"
  save_freq: 20
  restore_from: ''
  share_local_model: True
  online_aggr: False
  method: fedavg
  ignore_weight: False
  make_global_eval: False
  process_num: 1
data:
  root: data/
  type: 'dolly-15k@llm'
  splits: [0.8,0.1,0.1]
  splitter: 'lda'
  splitter_args: [{'alpha': 0.2}]
  subsample: 0.5
llm:
  tok_len: 1000
  retry_on_nan_loss: True
  cache:
    model: ''
  chat:
    max_len: 2000
    max_history_len: 10
  adapter:
    use: True
    mv_to_cpu: True
    args: [ { 'adapter_package': 'peft', 'adapter_method': 'LoRA', 'r': 8, 'lora_alpha': 16, 'lora_dropout': 0.05 } ]
dataloader:
  batch_size: 4
model:
  type: 'decapoda-research/llama-7b-hf@huggingface_llm'
train:
  train_strategy: 'frozen'
  local_update_steps: 30
  batch_or_epoch: batch
  is_enable_half: True
  optimizer:
    type: AdamW
    lr: 5e-4
    weight_decay: 0.01
    betas: (0.9, 0.95)
    eps: 1e-8
  scheduler:
    type: warmup_step
    warmup_ratio: 0.1
grad:
  grad_clip: 1.0
  grad_accum_count: 2
criterion:
  type: CrossEntropyLoss
trainer:
  type: llmtrainer
eval:
  freq: 20
  metrics: ['loss']
  split: ['val', 'test']
  best_res_update_round_wise_key: val_loss
  count_flops: False
wandb:
  use: False
  name_user: somebody
  name_project: something
  online_track: True
  client_train_info: False
"""


def test_a_file_written_for_the_reference_with_all_its_keys_loads_unmodified(tmp_path: Path) -> None:
    config, notices = load_text(tmp_path, REFERENCE_STYLE)
    assert config.federate.method == "FedAvg"
    assert config.federate.protocol == "weights"
    assert config.federate.cohort_size == 4
    assert config.llm.adapter.method == "lora"
    assert config.llm.adapter.options == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
    assert (config.train.optimizer.lr, config.train.optimizer.options["eps"]) == (5e-4, 1e-8)
    assert config.train.optimizer.options["betas"] == [0.9, 0.95]
    assert (config.train.scheduler.type, config.train.scheduler.warmup_ratio) == ("warmup_step", 0.1)
    assert config.data.alpha == 0.2
    assert [notice.split(" has no effect")[0] for notice in notices] == [
        "federate.share_local_model",
        "federate.online_aggr",
        "federate.make_global_eval",
        "federate.process_num",
        "llm.retry_on_nan_loss",
        "llm.chat.max_history_len",
        "llm.adapter.mv_to_cpu",
        "eval.count_flops",
    ]


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_that_means_nothing_is_accepted_and_reported_once(tmp_path: Path, key: str) -> None:
    config, notices = load_text(tmp_path, SMALL, f"{key}=7")
    assert notices == (f"{key} has no effect: {WITHOUT_EFFECT[key]}",)
    assert config == load_text(tmp_path, SMALL).config


SWITCHED_OFF = [
    "llm.offsite_tuning={use: False, strategy: drop_layer, emu_align: {use: True}}",
    "llm.deepspeed.use=False",
    "llm.accelerator={use: False, config: ''}",
    "distribute={use: False, server_port: 50050}",
    "fedopt={use: False}",
    "attack={attack_method: '', attacker_id: -1}",
    "aggregator={robust_rule: fedavg, inside_weight: 1.0}",
    "finetune={before_eval: False, local_update_steps: 1, optimizer: {type: SGD, lr: 0.1}}",
    "federate.use_ss=False",
    "federate.unseen_clients_rate=0.0",
    "federate.sampler=uniform",
    "early_stop.the_smaller_the_better=True",
    "backend=torch",
    "data.args=[]",
    "llm.adapter.local_only=False",
]


@pytest.mark.parametrize("override", SWITCHED_OFF)
def test_what_the_reference_would_not_do_either_is_accepted_and_reported(tmp_path: Path, override: str) -> None:
    config, (notice,) = load_text(tmp_path, SMALL, override)
    assert notice.endswith(" has no effect: FederatedScope's, and switched off")
    assert config == load_text(tmp_path, SMALL).config


SWITCHED_ON = {
    "llm.offsite_tuning={use: True}": "llm.offsite_tuning",
    "llm.deepspeed.use=True": "llm.deepspeed",
    "llm.adapter.count=3": "llm.adapter.count",
    "fedopt={use: True, lr_server: 0.1}": "fedopt.use",
    "attack={attack_method: dlg}": "attack",
    "federate.sampler=group": "federate.sampler",
    "federate.unseen_clients_rate=0.2": "federate.unseen_clients_rate",
    "vertical.use=True": "vertical",
}


@pytest.mark.parametrize("override", SWITCHED_ON)
def test_what_the_reference_would_do_and_we_do_not_is_named(tmp_path: Path, override: str) -> None:
    key = SWITCHED_ON[override]
    expected = f"{key}: FederatedScope's {key} is not supported here; remove it"
    assert message(tmp_path, SMALL, override).endswith(expected)


def test_an_old_name_sets_the_key_that_it_stands_for(tmp_path: Path) -> None:
    config, notices = load_text(tmp_path, SMALL, "data.batch_size=5")
    assert config.dataloader.batch_size == 5
    assert notices == ("data.batch_size is an old name of dataloader.batch_size, which takes its value",)
    overrides = ("dataloader.batch_size=1", "data.batch_size=64")  # its default in the reference, as in each dump
    config, notices = load_text(tmp_path, SMALL, *overrides)
    assert config.dataloader.batch_size == 1
    assert notices[0].endswith("has no effect: it is an old name of dataloader.batch_size, and 64 sets nothing")
    text = message(tmp_path, SMALL, "data.batch_size=none")
    assert (
        text
        == "override 'data.batch_size=none': dataloader.batch_size: got 'none'; needs a whole number from 1 to 65536"
    )


def test_keys_without_effect_for_one_reason_share_a_notice(tmp_path: Path) -> None:
    text = SMALL.replace("  client_num: 3", "  client_num: 3\n  use_ss: False\n  atc_vanilla: False")
    assert load_text(tmp_path, text).notices == (
        "federate.use_ss, federate.atc_vanilla have no effect: FederatedScope's, and switched off",
    )


# ---------------------------------------------------------------- what follows for keys that were not given


def test_a_part_without_a_share_is_not_evaluated_by_default(tmp_path: Path) -> None:
    config, notices = load_text(tmp_path, SMALL, "data.splits=[0.9, 0, 0.1]")
    assert (config.eval.split, config.eval.best_res_update_round_wise_key) == (("test",), "test_loss")
    assert notices == (
        "only the test loss is evaluated: data.splits gives no validation examples; the best round is that of the "
        "lowest test_loss",
    )
    assert load_text(tmp_path, config.to_yaml()) == (config, ())


def test_a_key_of_a_part_without_a_share_follows_too(tmp_path: Path) -> None:
    overrides = ("data.splits=[0.9, 0.1, 0]", "eval.best_res_update_round_wise_key=test_loss")
    config = load_text(tmp_path, SMALL, *overrides).config
    assert (config.eval.split, config.eval.best_res_update_round_wise_key) == (("val",), "val_loss")


def test_without_held_out_examples_nothing_is_evaluated(tmp_path: Path) -> None:
    config, notices = load_text(tmp_path, SMALL, "data.splits=[1, 0, 0]")
    assert (config.eval.active, config.early_stop.patience) == (False, 0)
    assert notices == ("nothing is evaluated: data.splits gives no test or validation examples",)
    assert load_text(tmp_path, config.to_yaml()) == (config, ())
    assert "early_stop.patience: is 3" in message(tmp_path, SMALL, "data.splits=[1, 0, 0]", "early_stop.patience=3")


def test_a_part_without_a_share_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    overrides = ("data.splits=[0.9, 0, 0.1]", "eval.split=[test, val]")
    assert message(tmp_path, SMALL, *overrides) == (
        "override 'eval.split=[test, val]': eval.split: is ['test', 'val'], but data.splits gives val no examples; "
        "set eval.split: ['test'] or change data.splits"
    )


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("trainer.type=llmtrainer",), "model.streamed: is True, but layers that are read in each pass have no grad"),
        (("llm.adapter.use=False",), "leave it out, or train an adapter"),
        (("model.dtype=auto",), "model.dtype: is auto, but a streamed model"),
        (("train.compile=True",), "train.compile: is True, but a streamed model"),
    ],
)
def test_layers_that_are_read_in_each_pass_are_for_losses(tmp_path: Path, overrides: tuple[str], fault: str) -> None:
    assert fault in message(tmp_path, SMALL, "model.streamed=True", *overrides)


def test_a_client_alone_needs_no_other_machine(tmp_path: Path) -> None:
    overrides = ("federate.client_idx_for_local_train=1", "federate.mode=distributed")
    assert "a client alone needs no other machine" in message(tmp_path, SMALL, *overrides)


def test_a_client_that_trains_alone(tmp_path: Path) -> None:
    federate = load_text(tmp_path, SMALL, "federate.client_idx_for_local_train=3").config.federate
    assert (federate.lone_client, federate.cohort_size) == (2, 1)
    overrides = ("federate.client_idx_for_local_train=1", "federate.sample_client_num=2")
    assert load_text(tmp_path, SMALL, *overrides).notices == (
        "federate.sample_client_num has no effect: a client trains alone (federate.client_idx_for_local_train)",
    )


def test_keys_without_effect_are_reported_once_and_are_not_in_the_resolved_config(tmp_path: Path) -> None:
    text = SMALL.replace("  client_num: 3", "  client_num: 3\n  share_local_model: True")
    config, notices = load_text(tmp_path, text, "eval.count_flops=False")
    assert notices == (
        "federate.share_local_model has no effect: simulated clients always share one copy of the base model",
        "eval.count_flops has no effect: floating-point operations are not counted",
    )
    assert load_text(tmp_path, config.to_yaml()) == (config, ())


@pytest.mark.parametrize(
    ("override", "notice"),
    [
        ("train.optimizer.momentum=0.9", "train.optimizer.momentum has no effect: mezotrainer is plain SGD"),
        ("train.scheduler={type: StepLR, step_size: 3}",
         "train.scheduler has no effect: mezotrainer's rate changes by train.train_strategy"),
        ("grad.grad_clip=1.0", "grad.grad_clip has no effect: mezotrainer has no gradient; train.zo.clip limits its "
         "scalars"),
        ("grad.grad_accum_count=4", "grad.grad_accum_count has no effect: mezotrainer steps after each batch"),
        ("data.splitter_args=[{alpha: 0.1}]", "data.splitter_args has no effect: the iid splitter takes none"),
    ],
)  # fmt: skip
def test_a_setting_that_the_run_does_not_use_is_reported(tmp_path: Path, override: str, notice: str) -> None:
    assert load_text(tmp_path, SMALL, override).notices == (notice,)


def test_a_warm_up_without_a_warm_up_schedule_is_reported(tmp_path: Path) -> None:
    overrides = ("trainer.type=llmtrainer", "train.scheduler={type: StepLR, step_size: 3, warmup_steps: 5}")
    assert load_text(tmp_path, SMALL, *overrides).notices == (
        "the warm-up of train.scheduler has no effect: its type is neither warmup_step nor warmup_noam",
    )


def test_settings_that_stand_in_each_others_way_are_reported(tmp_path: Path) -> None:
    overrides = ("train.is_enable_half=True", "model.dtype=float32", "federate.sample_client_num=1",
                 "federate.sample_client_rate=0.7", "trainer.type=llmtrainer", "train.zo.eps=1e-2")  # fmt: skip
    assert load_text(tmp_path, SMALL, *overrides).notices == (
        "train.zo has no effect: llmtrainer does not perturb",
        "train.is_enable_half has no effect: model.dtype says float32",
        "federate.sample_client_num has no effect: federate.sample_client_rate makes it 2",
    )


# ---------------------------------------------------------------- what values become


def test_defaults_are_those_of_the_reference_and_the_paper(tmp_path: Path) -> None:
    config = load_text(tmp_path, SMALL).config
    assert (config.seed, config.device, config.use_gpu) == (0, -1, False)
    assert (config.data.splits, config.data.splitter, config.data.root) == ((0.8, 0.1, 0.1), "iid", "data")
    assert (config.federate.total_round_num, config.eval.freq, config.early_stop.patience) == (50, 1, 5)
    assert (config.train.zo.eps, config.train.zo.queries, config.train.zo.noise) == (1e-3, 1, "gaussian")
    assert (config.train.zo.clip, config.train.lr_width, config.federate.min_clients) == (0.0, 5e-6, 1)
    assert config.model.dtype is None


def test_the_config_is_frozen(tmp_path: Path) -> None:
    config = load_text(tmp_path, SMALL).config
    with pytest.raises(ValueError, match="frozen"):
        config.train.zo.eps = 1.0  # type: ignore[misc]  # this is what the test is about


@pytest.mark.parametrize(("trainer", "protocol"), [("mezotrainer", "scalars"), ("llmtrainer", "weights")])
def test_the_protocol_follows_the_trainer(tmp_path: Path, trainer: str, protocol: str) -> None:
    assert load_text(tmp_path, SMALL, f"trainer.type={trainer}").config.federate.protocol == protocol


def test_zeroth_order_clients_may_send_weights_and_then_decay_them(tmp_path: Path) -> None:
    config = load_text(tmp_path, SMALL, "federate.protocol=weights", "train.optimizer.weight_decay=0.1").config
    assert (config.federate.protocol, config.train.optimizer.weight_decay) == ("weights", 0.1)


@pytest.mark.parametrize("written", ["1e-5", "1E-5", "0.00001", "1.0e-5", "+1e-5", ".1e-4", "1.e-5"])
def test_a_float_may_be_written_in_any_usual_way(tmp_path: Path, written: str) -> None:
    assert load_text(tmp_path, SMALL.replace("1e-5", written)).config.train.optimizer.lr == 1e-5
    assert load_text(tmp_path, SMALL, f"train.optimizer.lr={written}").config.train.optimizer.lr == 1e-5


@pytest.mark.parametrize(
    ("rate", "clients", "size"), [("0.29", 100, 29), ("0.3", 10, 3), ("0.01", 3, 1), ("1", 7, 7), ("0.5", 3, 1)]
)
def test_the_rate_of_sampled_clients_is_rounded_down_to_at_least_one(
    tmp_path: Path, rate: str, clients: int, size: int
) -> None:
    config = load_text(tmp_path, SMALL, f"federate.client_num={clients}", f"federate.sample_client_rate={rate}").config
    assert config.federate.cohort_size == size


def test_the_limits_of_the_counter_words_are_accepted(tmp_path: Path) -> None:
    overrides = (f"seed={2**64 - 1}", f"federate.total_round_num={2**28 - 1}", f"train.local_update_steps={2**24 - 1}")
    config = load_text(tmp_path, SMALL, *overrides, "train.zo.queries=255").config
    assert config.seed == 2**64 - 1
    assert load_text(tmp_path, config.to_yaml()).config == config


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "p-tuning", "ia3", "IA_3", "Prefix"])
def test_adapter_methods_in_the_spelling_of_the_reference(tmp_path: Path, method: str) -> None:
    adapter = load_text(tmp_path, SMALL, f"llm.adapter.args=[{{adapter_method: {method}}}]").config.llm.adapter
    assert adapter.method == method.lower().replace("_", "")


def test_optimisers_are_those_of_torch_that_step_on_dense_gradients_alone() -> None:
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert set(get_args(OptimizerName)) == classes - {"Optimizer", "LBFGS", "SparseAdam"}


def test_schedulers_exist_in_torch() -> None:
    known = set(vars(torch.optim.lr_scheduler))
    assert set(get_args(SchedulerName)) - {"", "warmup_step", "warmup_noam"} <= known


# ---------------------------------------------------------------- overrides


def test_overrides_reach_sections_lists_and_keys_of_other_libraries(tmp_path: Path) -> None:
    config = load_text(
        tmp_path, SMALL, "llm.adapter.args.0.r=16", "data.splits=[0.5, 0.25, 0.25]", "train.zo={eps: 1e-2}",
        "train.optimizer.lr=1", "train.optimizer.lr=2", "federate.save_to=",
    ).config  # fmt: skip
    assert config.llm.adapter.options == {"r": 16}
    assert config.data.splits == (0.5, 0.25, 0.25)
    assert config.train.zo.eps == 1e-2
    assert config.train.optimizer.lr == 2.0
    assert config.federate.save_to == ""


def test_pairs_of_the_reference_become_overrides() -> None:
    assert as_overrides(["a.b", "1", "c=2", "d", "x=y"]) == ["a.b=1", "c=2", "d=x=y"]
    assert as_overrides(["a.b", "1", "lonely"]) == ["a.b=1", "lonely"]


def test_anchors_and_merged_sections_are_read_as_yaml_says(tmp_path: Path) -> None:
    text = "base: &b {eps: 1e-2, clip: 5}\n" + SMALL + "  zo: &z\n    <<: *b\n    clip: 1\n"
    with pytest.raises(ConfigError, match=r"^\S*c\.yaml:1: base: unknown key[^\n]*$"):
        load_text(tmp_path, text)
    inner = SMALL.replace("    use: True", "    use: True\n    args: &a [{r: &r 4, lora_alpha: *r}]")
    assert load_text(tmp_path, inner).config.llm.adapter.options == {"r": 4, "lora_alpha": 4}
    merged = SMALL + "  zo: {<<: {eps: 1e-2, clip: 5}, clip: 1}\n"
    zo = load_text(tmp_path, merged).config.train.zo
    assert (zo.eps, zo.clip) == (1e-2, 1.0)


def test_an_override_means_what_it_means_in_the_file(tmp_path: Path) -> None:
    text = SMALL.replace("lr: 1e-5", "lr: 3e-4").replace("client_num: 3", "client_num: 7")
    overridden = load_text(tmp_path, SMALL, "train.optimizer.lr=3e-4", "federate.client_num=7")
    assert load_text(tmp_path, text) == overridden


# ---------------------------------------------------------------- mistakes, each with its whole message

NO_TAGS = "leave it out and write a word, a number, a list or a section"

IN_FILE = [
    ("seed: 0\nseeed: 1\n", "c.yaml:14: seeed: unknown key; nearest known key: seed"),
    ("lr: 1e-5\n", "c.yaml:13: lr: unknown key; nearest known key: train.optimizer.lr"),
    ("qqqq: 1\n", "c.yaml:13: qqqq: unknown key; known are use_gpu, device, threads, workers, seed, outdir, expname, "
        "early_stop, federate, privacy, fedopt, fedprox, data, llm, dataloader, model, train, grad, criterion, "
        "trainer, eval, wandb, mlflow"),
    ("attack:\n  attack_method: x\n", "c.yaml:13: attack: FederatedScope's attack is not supported here; remove it"),
    ("seed: 1\nseed: 2\n", "c.yaml:14: seed: given twice, first in line 13; keep one"),
    ("grad:\n\tgrad_clip: 1\n", "c.yaml:14: indented with a tab; YAML indents with spaces only"),
    ("grad: [1, 2\n", "c.yaml:14: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("grad: 3\n", "c.yaml:13: grad: got 3; needs keys below it: grad_clip, grad_accum_count"),
    ("seed: !!python/object:os.system x\n",
     f"c.yaml:13: not valid YAML: the tag !!python/object:os.system is not supported; {NO_TAGS}"),
    ("grad: !!set {a, b}\n", f"c.yaml:13: not valid YAML: the tag !!set is not supported; {NO_TAGS}"),
    ("expname: !!binary bXk=\n", f"c.yaml:13: not valid YAML: the tag !!binary is not supported; {NO_TAGS}"),
    ("expname: !mine x\n", f"c.yaml:13: not valid YAML: the tag !mine is not supported; {NO_TAGS}"),
    ("seed: !!int one\n", "c.yaml:13: not valid YAML: 'one' is no int"),
    ("seed: 0x_\n", "c.yaml:13: not valid YAML: '0x_' is no int"),
    ("x: " + "[" * 5_000 + "\n", "c.yaml:13: lists or sections are nested more than 50 deep"),
    ("eval: {count_flops: 1}\neval: 3\n",
     "2 problems in the configuration\n"
     "c.yaml:14: eval: given twice, first in line 13; keep one\n"
     "c.yaml:14: eval: got 3; needs keys below it: freq, metrics, split, best_res_update_round_wise_key, samples"),
    ("grad: &a {x: *a}\n", "c.yaml:13: not valid YAML: an alias that contains itself"),
    ("? [a, b]\n: 1\n", "c.yaml:13: not valid YAML: a key must be a plain word"),
]  # fmt: skip


@pytest.mark.parametrize(("addition", "expected"), IN_FILE)
def test_mistakes_in_the_text(tmp_path: Path, addition: str, expected: str) -> None:
    assert message(tmp_path, SMALL.rstrip() + "\n" + addition) == expected


def test_a_key_of_the_reference_inside_a_known_section(tmp_path: Path) -> None:
    text = SMALL.replace("  client_num: 3", "  client_num: 3\n  use_ss: True")
    assert (
        message(tmp_path, text)
        == "c.yaml:3: federate.use_ss: FederatedScope's federate.use_ss is not supported here; remove it"
    )


OVERRIDES = [
    ("train.optimizer.lr=fast", "train.optimizer.lr: got 'fast'; needs auto, or a number above 0"),
    ("train.optimizer.lr=0", "train.optimizer.lr: got 0; needs auto, or a number above 0"),
    ("train.optimizer.lr=.nan", "train.optimizer.lr: got nan; needs auto, or a number above 0"),
    ("train.optimizer.lr=", "train.optimizer.lr: got ''; needs auto, or a number above 0"),
    ("seed=-1", "seed: got -1; needs a whole number from 0 to 18446744073709551615"),
    ("seed=1.5", "seed: got 1.5; needs a whole number from 0 to 18446744073709551615"),
    ("use_gpu=1", "use_gpu: got 1; needs True or False"),
    ("federate.client_num=0", "federate.client_num: got 0; needs a whole number from 1 to 4294967296"),
    ("federate.total_round_num=268435456",
     "federate.total_round_num: got 268435456; needs a whole number from 1 to 268435455"),
    ("train.local_update_steps=True", "train.local_update_steps: got True; needs a whole number from 1 to 16777215"),
    ("train.zo.queries=256", "train.zo.queries: got 256; needs a whole number from 1 to 255"),
    ("train.zo.eps=0", "train.zo.eps: got 0; needs auto, or a number above 0"),
    ("train.zo.clip=-1", "train.zo.clip: got -1; needs a number of at least 0"),
    ("data.subsample=2", "data.subsample: got 2; needs a number above 0 and up to 1"),
    ("expname=../x", "expname: got '../x'; needs a name, or a path that stays below outdir"),
    ("expname=/tmp/x", "expname: got '/tmp/x'; needs a name, or a path that stays below outdir"),
    ("expname=.", "expname: got '.'; needs a name, or a path that stays below outdir"),
    ("expname=a/../../x", "expname: got 'a/../../x'; needs a name, or a path that stays below outdir"),
    ("expname=5", "expname: got 5; needs a name, or a path that stays below outdir; write it in quotes"),
    ("train.train_strategy=roundwise",
     "train.train_strategy: got 'roundwise'; needs one of frozen, random, round-wise, five-round, model-diff, "
     "scale-free; did you mean round-wise?"),
    ("trainer.type=general", "trainer.type: got 'general'; needs one of mezotrainer, llmtrainer"),
    ("train.optimizer.type=adamw",
     "train.optimizer.type: got 'adamw'; needs one of ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Muon, "
     "NAdam, RAdam, RMSprop, Rprop, SGD; did you mean AdamW?"),
    ("model.dtype=fp16", "model.dtype: got 'fp16'; needs auto, float32, bfloat16 or float16"),
    ("data.type=cifar10@torchvision",
     "data.type: got 'cifar10@torchvision'; needs NAME or NAME@llm, for example alpaca@llm or mine.jsonl@llm"),
    ("data.splits=[0.9, 0.1]", "data.splits: got [0.9, 0.1]; needs three numbers of at least 0 that sum to 1"),
    ("data.splits=[0.9, 0.2, 0.1]",
     "data.splits: is [0.9, 0.2, 0.1], whose sum is 1.2; needs three numbers of at least 0 that sum to 1"),
    ("federate.client_idx_for_local_train=4",
     "federate.client_idx_for_local_train: is 4; needs 1 to 3, or 0 for all clients"),
    ("data.splitter_args=[{alpha: 0}]", "data.splitter_args.0.alpha: got 0; needs a number above 0"),
    ("data.splitter_args={alpha: 1}",
     "data.splitter_args: got {'alpha': 1}; needs a list of at most one mapping: [{alpha: 0.5}]"),
    ("data.splitter_args=[{alhpa: 1}]",
     "data.splitter_args.0.alhpa: unknown key; nearest known key: data.splitter_args.0.alpha"),
    ("llm.adapter.args=[{adapter_method: lroa}]",
     "llm.adapter.args.0.adapter_method: got 'lroa'; needs one of lora, prefix, prompt, p-tuning, ia3; "
     "did you mean lora?"),
    ("llm.adapter.args=[]", "llm.adapter.args: got []; needs a list of one mapping: [{adapter_method: lora, r: 8}]"),
    ("federate.sample_client_num=4",
     "federate.sample_client_num: is 4; needs 1 to 3, or -1 for all clients"),
    ("federate.sample_client_rate=0",
     "federate.sample_client_rate: is 0.0; needs a number above 0 and up to 1, or -1 for all clients"),
    ("federate.min_clients=4", "federate.min_clients: is 4, but 3 take part in a round; needs at most that"),
    ("train.optimizer.weight_decay=0.1",
     "train.optimizer.weight_decay: is 0.1; needs 0, or federate.protocol: weights"),
    ("train.optimizer.type=Adam",
     "train.optimizer.type: is Adam; mezotrainer is SGD: remove the key, or set trainer.type: llmtrainer"),
    ("train.optimizer.foo={a: 1}",
     "train.optimizer.foo: got {'a': 1}; needs a number, text, True, False, or a list of numbers"),
    ("train.scheduler.step_size=3",
     "train.scheduler.step_size: is a key of a scheduler, but none is chosen; set train.scheduler.type or remove "
     "step_size"),
    ("eval.split=[val, train]", "eval.split: got ['val', 'train']; needs a list of val and test"),
    ("eval.split=[val, val]", "eval.split: is ['val', 'val']; needs each split at most once"),
    ("eval.split=[test]",
     "eval.best_res_update_round_wise_key: is val_loss, which is not measured; needs test_loss, or another "
     "eval.split"),
    ("eval.freq=0",
     "early_stop.patience: is 5, but nothing is evaluated; set it to 0, or eval.freq above 0 and eval.split to val "
     "or test"),
    ("federate.method=FedOpt",
     "federate.method: got 'FedOpt'; needs one of FedAvg, FedAvgM, FedAdam, FedYogi; did you mean "
     "FedYogi?"),
    ("train.zo={estimator: per-example, queries: 100}",
     "train.zo.queries: is 100, which makes 6400 directions of a step with dataloader.batch_size 64; needs at most 255 "
     "together"),
    ("train.schedule.warmup_rounds=50",
     "train.schedule.warmup_rounds: is 50, but the run has 50 rounds; needs fewer"),
    ("fedprox={use: True, mu: 0.1}",
     "fedprox.use: is True, but a pull cannot be replayed from scalars; needs False, or federate.protocol: weights"),
    ("fedopt.use=True", "fedopt.use: FederatedScope's fedopt.use is not supported here; remove it"),
    ("train.zo=3", "train.zo: got 3; needs keys below it: estimator, eps, queries, noise, rank, clip"),
    ("train.zo.eta=3", "train.zo.eta: unknown key; known are estimator, eps, queries, noise, rank, clip"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), OVERRIDES)
def test_wrong_values(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, SMALL, override) == f"override '{override}': {expected}"


def test_a_scale_free_rate_needs_scalars(tmp_path: Path) -> None:
    told = message(tmp_path, SMALL, "federate.protocol=weights", "train.train_strategy=scale-free")
    assert "is scale-free, which follows the clients' scalars; needs federate.protocol: scalars" in told


def test_what_a_schedule_does_not_use_is_said(tmp_path: Path) -> None:
    overrides = ("train.schedule.type=cosine", "train.schedule.floor=0.1", "train.schedule.step_factor=0.1")
    notices = load_text(tmp_path, SMALL, *overrides).notices
    assert "train.schedule.step_factor has no effect: train.schedule.type is cosine" in notices
    assert not any("floor" in notice for notice in notices)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lonely", "not of the form key=value, such as train.optimizer.lr=1e-5"),
        ("a..b=1", "not of the form key=value, such as train.optimizer.lr=1e-5"),
        ("=1", "not of the form key=value, such as train.optimizer.lr=1e-5"),
        (
            "train.trainable=*norm*",
            "not valid YAML: expected alphabetic or numeric character, but found '*'; "
            "text that begins with * needs quotes",
        ),
        ("seed=[1", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("federate.client_num.x=1", "federate.client_num.x: federate.client_num is 3, which has no keys below it"),
        ("data.splits.7=1", "data.splits.7: 7 is no position in a list of 3, which counts from 0"),
    ],
)
def test_overrides_that_cannot_be_applied(tmp_path: Path, override: str, expected: str) -> None:
    text = SMALL.replace("  type: alpaca@llm", "  type: alpaca@llm\n  splits: [0.8, 0.1, 0.1]")
    assert message(tmp_path, text, override) == f"override '{override}': {expected}"


def test_a_rate_that_would_reach_zero_says_what_to_change(tmp_path: Path) -> None:
    text = SMALL.replace("  optimizer:", "  train_strategy: random\n  lr_width: 1e-5\n  optimizer:")
    assert message(tmp_path, text) == (
        "c.yaml:12: train.lr_width: is 1e-05, with which train.train_strategy random can bring the rate down to 0; "
        "needs a width below train.optimizer.lr, which is 1e-05"
    )


def test_scalars_without_a_zeroth_order_trainer(tmp_path: Path) -> None:
    assert message(tmp_path, SMALL, "trainer.type=llmtrainer", "federate.protocol=scalars") == (
        "override 'federate.protocol=scalars': federate.protocol: is scalars, but llmtrainer has no scalars to send; "
        "set it to weights, or trainer.type: mezotrainer"
    )


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    assert message(tmp_path, "- a\n- b\n") == (
        "c.yaml:1: got ['a', 'b'] at the top level; needs keys with values, as in 'key: value'"
    )
    assert message(tmp_path, "seed: 1\nuse_gpu: '\x00'\n") == "c.yaml:2: not valid YAML: the character U+0000"
    assert message(tmp_path, "llm: {adapter: {use: True}}") == "\n".join([
        "3 problems in the configuration",
        "c.yaml: data.type: missing; needs NAME or NAME@llm, for example alpaca@llm or mine.jsonl@llm",
        "c.yaml: federate.client_num: missing; needs a whole number from 1 to 4294967296",
        "c.yaml: model.type: missing; needs NAME or NAME@huggingface_llm, NAME being on the hub or a local folder "
        "or file",
    ])  # fmt: skip


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^nowhere\.yaml: no such file$"):
        load_config(Path("nowhere.yaml"))
    with pytest.raises(ConfigError, match=r": cannot be read: Is a directory$"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"expname: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text \(byte 12\)$"):
        load_config(tmp_path / "latin.yaml")


def test_all_mistakes_of_a_file_and_its_overrides_come_together_in_their_order(tmp_path: Path) -> None:
    text = """\
federate:
  client_num: three
  min_clients: 9
  sample_client_num: 0
data:
  type: alpaca@llm
  splits: [0.8, 0.3, 0.1]
model: {}
llm: {adapter: {use: True}}
train: {optimizer: {lr: 1e-5, type: Adam}}
seed: 1
seed: 2
"""
    assert message(tmp_path, text, "eval.fraq=1", "what", "train.lr_width=wide", "early_stop.patience=0") == "\n".join([
        "8 problems in the configuration",
        "c.yaml:2: federate.client_num: got 'three'; needs a whole number from 1 to 4294967296",
        "c.yaml:7: data.splits: is [0.8, 0.3, 0.1], whose sum is 1.2; needs three numbers of at least 0 that sum to 1",
        "c.yaml:8: model.type: missing; needs NAME or NAME@huggingface_llm, NAME being on the hub or a local folder "
        "or file",
        "c.yaml:10: train.optimizer.type: is Adam; mezotrainer is SGD: remove the key, or set trainer.type: "
        "llmtrainer",
        "c.yaml:12: seed: given twice, first in line 11; keep one",
        "override 'eval.fraq=1': eval.fraq: unknown key; nearest known key: eval.freq",
        "override 'what': not of the form key=value, such as train.optimizer.lr=1e-5",
        "override 'train.lr_width=wide': train.lr_width: got 'wide'; needs a number of at least 0",
    ])  # fmt: skip


def test_no_path_is_the_bundled_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "QUICKSTART", tmp_path / "quickstart.yaml")
    (tmp_path / "quickstart.yaml").write_text(SMALL)
    assert load_config(None, ["seed=3"]).config.seed == 3


# ---------------------------------------------------------------- properties

NAMES = st.sampled_from(
    ["", "a", "1e-5", "yes", "null", "0x1f", "2024-01-01", "1:30", "ünï", "a: b", "# x", "~", "- 1"]
)
FLOATS = st.floats(min_value=1e-30, max_value=1e30)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**64 - 1),
        "expname": NAMES | st.text(st.characters(codec="utf-8", exclude_characters="./\0"), max_size=8),
        "use_gpu": st.booleans(),
        "train.optimizer.lr": FLOATS,
        "train.zo.eps": FLOATS,
        "train.zo.noise": st.sampled_from(["gaussian", "rademacher"]),
        "train.optimizer.momentum": FLOATS | st.none() | st.booleans() | st.lists(FLOATS, max_size=2),
        "llm.adapter.args.0.target": st.recursive(
            st.none() | st.integers() | FLOATS | NAMES,
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
            max_leaves=4,
        ),
        "eval.split": st.sampled_from([["val"], ["val", "test"], ["test", "val"]]),
    },
)


def yaml_of(value: Any) -> str:
    return to_yaml({"value": value}).removeprefix("value:").removesuffix("\n")


@given(CHANGES)
@example({"expname": "a\x85b"})
@settings(deadline=None, max_examples=60)
def test_any_valid_configuration_survives_its_own_yaml(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    data = yaml.safe_load(SMALL)
    data["train"]["optimizer"]["lr"] = 1e-5
    for key, value in changes.items():
        section = data
        *above, last = key.replace(".0.", ".").split(".")
        for name in above:
            section = section.setdefault(name, [{}] if name == "args" else {})
            section = section[0] if isinstance(section, list) else section
        section[last] = value
    config = Config.model_validate(data)
    assert list(conflicts(config)) == []
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path).config == config


@given(st.text(alphabet="{}[]:,-#&*!|>'\"%@`\n\t ?abs0.<\u2028\x07", max_size=40))
@settings(deadline=None, max_examples=150)
def test_any_text_is_read_or_refused_with_a_message(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:  # some key that must be given is never there
        load_config(path, [f"train={text}", text])
    assert str(path) in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "x", "val", "SGD"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "r", "0"]), inner, max_size=2),
    max_leaves=5,
)
SECTIONS = [
    name for name in Config.model_fields if Config.model_fields[name].is_required() or name in ("train", "eval")
]
PATHS = [".".join(path) for path, _ in fields()] + SECTIONS


@given(st.dictionaries(st.sampled_from(PATHS), JUNK, max_size=6))
@example({"federate": None})
@example({"data.splitter_args": [{"r": 0}, 5]})
@example({"llm.adapter.args": [None]})
@settings(deadline=None, max_examples=300)
def test_any_values_are_reported_in_our_words(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("junk") / "c.yaml"
    path.write_text(SMALL)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*(f"{key}={yaml_of(value)}" for key, value in values.items()), "seed=none"])
    lines = str(caught.value).splitlines()
    assert all(line.startswith(("override '", 'override "')) for line in lines[1:] or lines)
    assert "Input should" not in str(caught.value)


@pytest.mark.parametrize("path", [path for path, _ in fields()], ids=".".join)
def test_a_doubled_letter_in_a_key_is_recognised(path: tuple[str, ...]) -> None:
    typo = path[-1][:1] + path[-1]
    assert nearest_key((*path[:-1], typo)) == ".".join(path)


@given(lr=FLOATS, width=FLOATS, strategy=st.sampled_from(["random", "round-wise", "five-round", "model-diff"]))
@settings(deadline=None)
def test_a_strategy_is_accepted_exactly_if_no_rate_can_reach_zero(lr: float, width: float, strategy: str) -> None:
    data = yaml.safe_load(SMALL) | {
        "train": {"train_strategy": strategy, "lr_width": width, "optimizer": {"lr": lr}},
    }  # fmt: skip
    assert (list(conflicts(Config.model_validate(data))) == []) == (lr - width > 0)


# ---------------------------------------------------------------- the schema itself


def test_every_field_has_a_sentence() -> None:
    unexplained = [".".join(path) for path, field in fields() if not (field.description or "").endswith(".")]
    assert unexplained == []


def test_no_key_is_both_known_and_set_aside() -> None:
    known = {".".join(path) for path, _ in fields()}
    unsupported = {f"{section}.{key}" for section, keys in UNSUPPORTED_KEYS.items() for key in keys}
    assert ALIASES.keys().isdisjoint(known | unsupported | WITHOUT_EFFECT.keys())
    assert known.issuperset(new for new, _ in ALIASES.values())
    assert known.isdisjoint(WITHOUT_EFFECT)
    assert known.isdisjoint(unsupported)
    assert unsupported.isdisjoint(WITHOUT_EFFECT)
    assert UNSUPPORTED_SECTIONS.isdisjoint(Config.model_fields)


def test_the_reference_page_is_current() -> None:
    current = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert current == reference_page(), "run: python -m fedmezo.config > docs/config.md"
