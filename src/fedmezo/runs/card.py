"""The model card of an adapter: the README.md that the Hugging Face hub shows, made from what is known of the run.

Nothing of the machine is in it: a base model or data set that is a file here appears by its last name alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from fedmezo.config import Config
from fedmezo.models.gguf_places import PACKAGE_PREFIX, hub_file, names_gguf
from fedmezo.models.loading import BUNDLED
from fedmezo.results.summary import Row, Summary, summary_rows
from fedmezo.runs.directory import write_text
from fedmezo.runs.format import Header

CARD_FILE = "README.md"

_METHODS = {
    "mezotrainer": "zeroth-order steps (FedMeZO): two forward passes along a random direction, no back-propagation",
    "llmtrainer": "back-propagation on the clients, averaged by the server (FedAvg)",
}
_OF_THE_MACHINE = (
    *("outdir", "expname", "device", "threads", "use_gpu", "wandb", "mlflow", "workers", "verbose"),
    *("data.root", "llm.cache", "federate.save_to", "federate.restore_from"),
)
"""Keys and sections that say where a run was computed rather than what it is."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says.

    Args:
        base: the base model, as `model.type` names it.
        method: how it was tuned, in a sentence.
        data: name of the data set; None where it is not known.
        figures: the table of results.
        made_by: the command, and what its settings are.
        is_adapter: whether an adapter is beside it, or a model.
        settings: keys and values, nested as in config.yaml.
    """

    base: str
    method: str
    data: str | None
    figures: tuple[Row, ...]
    made_by: str
    is_adapter: bool
    settings: dict[str, Any]


def card_of_run(config: Config, summary: Summary) -> Card:
    """The card of a run's adapter, from its configuration and what came out."""
    federate = config.federate
    clients = Row("clients", f"{federate.client_num:,}", f"{federate.cohort_size:,} in each round")
    data = public_name(config.data.name)
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for key in _OF_THE_MACHINE:
        _drop(settings, key.split("."))
    settings["model"]["type"] = public_name(config.model.name)
    settings["data"] = settings.get("data", {}) | {"type": data}
    return Card(
        base=config.model.name,
        method=_METHODS[config.trainer.type],
        data=data,
        figures=(clients, *summary_rows(summary)),
        made_by="`fedmezo run settings.yaml` with these settings; whatever they do not name has its default.",
        is_adapter=config.llm.adapter.use,
        settings=settings,
    )


def card_of_log(header: Header, rounds: int) -> Card:
    """The card of an adapter that was rebuilt from a published log, which knows neither data nor losses."""
    return Card(
        base=header.base,
        method=_METHODS["mezotrainer"],
        data=None,
        figures=(Row("rounds", f"{rounds:,}"),),
        made_by="`fedmezo replay` or `fedmezo import` from the scalars of a run with these settings.",
        is_adapter=header.adapter is not None,
        settings={
            "seed": header.seed,
            "llm": {"adapter": {"use": True, "args": [dict(header.adapter)]} if header.adapter else {"use": False}},
            "train": {
                "zo": {
                    "estimator": header.estimator,
                    "eps": header.eps,
                    "queries": header.queries,
                    "noise": header.noise,
                    "rank": header.rank,
                },
                **({"trainable": list(header.trainable)} if header.trainable else {}),
            },
        },
    )


def write_card(card: Card, folder: Path) -> None:
    """Write the card beside the adapter in a folder."""
    write_text(folder / CARD_FILE, render_card(card))


def render_card(card: Card) -> str:
    """The card as Markdown with the YAML head that the hub reads."""
    base = public_name(card.base)
    head: dict[str, Any] = {
        "library_name": "peft" if card.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    on_hub = hub_file(base) if names_gguf(base) else (base, "")
    if base == card.base and on_hub is not None and "/" in on_hub[0]:
        head["base_model"] = on_hub[0]
    head["tags"] = ["fedmezo", "federated-learning", "zeroth-order"]
    table = "\n".join(f"| {row.heading} | {row.value} | {row.remark} |" for row in card.figures)
    settings = yaml.safe_dump(card.settings, sort_keys=False, allow_unicode=True).strip()
    tuned = f"tuned on {card.data}" if card.data else "tuned"
    sources = f"the base model {base}" + (f" and the data set {card.data}" if card.data else " and the data")
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {base}, {tuned} by federated learning

Made with FedMeZO by {card.method}.

| | | |
|---|---|---|
{table}

## Use

```python
{_usage(card, base)}
```

## Made by

{card.made_by}

```yaml
{settings}
```

## Licence

The {"adapter" if card.is_adapter else "model"} derives from {sources}: their licences apply to it.
"""


def _usage(card: Card, base: str) -> str:
    """Python that loads what is in the folder."""
    folder = '"PATH_OR_NAME_OF_THIS_FOLDER"'
    if not card.is_adapter:
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})"""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

{_loading(base)}
model = PeftModel.from_pretrained(base, {folder})"""


def _loading(base: str) -> str:
    """The line of Python that loads the base model."""
    if base == BUNDLED:
        return """from importlib.resources import files

base = AutoModelForCausalLM.from_pretrained(str(files("fedmezo") / "bundled" / "base"))"""
    if names_gguf(base):
        return _loading_gguf(base)
    return f'base = AutoModelForCausalLM.from_pretrained("{base}")'


def _loading_gguf(base: str) -> str:
    """The same of a GGUF file: transformers takes its folder, or its repository, and its name."""
    if base.startswith(PACKAGE_PREFIX):
        package, _, file = base.removeprefix(PACKAGE_PREFIX).partition("/")
        return f"""from importlib.util import find_spec

folder = find_spec("{package}").submodule_search_locations[0]
base = AutoModelForCausalLM.from_pretrained(folder, gguf_file="{file}")"""
    folder, file = hub_file(base) or ("FOLDER_OF_THE_FILE", base)
    return f'base = AutoModelForCausalLM.from_pretrained("{folder}", gguf_file="{file}")'


def public_name(name: str) -> str:
    """A hub name as it is; of a folder or file on this machine, its last name alone."""
    path = PurePath(name)
    if names_gguf(name) and (name.startswith(PACKAGE_PREFIX) or (hub_file(name) and not Path(name).exists())):
        return name
    is_here = path.is_absolute() or name.startswith(("~", ".")) or Path(name).exists() or len(path.parts) > 2
    return path.name if is_here else name


def _drop(settings: dict[str, Any], key: list[str]) -> None:
    """Take a key out, and the sections that are empty then."""
    section = settings.get(key[0])
    if len(key) == 1:
        settings.pop(key[0], None)
    elif isinstance(section, dict):
        _drop(section, key[1:])
        if not section:
            settings.pop(key[0])
