"""Pictures and pages from run directories: report.png and report.html of one run, a comparison of several.

Reads config.yaml and metrics.jsonl only, so a run can be reported while it runs and after it was copied elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from fedmezo.atomic import replacing
from fedmezo.config import flatten
from fedmezo.config.document import read
from fedmezo.errors import RunError
from fedmezo.results.curves import STYLE as CURVES_STYLE
from fedmezo.results.curves import curves_of_run, curves_of_runs
from fedmezo.results.metrics import METRICS_FILE, Metric, read_metrics
from fedmezo.results.plots import draw_run, draw_runs, png
from fedmezo.results.summary import PART_OF_LOSS, Comparison, Summary, summarise, summary_rows

CONFIG_FILE = "config.yaml"
REPORT_PICTURE, REPORT_PAGE = "report.png", "report.html"
COMPARISON_PICTURE, COMPARISON_PAGE = "comparison.png", "comparison.html"

UNTOLD_KEYS = (
    "outdir",
    "expname",
    "wandb",
    "mlflow",
    "workers",
    "federate.save_to",
    "federate.restore_from",
    "verbose",
)
"""Keys, or sections, that may differ between runs without saying what the runs are."""
MAX_KEYS_IN_LABEL = 4

COMPARED = ("rounds", *PART_OF_LOSS.values(), "best round", "bytes up", "bytes down", "peak memory", "time")
"""Rows of a run's summary that are columns of a comparison."""

