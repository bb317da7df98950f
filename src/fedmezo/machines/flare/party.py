"""One of FLARE's own processes, started from a kit: it ends when the process that started it has ended."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from fedmezo.machines.flare.project import SERVER, Kit
from fedmezo.machines.orphans import exit_with_parent

_MODULES = {
    True: "nvflare.private.fed.app.server.server_train",
    False: "nvflare.private.fed.app.client.client_train",
}


def party_command(kit: Kit) -> list[str]:
    """The words that start the FLARE process of a kit."""
    is_server = kit.party == SERVER
    words = ["-m", str(kit.folder), "-s", f"fed_{'server' if is_server else 'client'}.json", "--set"]
    words += ["secure_train=true", "org=fedmezo", "config_folder=config"]
    if not is_server:
        words += [f"uid={kit.party}", "heart_beat_interval=5.0"]
    return [sys.executable, "-m", __name__, _MODULES[is_server], *words]


def main() -> None:
    """Become the FLARE process."""
    exit_with_parent()
    module, *words = sys.argv[1:]
    folder = Path(words[1])
    sys.argv = [module, *words]
    (folder / "transfer").mkdir(exist_ok=True)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
