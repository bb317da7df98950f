"""Which folder of a run is handed over."""

from __future__ import annotations

from pathlib import Path

from fedmezo.errors import RunError
from fedmezo.runs.directory import ADAPTER_FOLDER, BEST, CONFIG_FILE, MODEL_FOLDER


def folder_to_hand_over(run: Path, *, best: bool) -> Path:
    """A run's adapter or model, the last or the best, or the folder itself where it is no run's.

    Raises:
        RunError: there is no such folder, the run is not finished, or the best round of something else is asked for.
    """
    if not run.is_dir():
        raise RunError(f"{run}: there is no such folder; give a run's, or that of a saved adapter")
    if not (run / CONFIG_FILE).is_file():
        if best:
            raise RunError(f"{run} is no run's folder (it has no {CONFIG_FILE}), so it has no best round")
        return run
    name = next((name for name in (ADAPTER_FOLDER, MODEL_FOLDER) if (run / name).is_dir()), ADAPTER_FOLDER)
    folder = run / (f"{name}{BEST}" if best else name)
    if not folder.is_dir():
        raise RunError(
            f"{run}: it has no {folder.name}/: the run is not finished. Finish it with: fedmezo resume {run}"
        )
    return folder
