"""What a site tells its owner of its way to the server, and how it leaves."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from fedmezo.machines.flare.doorstep import CLOSED_TIMES, SECONDS_OF_CLOSING, Doorstep, authority_fault
from fedmezo.machines.flare.kits import provision
from fedmezo.machines.flare.project import Kit, Project

FLARE = 77  # process number


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Kit, Kit, Kit]:
    """The server's, that of a site, and one of another authority."""
    root = tmp_path_factory.mktemp("kits")
    project = Project(server="localhost", port=8002, sites=("north",))
    server, north = provision(project, root / "one")
    _, stranger = provision(project, root / "other")
    return server, north, stranger


@pytest.fixture(scope="module")
def port(kits: tuple[Kit, Kit, Kit]) -> Iterator[int]:
    """Where somebody listens with the server's certificate and wants a site's."""
    startup = kits[0].folder / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(startup / "rootCA.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    listener = socket.create_server(("localhost", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"settings")

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_a_kit_of_the_servers_authority_has_no_fault(kits: tuple[Kit, Kit, Kit], port: int) -> None:
    assert authority_fault(replace(kits[1], port=port)) is None


def test_a_kit_of_another_authority_is_told(kits: tuple[Kit, Kit, Kit], port: int, tmp_path: Path) -> None:
    stranger = Doorstep(replace(kits[2], port=port), tmp_path / "flare.txt")
    [said] = stranger.look(0.0, FLARE)
    assert "the server there has a kit of another authority than this one" in said
    assert stranger.look(100.0, FLARE) == []  # once is enough


def closing(log: Path, process: int = FLARE) -> None:
    with log.open("a") as file:
        file.write(f"conn_manager - INFO - Connection [CN00002 Not Connected] is closed PID: {process}\n")


def test_two_sites_with_one_kit_are_told(kits: tuple[Kit, Kit, Kit], port: int, tmp_path: Path) -> None:
    log = tmp_path / "flare.txt"
    closing(log)  # of a time before
    north = Doorstep(replace(kits[1], port=port), log)
    said = []
    for time in range(CLOSED_TIMES):
        closing(log)
        closing(log, process=78)  # a job's connection ends with the job
        said += north.look(float(time), FLARE)
    assert len(said) == 1
    assert "another `fedmezo site` seems to run with the kit of north" in said[0]


def test_a_server_that_ends_now_and_then_is_no_rival(kits: tuple[Kit, Kit, Kit], port: int, tmp_path: Path) -> None:
    log = tmp_path / "flare.txt"
    north = Doorstep(replace(kits[1], port=port), log)
    for time in range(2 * CLOSED_TIMES):
        closing(log)
        assert north.look(time * SECONDS_OF_CLOSING, FLARE) == []
    gone = Doorstep(kits[1], log)  # nobody listens at its port
    for time in range(2 * CLOSED_TIMES):
        closing(log)
        assert gone.look(float(time), FLARE) == []


def test_a_site_leaves_without_a_word_too_many(kits: tuple[Kit, Kit, Kit], tmp_path: Path) -> None:
    """However often it is asked; and a second one with its kit is refused, of which it tells."""
    data = tmp_path / "own.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    words = [sys.executable, "-m", "fedmezo", "site", str(kits[1].folder), "--data", str(data), "--model", "bundled"]
    site = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert site.stdout is not None
    while b"the model worker is ready" not in (line := site.stdout.readline()):
        assert line, "it ended"
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 2
    assert "another `fedmezo site` runs with this kit" in second.stderr
    while b"was started with this kit, and refused" not in (line := site.stdout.readline()):
        assert line, "it ended"
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        site.send_signal(number)
    said = site.communicate()[0]
    assert site.returncode == 0
    assert said.endswith(b"leaving\n")
    files = [path for path in kits[1].folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
