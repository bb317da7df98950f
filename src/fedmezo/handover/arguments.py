"""The commands `merge` and `push` on the command line; what is heavy is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedmezo.arguments import NO_DATA, Commands, add_command, add_own_code, add_places

_MERGE = """\
examples:
  fedmezo merge runs/first --out merged
  python -c 'from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained("merged")'
"""
_PUSH = """\
examples:
  fedmezo push runs/first me/my-adapter                     the adapter with its card
  fedmezo push runs/first me/my-adapter --base gpt2         whose base model is a folder here and gpt2 elsewhere
  fedmezo push merged me/my-model --private                 what `fedmezo merge` wrote

The hub's address and your token are those of huggingface_hub: `hf auth login`, or HF_TOKEN; HF_ENDPOINT.
"""


def add_handover(commands: Commands) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "merge", _merge, "fold a run's adapter into its base model, as a model of its own", examples=_MERGE
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or an adapter's")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the model")
    parser.add_argument("--best", action="store_true", help="take the adapter of the best round instead of the last")
    add_places(parser, data=NO_DATA)
    add_own_code(parser)
    parser = add_command(commands, "push", _push, "upload a run's adapter to the Hugging Face hub", examples=_PUSH)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder, or that of an adapter or a model")
    parser.add_argument("repository", metavar="REPO", help="where to, as OWNER/NAME; made if it is not there")
    parser.add_argument("--best", action="store_true", help="take the adapter of the best round instead of the last")
    parser.add_argument("--base", metavar="NAME", help="what others know the base model by")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _merge(options: argparse.Namespace) -> int:
    from fedmezo.handover.merge import merge  # imports torch
    from fedmezo.runs.places import Moved

    moved = Moved(options.model, own_code=options.trust_remote_code)
    print(merge(options.run, options.out, best=options.best, moved=moved))
    return 0


def _push(options: argparse.Namespace) -> int:
    from fedmezo.handover.push import push

    print(push(options.run, options.repository, best=options.best, base=options.base, private=options.private))
    return 0
