"""FederatedScope's keys that are not in the schema: accepted without effect, or named as not supported.

Facts from FederatedScope's llm and FedMeZO branches, so that files written for it run, and fail, with a clear word.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WITHOUT_EFFECT = {
    "federate.share_local_model": "simulated clients always share one copy of the base model",
    "federate.online_aggr": "reports are combined once they are all there, which takes little memory here anyway",
    "federate.make_global_eval": "losses are measured on every client and averaged over all examples",
    "federate.process_num": "one process computes all clients",
    "llm.adapter.mv_to_cpu": "memory does not grow with the number of clients",
    "llm.retry_on_nan_loss": "a step whose loss is not finite is skipped and counted",
    "llm.chat.max_history_len": "answers are generated from one instruction, without a history",
    "eval.count_flops": "floating-point operations are not counted",
}
"""Known keys that mean nothing here, each with the reason that is reported."""

UNSUPPORTED_SECTIONS = _words(
    "aggregator asyn attack backend bbo cfg_file check_completeness compression distribute expname_tag feat_engr "
    "fedsageplus fedswa finetune flitplus gcflplus hpo nbafl personalization print_decimal_digits "
    "quantization regularizer sgdmf vertical verbose"
)
"""FederatedScope's top-level keys and sections that do not exist here."""

UNSUPPORTED_KEYS = {
    "data": _words(
        "args cSBM_phi consistent_label_distribution file_path hetero_data_name hetero_synth_batch_size "
        "hetero_synth_feat_dim hetero_synth_prim_weight is_debug loader max_query_len max_seq_len max_tgt_len "
        "num_contrast num_of_client_for_data num_partitions num_steps pre_transform quadratic save_data "
        "server_holds_all sizes target_transform test_pre_transform test_target_transform test_transform transform "
        "trunc_stride val_pre_transform val_target_transform val_transform walk_length"
    ),
    "dataloader": _words("drop_last num_steps num_workers pin_memory shuffle sizes theta type walk_length"),
    "early_stop": _words("the_smaller_the_better"),
    "eval": _words("monitoring report save_data"),
    "federate": _words(
        "atc_load_from atc_vanilla data_weighted_aggr join_in_info master_addr master_port merge_test_data "
        "merge_val_data resource_info_file sampler unseen_clients_rate use_diff use_ss"
    ),
    "fedopt": _words("annealing annealing_gamma annealing_step_size optimizer type_optimizer use"),
    "llm": _words("accelerator deepspeed offsite_tuning"),
    "model": _words(
        "contrast_temp contrast_topk downstream_tasks dropout embed_size gamma graph_pooling hidden in_channels "
        "input_shape label_smoothing lambda_ layer length_penalty max_answer_len max_length max_tree_depth min_length "
        "model_num_per_trainer model_type n_best_size no_repeat_ngram_size null_score_diff_threshold num_beams "
        "num_item num_labels num_of_trees num_user out_channels pretrain_tasks stage task use_bias use_contrastive_loss"
    ),
    "train": _words("data_para_dids"),
    "trainer": _words("disp_freq finetune local_entropy sam val_freq"),
}
"""FederatedScope's keys that do not exist here, by the section that does."""


def is_unsupported(keys: tuple[str, ...]) -> bool:
    """Whether FederatedScope knows a key that the schema does not."""
    if keys[0] in UNSUPPORTED_SECTIONS:
        return True
    return len(keys) > 1 and keys[1] in UNSUPPORTED_KEYS.get(keys[0], frozenset())
