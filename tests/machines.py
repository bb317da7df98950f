"""A server and sites on this machine, each of its own processes, for tests of runs on several machines."""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedmezo.machines.flare.kits import provision
from fedmezo.machines.flare.local import free_port
from fedmezo.machines.flare.project import Kit, Project
from tests.runs import make_base, make_data, write_config
from tests.waiting import PATIENCE

SITES = ("north", "south", "west")

WORKER = "fedmezo.machines.worker"
READY = "the model worker is ready"
_PR_SET_PDEATHSIG = 1

FLARE_CLIENT = "client_train"
FLARE_SERVER = "server_train"
FLARE_JOB = "client.worker_process"
"""FLARE's process for one job on a site."""


@dataclass(eq=False)
class Machines:
    """Kits, data and processes under one folder; `close` ends whatever is left of them.

    Args:
        root: an empty folder.
        plaintext: kits without encryption.
        through_proxies: each site reaches the server through a proxy that can be cut.
    """

    root: Path
    plaintext: bool = False
    through_proxies: bool = False
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = make_base(self.root / "base")
        make_data(self.root / "data")
        project = Project(server="localhost", port=free_port(), sites=SITES)
        self.server, *self.sites = provision(project, self.root / "kits", plaintext=self.plaintext)
        if self.through_proxies:
            for kit in self.sites:
                self.proxies[kit.party] = Proxy(project.port)
                _redirect(kit, project.port, self.proxies[kit.party].port)

    def config(self, name: str = "run", **changes: Any) -> Path:
        """Write a configuration; keys of `changes` are in dots."""
        return write_config(self.root / f"{name}.yaml", self.base, self.root / "data", expname=name, **changes)

    def run(self, *words: str | Path, seconds: float = PATIENCE) -> str:
        """Run a command to its end and return what it printed; it must succeed."""
        done = subprocess.run(
            _command(words), capture_output=True, text=True, timeout=seconds, env=_environment(self.root)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *words: str | Path, module: str = "fedmezo") -> subprocess.Popen[bytes]:
        """Start a command; its output goes to NAME.txt."""
        with (self.root / f"{name}.txt").open("ab") as log:
            process = subprocess.Popen(
                _command(words, module),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(self.root),
                preexec_fn=_die_with_parent,
            )
        self.started[name] = process
        return process

    def start_site(self, kit: Kit, module: str = "fedmezo") -> subprocess.Popen[bytes]:
        """Start a site with its client's share of the data, which `fedmezo partition` has written."""
        data = self.root / "shares" / f"client_{kit.client}.jsonl"
        return self.start(kit.party, "site", kit.folder, "--data", data, "--model", self.base, module=module)

    def output(self, name: str) -> str:
        """What a started command has printed so far."""
        return (self.root / f"{name}.txt").read_text()

    def processes(self, name: str, kind: str = "") -> list[psutil.Process]:
        """The processes that a started command has made, and itself; or those whose command line has `kind` in it."""
        try:
            parent = psutil.Process(self.started[name].pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return [process for process in family if not kind or kind in _command_line(process)]

    def signal(self, name: str, number: signal.Signals, kind: str = "") -> None:
        """Send a signal to them."""
        for process in self.processes(name, kind):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def journal(self, name: str = "run") -> list[dict[str, Any]]:
        """The lines of a run's journal that are rounds."""
        path = self.root / "runs" / name / "journal.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]
        return [entry for entry in map(json.loads, lines) if entry["kind"] == "round"]

    def close(self) -> None:
        """Kill every process, and what it has started."""
        family = [process for name in self.started for process in self.processes(name)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in self.started:
            self.started[name].wait()
        psutil.wait_procs(family, timeout=PATIENCE)
        for proxy in self.proxies.values():
            proxy.close()


def clients_of(line: dict[str, Any]) -> list[int]:
    """Who contributed to a journal's round."""
    return [part["client"] for part in line["clients"]]


def _command(words: Sequence[str | Path], module: str = "fedmezo") -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, whatever ends it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment(root: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(root / "cache")}


def _redirect(kit: Kit, port: int, to_port: int) -> None:
    """Let a site's kit reach the server at another port."""
    path = kit.folder / "startup" / "fed_client.json"
    path.write_text(re.sub(rf"localhost:{port}\b", f"localhost:{to_port}", path.read_text()))


class Proxy:
    """Carries connections from its port to another one, counts bytes, and can be cut.

    While it is cut, nothing passes and nothing is refused: as when a cable is pulled.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.bytes_up = self.bytes_down = 0
        self.seen = bytearray()  # what went up and down, if `keep` is set
        self.keep = False
        self._whole = threading.Event()
        self._whole.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing through."""
        self._whole.clear()

    def mend(self) -> None:
        """Let everything through again."""
        self._whole.set()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        self._whole.wait()
        try:
            server = socket.create_connection(("localhost", self._to_port))
        except OSError:
            client.close()
            return
        other = {client: server, server: client}
        with client, server, suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                self._whole.wait()
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    self._count(data, up=end is client)
                    other[end].sendall(data)

    def _count(self, data: bytes, *, up: bool) -> None:
        if up:
            self.bytes_up += len(data)
        else:
            self.bytes_down += len(data)
        if self.keep:
            self.seen += data
