"""The commands for several machines: provision, site, serve, partition. What is heavy is imported when it is needed."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from fedmezo.arguments import Commands, add_command, add_own_code, path_and_keys
from fedmezo.config import load_config
from fedmezo.errors import ConfigError

SECONDS_TO_WAIT = 300.0


def add_machines(commands: Commands) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "provision", _provision, "make start-up kits for the server and the sites of a project"
    )
    parser.add_argument("project", type=Path, metavar="PROJECT.yml", help="server, port and sites")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for the kits (default: the file's name)")
    parser.add_argument("--plaintext", action="store_true", help="without encryption: only to look at the traffic")
    parser = add_command(commands, "site", _site, "take part in runs as a site, with own data, until interrupted")
    parser.add_argument("kit", type=Path, metavar="KIT", help="the site's start-up kit")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="the site's examples (.json, .jsonl)")
    parser.add_argument("--model", required=True, metavar="BASE", help="the base model: folder, hub name or `bundled`")
    parser.add_argument("--gpu", action="store_true", help="compute on a GPU")
    parser.add_argument("--device", type=int, default=-1, metavar="N", help="number of the GPU (default: the first)")
    parser.add_argument("--no-cache", action="store_true", help="keep no tokenised examples on disk")
    add_own_code(parser)
    parser.add_argument("--with-parent", action="store_true", help="leave when the process that started this one ends")
    parser = add_command(commands, "serve", _serve, "start a run on the sites, or go on with one")
    parser.add_argument("kit", type=Path, metavar="KIT", help="the server's start-up kit")
    parser.add_argument(
        "words", nargs="*", metavar="CONFIG, key=value", help="a YAML file, keys to change; or a run's folder"
    )
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="the server's own examples, to evaluate on")
    parser.add_argument(
        "--wait",
        type=float,
        default=SECONDS_TO_WAIT,
        metavar="SECONDS",
        help=f"how long to wait at the start until all sites are there (default: {SECONDS_TO_WAIT:.0f})",
    )
    parser.add_argument("--force", action="store_true", help="go on with a run although something is not as it was")
    parser = add_command(commands, "partition", _partition, "write each client's examples of a configuration to a file")
    parser.add_argument("words", nargs="*", metavar="CONFIG, key=value", help="a YAML file and keys to change")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")


def require_flare() -> None:
    """See that the engine is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("nvflare") is None:
        raise ConfigError("several machines need NVIDIA FLARE, which is not installed: pip install 'fedmezo[flare]'")


def _provision(options: argparse.Namespace) -> int:
    from fedmezo.machines.flare.project import read_project

    project = read_project(options.project)
    require_flare()
    from fedmezo.machines.flare.kits import AUTHORITY, provision

    folder: Path = options.out or options.project.with_suffix("")
    for kit in provision(project, folder, plaintext=options.plaintext):
        print(f"{kit.folder}  for {kit.party}" + ("" if kit.party == "server" else f", client {kit.client}"))
    print(f"{folder / AUTHORITY}  signs kits: keep it offline, or delete it")
    if options.plaintext:
        print("notice: these kits speak in plain text, without encryption")
    return 0


def _site(options: argparse.Namespace) -> int:
    from fedmezo.machines.flare.project import read_kit

    kit = read_kit(options.kit, server=False)
    require_flare()
    from fedmezo.machines.flare.site import run_site
    from fedmezo.machines.orphans import exit_with_parent
    from fedmezo.machines.settings import WorkerOptions

    if options.with_parent:
        exit_with_parent()
    own = WorkerOptions(
        "",
        str(options.data.absolute()),
        options.model,
        use_gpu=options.gpu,
        device=options.device,
        keep_tokens=not options.no_cache,
        own_code=options.trust_remote_code,
    )
    return run_site(kit, own)


def _serve(options: argparse.Namespace) -> int:
    from fedmezo.machines.flare.project import read_kit

    kit = read_kit(options.kit, server=True)
    require_flare()
    if kit.plaintext:
        print("notice: this kit speaks in plain text, without encryption")
    path, words = path_and_keys(options.words)
    if path is not None and path.is_dir():
        if words:
            raise ConfigError(f"{path} is a run, whose keys cannot be changed: {' '.join(words)}")
        from fedmezo.machines.flare.serve import go_on

        return go_on(kit, path, wait_seconds=options.wait, held_out=options.held_out, force=options.force)
    config, notices = load_config(path, words)
    from fedmezo.machines.flare.serve import serve

    return serve(kit, config, notices, wait_seconds=options.wait, held_out=options.held_out)


def _partition(options: argparse.Namespace) -> int:
    config, _ = load_config(*path_and_keys(options.words))
    from fedmezo.machines.shards import write_shards

    for file, num_examples in write_shards(config, options.out).items():
        print(f"{file}  {num_examples:,} examples")
    return 0
