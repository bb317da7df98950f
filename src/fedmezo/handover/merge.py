"""An adapter folded into its base model: a folder that transformers loads without PEFT."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner

from fedmezo.errors import ModelError, RunError, StorageError
from fedmezo.handover.source import folder_to_hand_over
from fedmezo.models.sums import write_sums
from fedmezo.runs.places import NOT_MOVED, Moved
from fedmezo.tasks.subject import Hardware, load_subject


def merge(run: str, out: Path, *, best: bool = False, moved: Moved = NOT_MOVED) -> Path:
    """Write base and adapter as one float32 model, with its tokenizer and generation settings; returns the folder.

    Args:
        run: a run's folder, or an adapter's.
        out: new folder, or an empty one.
        best: take the adapter of the best round.
        moved: where the base model is, if it is not where the run had it.

    Raises:
        ModelError: the adapter cannot be folded in, as with virtual tokens.
        RunError: there is no adapter, or the folder is in use.
        StorageError: the folder cannot be written.
    """
    source = folder_to_hand_over(Path(run), best=best)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out {out}: it is there already and not empty; give a new folder")
    # in float32 whatever the run computed with: the sum of base and adapter is rounded once, when it is used
    subject = load_subject(str(source if best else run), Hardware(use_gpu=False, dtype="float32", moved=moved))
    if not isinstance(subject.model, PeftModel):
        raise RunError(f"{run}: there is no adapter to fold into a base model")
    method = str(subject.model.active_peft_config.peft_type.value).lower()
    if not isinstance(subject.model.base_model, BaseTuner):
        raise ModelError(
            f"{run}: a {method} adapter consists of virtual tokens, which no weight of the base model can hold; LoRA "
            "and (IA)3 can be folded in"
        )
    merged = subject.model.merge_and_unload()
    try:
        merged.save_pretrained(out)
        subject.tokenizer.save_pretrained(out)
        write_sums(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
    return out
