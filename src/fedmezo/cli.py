"""The command `fedmezo`: reads arguments and configuration, and imports what is heavy only when it is needed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from fedmezo import __version__
from fedmezo.arguments import NO_DATA, Command, Commands, add_command, add_own_code, add_places, path_and_keys
from fedmezo.campaign.arguments import add_reproduce, add_sweep
from fedmezo.config import Config, Loaded, as_overrides, load_config
from fedmezo.errors import INTERRUPTED, ConfigError, FedMeZOError, StorageError
from fedmezo.handover.arguments import add_handover
from fedmezo.machines.flare.commands import add_machines, require_flare
from fedmezo.plain import plain
from fedmezo.tasks.arguments import add_eval, add_generate

_EXAMPLES = """\
examples:
  fedmezo run                                          the bundled quickstart
  fedmezo run my.yaml train.optimizer.lr=1e-5 seed=1   a file, some keys changed
  fedmezo run --cfg my.yaml train.optimizer.lr 1e-5    the same in FederatedScope's form
  fedmezo check my.yaml                                only look for mistakes
"""

_COMPLETION = """\
examples:
  eval "$(fedmezo completion bash)"                       in ~/.bashrc
  fedmezo completion zsh > "${fpath[1]}/_fedmezo"         once, for zsh
"""


_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers of libraries that transformers imports wherever they are installed, and that say then what they lack."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failure, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("--cfg"):  # as FederatedScope's main.py is called
        words.insert(0, "run")
    _replace_what_cannot_be_shown()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    options = _parse(words)
    command: Command = options.command
    if not _is_here():
        print("the folder that you are in is not there any more: change into another one", file=sys.stderr)
        return FedMeZOError.exit_code
    try:
        return command(options)
    except FedMeZOError as error:
        print(plain(str(error)), file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of a file that no command expects trouble with: a full disk, a place that cannot be
        where = f"{error.filename}: " if error.filename else ""
        print(plain(f"{where}{error.strerror or error}"), file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt as interrupt:
        print(interrupt.args[0] if interrupt.args else "interrupted", file=sys.stderr)
        return INTERRUPTED


def _replace_what_cannot_be_shown() -> None:
    """Let no character that a terminal or a file cannot hold end a command: a question mark stands for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_here() -> bool:
    """Whether the present folder exists, without which neither paths nor libraries are found."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _parse(words: list[str]) -> argparse.Namespace:
    """The arguments; keys to change may also stand behind options, where argparse takes no more of them."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if rest and ("words" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.words += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedmezo",
        description="Federated fine-tuning of language models with zeroth-order optimisation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedmezo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser_of_run = _add(commands, "run", _run, "train as a configuration says")
    parser_of_run.add_argument(
        "--engine",
        choices=("simulation", "ray", "flare"),
        default="simulation",
        help="where clients run: in this process, dealt to workers=N of Ray, or as on several machines",
    )
    _add(commands, "check", _check, "read a configuration and say what is wrong with it")
    _add_calibrate(commands)
    _add_diagnose(commands)
    _add_audit(commands)
    _add_resume(commands)
    _add_replay(commands)
    _add_publishing(commands)
    _add_report(commands)
    _add_watch(commands)
    add_eval(commands)
    add_generate(commands)
    add_handover(commands)
    add_sweep(commands)
    add_reproduce(commands)
    add_machines(commands)
    _add_completion(commands)
    return parser


def _add(commands: Commands, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
    """A command that takes a configuration."""
    usage = f"fedmezo {name} [CONFIG] [key=value ...]\n       fedmezo {name} --cfg FILE [key value ...]"
    parser = add_command(commands, name, command, summary, usage=usage)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG, key=value",
        help="a YAML file (none: the bundled quickstart), and keys to change",
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="the file; keys may then also be given as: key value")
    return parser


def _add_calibrate(commands: Commands) -> None:
    parser = _add(commands, "calibrate", _calibrate, "measure which eps and rate suit a configuration")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the configuration with the values found")
    parser.add_argument("--forward-passes", type=int, metavar="N", help="how many to spend (12000, or three minutes)")


def _add_diagnose(commands: Commands) -> None:
    parser = add_command(commands, "diagnose", _diagnose, "measure a run: curvature, gradient noise, allowed rate")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    add_places(parser)


def _add_audit(commands: Commands) -> None:
    parser = add_command(commands, "audit", _audit, "say which clients did a run good or harm, from its journal alone")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--members", action="store_true", help="also attack: tell clients' examples from others by what the server saw"
    )
    add_places(parser)


def _add_report(commands: Commands) -> None:
    parser = add_command(commands, "report", _report, "draw a run again, or several runs together")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the comparison (default: beside the first)")


def _add_watch(commands: Commands) -> None:
    parser = add_command(commands, "watch", _watch, "show a run while it works, and as a page that renews itself")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write its report there, for a browser")
    parser.add_argument("--once", action="store_true", help="show what there is and return")


def _add_resume(commands: Commands) -> None:
    parser = add_command(commands, "resume", _resume, "go on with a run that was stopped")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--force", action="store_true", help="go on although something is not as it was; the journal keeps a remark"
    )
    add_places(parser)


def _add_replay(commands: Commands) -> None:
    parser = add_command(commands, "replay", _replay, "rebuild a run's result from its journal, and check every state")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--to-round", type=int, metavar="N", help="stop after N rounds, whatever follows them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the adapter or model there")
    add_places(parser, data=NO_DATA)


