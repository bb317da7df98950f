"""FederatedScope's keys that are not in the schema: accepted where they mean nothing, or named as not supported.

Facts from FederatedScope's llm and FedMeZO branches, so that files written for it run, and fail, with a clear word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _all(section: str, keys: str, why: str) -> dict[str, str]:
    return dict.fromkeys((f"{section}.{key}" for key in keys.split()), why)


WITHOUT_EFFECT = {
    "federate.share_local_model": "simulated clients always share one copy of the base model",
    "federate.online_aggr": "reports are combined once they are all there, which takes little memory here anyway",
    **_all(
        "federate",
        "make_global_eval merge_test_data merge_val_data",
        "losses are measured on every client and averaged over all examples",
    ),
    "federate.process_num": "for many processes: fedmezo run CONFIG --engine ray workers=N",
    **_all("federate", "master_addr master_port", "the cluster of --engine ray is the one that RAY_ADDRESS names"),
    "federate.save_client_model": "a client keeps nothing of its own after a round; the run keeps the adapter of all",
    "llm.adapter.mv_to_cpu": "memory does not grow with the number of clients",
    "llm.retry_on_nan_loss": "a step whose loss is not finite is skipped and counted",
    "llm.chat.max_history_len": "answers are generated from one instruction, without a history",
    "data.cache_dir": "tokens are kept in $XDG_CACHE_HOME/fedmezo, by default ~/.cache/fedmezo",
    **dict.fromkeys(
        ("data.shuffle", "dataloader.shuffle"), "examples are visited in a random order that follows from the seed"
    ),
    **dict.fromkeys(
        ("data.num_workers", "dataloader.num_workers", "dataloader.pin_memory"), "a batch is made when it is needed"
    ),
    **dict.fromkeys(
        ("data.drop_last", "dataloader.drop_last"), "the last batch of a pass holds what is left, however little"
    ),
    "eval.count_flops": "floating-point operations are not counted",
    "eval.report": "losses are reported over all examples and for each client",
    "wandb.key": "the key is read from WANDB_API_KEY or ~/.netrc, and belongs in no configuration",
    **dict.fromkeys(("verbose", "print_decimal_digits", "check_completeness"), "it concerns FederatedScope's own log"),
    "hpo": "settings are compared by `fedmezo sweep`",
    **dict.fromkeys(
        (
            "fedsageplus",
            "flitplus",
            "gcflplus",
            "trainer.disp_freq",
            "trainer.local_entropy",
            "trainer.sam",
            "trainer.val_freq",
        ),
        "it is for methods that federate.method and trainer.type do not offer here",
    ),
    **_all(
        "data",
        "cSBM_phi hetero_data_name hetero_synth_batch_size hetero_synth_feat_dim hetero_synth_prim_weight "
        "max_query_len max_seq_len max_tgt_len num_contrast num_partitions num_steps pre_transform quadratic sizes "
        "target_transform test_pre_transform test_target_transform test_transform transform trunc_stride "
        "val_pre_transform val_target_transform val_transform walk_length",
        "it concerns data other than instructions",
    ),
    **_all("dataloader", "num_steps sizes theta walk_length", "it concerns data other than instructions"),
    **_all(
        "model",
        "contrast_temp contrast_topk downstream_tasks dropout embed_size gamma graph_pooling hidden in_channels "
        "input_shape label_smoothing lambda_ layer length_penalty max_answer_len max_length max_tree_depth min_length "
        "model_num_per_trainer model_type n_best_size no_repeat_ngram_size null_score_diff_threshold num_beams "
        "num_item num_labels num_of_trees num_user out_channels pretrain_tasks stage task use_bias "
        "use_contrastive_loss",
        "a language model has settings of its own, in its config.json",
    ),
}
"""Known keys, and sections, that mean nothing here, each with the reason that is reported."""

ALIASES: dict[str, tuple[str, Any]] = {"data.batch_size": ("dataloader.batch_size", 64)}
"""Old names that FederatedScope still reads, the keys that they set, and the value that sets nothing."""

UNSUPPORTED_SECTIONS = _words(
    "adapter aggregator asyn attack backend bbo cfg_file compression differential_privacy distribute expname_tag "
    "feat_engr fedswa finetune nbafl personalization quantization regularizer sgdmf "
    "vertical"
)
"""FederatedScope's top-level keys and sections that do not exist here."""

UNSUPPORTED_KEYS = {
    "data": _words(
        "args consistent_label_distribution file_path is_debug loader num_of_client_for_data save_data server_holds_all"
    ),
    "dataloader": _words("type"),
    "early_stop": _words("the_smaller_the_better"),
    "eval": _words("monitoring save_data"),
    "federate": _words(
        "atc_load_from atc_vanilla data_weighted_aggr freeze_A join_in_info resource_info_file sampler "
        "unseen_clients_rate use_diff use_ss"
    ),
    "fedopt": _words("annealing annealing_gamma annealing_step_size optimizer type_optimizer use"),
    "llm": _words(
        "accelerator deepspeed fedrlhf grad_accum_step max_new_token model_parallel num_completions offsite_tuning "
        "reward_coeff rlhf"
    ),
    "llm.adapter": _words("baseline count grouping local_only warmup"),
    "llm.cache": _words("data"),
    "model": _words("llm_kwargs llm_type load_from_local_pretrained_fs_config load_from_local_pretrained_pth_config"),
    "train": _words("data_para_dids"),
    "trainer": _words("choices finetune"),
    "wandb": _words("offline"),
}
"""FederatedScope's keys that do not exist here, by the section that does."""

_AT_REST: dict[str, tuple[Any, ...]] = {
    "backend": ("torch",),
    "dataloader.type": ("base",),
    "early_stop.the_smaller_the_better": (True,),
    "federate.sampler": ("uniform",),
    "llm.adapter.count": (1,),
    "llm.grad_accum_step": (1,),
    "aggregator.robust_rule": ("fedavg",),
    "quantization.method": ("none",),
}
"""Values that change nothing, where that is not plain from the value itself."""

_SWITCHES = {
    "aggregator": "robust_rule",
    "attack": "attack_method",
    "feat_engr": "type",
    "finetune": "before_eval",
    "personalization": "local_param",
    "quantization": "method",
    "regularizer": "type",
    "trainer.finetune": "before_eval",
}
"""Sections without a key `use`, and the key that switches them on."""

_NOTHING: tuple[Any, ...] = (False, None, "", 0, [], {})


def is_unsupported(keys: tuple[str, ...]) -> bool:
    """Whether FederatedScope knows a key that the schema does not; what stands below such a key is one, too."""
    if keys[0] in UNSUPPORTED_SECTIONS:
        return True
    pairs = ((".".join(keys[:depth]), keys[depth]) for depth in range(1, len(keys)))
    return any(key in UNSUPPORTED_KEYS.get(section, frozenset()) for section, key in pairs)


def is_off(key: str, value: Any) -> bool:
    """Whether FederatedScope itself would do nothing about a key, or about a section, with this value."""
    if not isinstance(value, Mapping):
        return value in _AT_REST.get(key, ()) or value in _NOTHING
    if "use" in value:
        return value["use"] is False
    if (switch := _SWITCHES.get(key)) in value:
        return is_off(f"{key}.{switch}", value[switch])
    return all(is_off(f"{key}.{name}", item) for name, item in value.items())
