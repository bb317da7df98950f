"""The commands `sweep` and `reproduce` on the command line; what is heavy is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedmezo.arguments import Commands, add_command, count, path_and_keys

_SWEEP_EXAMPLES = """\
examples:
  fedmezo sweep my.yaml train.optimizer.lr=1e-5,3e-5,1e-4 --seeds 3
  fedmezo sweep train.zo.eps=1e-3,1e-2 train.zo.queries=1,4 federate.total_round_num=20

The same command again goes on where it was stopped and reuses what is finished. Values with commas go in brackets or
quotes: data.splits=[.8,.1,.1].
"""


def add_sweep(commands: Commands) -> None:
    """The command `sweep`."""
    summary = "run a configuration over several values of some keys, with several seeds"
    usage = "fedmezo sweep [CONFIG] key=a,b,c ... [--seeds N] [--jobs N] [--out DIR]"
    parser = add_command(commands, "sweep", _sweep, summary, usage=usage, examples=_SWEEP_EXAMPLES)
    parser.add_argument("words", nargs="+", metavar="CONFIG, key=a,b,c", help="a YAML file, and keys with their values")
    parser.add_argument("--seeds", type=count, default=1, metavar="N", help="seeds of each point (1)")
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for everything (sweeps/CONFIG)")


def add_reproduce(commands: Commands) -> None:
    """The command `reproduce`."""
    summary = "make the runs of a table or figure of the paper, and set the results beside the paper's"
    parser = add_command(commands, "reproduce", _reproduce, summary)
    parser.add_argument("item", nargs="?", metavar="ITEM", help="a name that --list shows, or all")
    parser.add_argument("words", nargs="*", metavar="key=value", help="further settings for every run")
    parser.add_argument("--list", action="store_true", help="show the items")
    scales = ("small", "laptop", "paper")
    parser.add_argument("--scale", choices=scales, default="small", help="bundled, real small, or the paper's model")
    parser.add_argument("--model", metavar="NAME", help="another model (model.type)")
    parser.add_argument("--larger-model", metavar="NAME", help="the larger model of table8 at the paper's scale")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of the data files")
    parser.add_argument("--seeds", type=count, metavar="N", help="seeds of each point (3)")
    parser.add_argument("--jobs", type=count, metavar="N", help="runs at a time (paper: 1, else one a core)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for everything (reproduction/SCALE)")


def _sweep(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedmezo.campaign.sweep import SweepRequest, sweep

    config, words = path_and_keys(options.words)
    out = options.out or Path("sweeps") / (config.stem if config else "quickstart")
    return sweep(SweepRequest(config, words, options.seeds, options.jobs, out), Console())


def _reproduce(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedmezo.campaign.catalogue import read_scale
    from fedmezo.errors import ConfigError

    if options.list:
        for item in read_scale(options.scale).items.values():
            print(f"{item.name:<12} {item.title}")
        return 0
    if options.item is None:
        raise ConfigError(
            "fedmezo reproduce needs an item: `fedmezo reproduce --list` shows them, `all` is all of them"
        )
    from fedmezo.campaign.laptop import FOLDER, LAPTOP, plain_model, prepare
    from fedmezo.campaign.reproduce import LARGER_MODEL, ReproduceRequest, reproduce
    from fedmezo.campaign.runs import usable_cores

    own_model = None
    if options.scale == LAPTOP:
        prepare(options.data_root or FOLDER)
        own_model = str(plain_model(options.data_root or FOLDER))
    request = ReproduceRequest(
        item=options.item,
        scale=options.scale,
        words=options.words,
        model=options.model,
        data_root=options.data_root,
        seeds=options.seeds,
        workers=options.jobs or (1 if options.scale == "paper" else usable_cores()),
        out=options.out or Path("reproduction") / options.scale,
        own_model=own_model,
        larger_model=options.larger_model or LARGER_MODEL,
    )
    return reproduce(request, Console())