def _add_publishing(commands: Commands) -> None:
    parser = add_command(commands, "export", _export, "publish a run's fine-tune as a file of scalars")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--as-log", type=Path, metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--to-round", type=int, metavar="N", help="take only the first N rounds")
    parser = add_command(commands, "import", _import, "turn a published file of scalars into an adapter or model")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file that `fedmezo export --as-log` wrote")
    parser.add_argument("--model", metavar="BASE", required=True, help="the base model: hub name, folder or `bundled`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write it there; default: FILE-adapter, or -model")
    parser.add_argument("--restore-from", type=Path, metavar="ADAPTER", help="what the run started from, if saved")
    add_own_code(parser)


def _add_completion(commands: Commands) -> None:
    parser = add_command(
        commands, "completion", _completion, "print what a shell reads to complete this command", examples=_COMPLETION
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh", "powershell"), help="which shell")


def _load(options: argparse.Namespace) -> Loaded:
    path: Path | None = options.cfg
    if path is not None:
        return load_config(path, as_overrides(options.words))
    return load_config(*path_and_keys(options.words))


def _run(options: argparse.Namespace) -> int:
    config, notices = _load(options)
    if config.is_automatic:
        from fedmezo.studies.calibrate import settle  # imports torch

        config = settle(config)
    if options.engine == "flare":
        require_flare()
        from fedmezo.machines.flare.local import run_here

        return run_here(config, notices)
    _require_one_machine(config)
    if options.engine == "ray":
        return _run_on_workers(config, notices)
    if config.workers:
        raise ConfigError(
            f"workers is {config.workers}, but the simulation has none: add --engine ray, or leave it out"
        )
    from fedmezo.runs.experiment import run  # imports torch

    return run(config, notices)


def _run_on_workers(config: Config, notices: tuple[str, ...]) -> int:
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs Ray, which is not installed: pip install 'fedmezo[ray]'")
    from fedmezo.machines.workers.local import run_on_workers

    return run_on_workers(config, notices)


def _resume(options: argparse.Namespace) -> int:
    from fedmezo.runs.places import Moved
    from fedmezo.runs.resume import resume  # imports torch

    return resume(options.run, force=options.force, moved=Moved(options.model, options.data_root))


def _replay(options: argparse.Namespace) -> int:
    from fedmezo.runs.replay import replay  # imports torch

    return replay(options.run, to_round=options.to_round, out=options.out, base=options.model)


def _export(options: argparse.Namespace) -> int:
    from fedmezo.runs.publish import export_log  # imports torch

    return export_log(options.run, options.as_log, to_round=options.to_round)


def _import(options: argparse.Namespace) -> int:
    from fedmezo.runs.publish import import_log  # imports torch

    return import_log(
        options.file, options.model, options.out, options.restore_from, own_code=options.trust_remote_code
    )


def _calibrate(options: argparse.Namespace) -> int:
    config, notices = _load(options)
    from fedmezo.studies.calibrate import calibrate  # imports torch

    return calibrate(config, notices, write=options.write, budget=options.forward_passes)


def _diagnose(options: argparse.Namespace) -> int:
    from fedmezo.runs.places import Moved
    from fedmezo.studies.diagnose import diagnose  # imports torch

    return diagnose(options.run, Moved(options.model, options.data_root))


def _audit(options: argparse.Namespace) -> int:
    from fedmezo.runs.places import Moved
    from fedmezo.studies.audit import audit  # imports torch

    return audit(options.run, Moved(options.model, options.data_root), members=options.members)


def _require_one_machine(config: Config) -> None:
    """Say how a run on several machines is started."""
    if config.federate.mode == "distributed":
        raise ConfigError(
            "federate.mode is distributed: start such a run with `fedmezo serve KIT CONFIG` on the server and `fedmezo "
            "site KIT --data FILE --model BASE` on each site, with kits that `fedmezo provision` makes (see "
            "docs/several_machines.md). To try it on this machine: fedmezo run CONFIG --engine flare. To simulate it: "
            "fedmezo run CONFIG federate.mode=standalone"
        )


def _check(options: argparse.Namespace) -> int:
    from fedmezo.runs.places import missing

    config, notices = _load(options)
    if absent := missing(config):
        raise ConfigError("\n".join(absent))
    print(_summary(config))
    for notice in notices:
        print(f"notice: {notice}")
    print("ok")
    return 0


def _completion(options: argparse.Namespace) -> int:
    from fedmezo.completion import completion_script

    print(completion_script(_parser(), options.shell))
    return 0


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedmezo.results.console import show_comparison
    from fedmezo.results.report import compare, write_report

    runs: list[Path] = options.runs
    if len(runs) == 1:
        for path in write_report(runs[0]):
            print(path)
        return 0
    out: Path = options.out or runs[0].resolve().parent / "comparison"
    show_comparison(Console(), compare(runs, out))
    print(f"pictures and page in {out}")
    return 0


def _watch(options: argparse.Namespace) -> int:
    from fedmezo.runs.watch import watch

    return watch(options.run, options.page, once=options.once)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _summary(config: Config) -> str:
    federate, train = config.federate, config.train
    unit = "steps" if train.batch_or_epoch == "batch" else "passes over their data"
    width = "" if train.train_strategy == "frozen" else f" +/- {train.lr_width:g}"
    work = f"{train.local_update_steps} {unit}, batch size {config.dataloader.batch_size}"
    rows = {
        "trainer": f"{config.trainer.type}, {federate.protocol} protocol",
        "model": f"{config.model.name}, {config.llm.adapter.method}",
        "data": f"{config.data.name}, {config.data.splitter} over {federate.client_num} clients",
        "rounds": f"{federate.total_round_num}, each of {federate.cohort_size} clients with {work}",
        "rate": f"{_number(train.optimizer.lr)}{width}, {train.train_strategy}",
    }
    return "\n".join(f"{name + ':':<9}{value}" for name, value in rows.items())