FILES = {
    "config.yaml": "every setting, resolved",
    "environment.json": "versions and machine",
    "partition.json": "which client holds which examples",
    "journal.jsonl": "the log of the rounds",
    "metrics.jsonl": "every measured number",
    "adapter": "the tuned adapter, for PeftModel.from_pretrained",
    "adapter_best": "the adapter of the best round",
    "model": "the tuned model, for AutoModelForCausalLM.from_pretrained",
    "model_best": "the model of the best round",
    "snapshots": "weights to resume from",
    "tensorboard": "event files for TensorBoard",
    "report.png": "the picture above",
    "log.txt": "what was printed",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
thead th { border-bottom: 2px solid #222; }
tbody th { font-weight: normal; color: #555; }
td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .75rem; font-size: 14px; }
  th, td { padding-right: .6rem; }
  tbody th { overflow-wrap: anywhere; }
}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory says about its run."""

    folder: Path
    config: dict[str, Any]  # nested as in config.yaml
    metrics: list[Metric]

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.folder.resolve().name

    @property
    def summary(self) -> Summary:
        """Totals, the best round decided by the run's own key."""
        key = flatten(self.config).get("eval.best_res_update_round_wise_key", "val_loss")
        return summarise(self.metrics, str(key))


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        RunError: no such directory, or its config.yaml or metrics.jsonl is missing, damaged or empty.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run directory")
    metrics = read_metrics(folder / METRICS_FILE)
    if not metrics:
        raise RunError(f"{folder / METRICS_FILE}: no metrics yet; report the run after its first evaluation")
    return Run(folder, _read_config(folder / CONFIG_FILE), metrics)


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write report.png and report.html into a run directory and return their paths.

    Raises:
        RunError: as `read_run`.
    """
    run = read_run(run_dir)
    picture = png(draw_run(run.metrics, run.summary))
    _write(run_dir / REPORT_PICTURE, picture)
    _write(run_dir / REPORT_PAGE, _report_page(run, picture))
    return run_dir / REPORT_PICTURE, run_dir / REPORT_PAGE


def report_page(run_dir: Path, renewed_after: int | None = None) -> bytes:
    """What `write_report` writes as report.html; a browser asks for it again every `renewed_after` seconds, if given.

    Raises:
        RunError: as `read_run`.
    """
    run = read_run(run_dir)
    return _report_page(run, png(draw_run(run.metrics, run.summary)), renewed_after)


def _report_page(run: Run, picture: bytes, renewed_after: int | None = None) -> bytes:
    present = {name: meaning for name, meaning in FILES.items() if (run.folder / name).exists()}
    files = present | {REPORT_PICTURE: FILES[REPORT_PICTURE]}
    body = (
        _image(picture, "loss against rounds and against bytes"),
        curves_of_run(run.metrics),
        "<h2>Result</h2>",
        _table([(row.heading, row.value, row.remark) for row in summary_rows(run.summary)]),
        "<h2>Files</h2>",
        _list([f'<a href="{name}">{name}</a>: {meaning}' for name, meaning in files.items()]),
        "<h2>Configuration</h2>",
        _table([(key, _value(value)) for key, value in flatten(run.config).items()]),
    )
    return _page(f"Run {run.name}", body, renewed_after)


def compare(run_dirs: Sequence[Path], out: Path) -> Comparison:
    """Draw several runs together: comparison.png and comparison.html in the folder `out`; return the table.

    Raises:
        RunError: as `read_run`, for any of the runs.
    """
    runs = [read_run(folder) for folder in run_dirs]
    labels = labels_of(runs)
    table = _comparison(runs, labels)
    picture = png(draw_runs([run.metrics for run in runs], labels))
    body = (
        _image(picture, "loss of each run against rounds and against bytes"),
        curves_of_runs([run.metrics for run in runs], labels),
        _table(table.rows, table.headings),
    )
    _write(out / COMPARISON_PICTURE, picture)
    _write(out / COMPARISON_PAGE, _page(f"Comparison of {len(runs)} runs", body))
    return table


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Name each run by the settings that are not the same in all of them; by its folder where that is not enough."""
    flat = [{key: value for key, value in flatten(run.config).items() if not _untold(key)} for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    differing = [key for key in keys if any(config.get(key) != flat[0].get(key) for config in flat)]
    names = _short_names(differing[:MAX_KEYS_IN_LABEL])
    labels = [", ".join(f"{name}={_value(config.get(key))}" for key, name in names.items()) for config in flat]
    if len(set(labels)) == len(labels) and all(labels):
        return labels
    return [f"{run.name} ({label})" if label else run.name for run, label in zip(runs, labels, strict=True)]


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise RunError(f"{path}: no such file; is {path.parent} a run directory?")
    document = read(path)
    if document.problems:
        raise RunError("\n".join(map(str, document.problems)))
    if not document.data:
        raise RunError(f"{path}: holds no setting; the file is damaged")
    return document.data


def _comparison(runs: Sequence[Run], labels: Sequence[str]) -> Comparison:
    cells = [{row.heading: row.value for row in summary_rows(run.summary)} for run in runs]
    headings = [heading for heading in COMPARED if any(heading in row for row in cells)]
    rows = [(label, *(row.get(name, "-") for name in headings)) for label, row in zip(labels, cells, strict=True)]
    return Comparison(("run", *headings), tuple(rows))


def _untold(key: str) -> bool:
    return any(key == untold or key.startswith(untold + ".") for untold in UNTOLD_KEYS)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Name a key by its last word, or by its last two where one word says too little or is not alone."""
    last = [key.rpartition(".")[2] for key in keys]
    vague = {word for word in last if last.count(word) > 1} | {"type", "use"}
    return {key: ".".join(key.split(".")[-2:]) if word in vague else word for key, word in zip(keys, last, strict=True)}


_PHONE = '<meta name="viewport" content="width=device-width, initial-scale=1">'


def _page(title: str, body: Sequence[str], renewed_after: int | None = None) -> bytes:
    renewal = "" if renewed_after is None else f'<meta http-equiv="refresh" content="{renewed_after}">'
    head = f'<meta charset="utf-8">{_PHONE}{renewal}<title>{escape(title)}</title><style>{STYLE}{CURVES_STYLE}</style>'
    text = "\n".join([f"<h1>{escape(title)}</h1>", *body])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'.encode()


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Sequence[Sequence[str]], headings: Sequence[str] = ()) -> str:
    head = (
        "<thead><tr>" + "".join(f"<th>{escape(text)}</th>" for text in headings) + "</tr></thead>" if headings else ""
    )
    return f'<div class="wide"><table>{head}<tbody>\n' + "\n".join(map(_row, rows)) + "\n</tbody></table></div>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr><th>{escape(cells[0])}</th>" + "".join(f"<td>{escape(text)}</td>" for text in cells[1:]) + "</tr>"


def _list(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>"


def _value(value: object) -> str:
    """Return a setting as YAML would show it on one line."""
    if value is None:
        return "-"
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return str(value)
