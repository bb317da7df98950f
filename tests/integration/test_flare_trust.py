"""What a kit's policy is for: each attempt to get around it is made, with FLARE's real processes, and is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.flare_api.api_spec import InternalError, InvalidJobDefinition, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.fuel.hci.client import file_transfer

from fedmezo.machines.flare.kits import (
    OPERATOR,
    OPERATOR_FOLDER,
    SERVER_RELAY,
    SITE_RELAY,
    place_server,
    provision,
)
from fedmezo.machines.flare.local import free_port
from fedmezo.machines.flare.party import party_command
from fedmezo.machines.flare.project import Kit, Project
from fedmezo.machines.flare.segments import write_job
from fedmezo.machines.processes import stop
from tests.waiting import wait_until

SITES = ("north", "south")


class Cluster:
    """FLARE's server with one site, `south`, and an operator who is logged in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = Project(server="localhost", port=free_port(), sites=SITES)
        self.server, self.north, self.south = provision(self.project, root / "kits")
        place_server(self.server, 1 << 20)
        self.processes = [self.start(self.server, "server"), self.start(self.south, "south")]
        self.session: Session | None = None
        wait_until(self._log_in, "logging in")
        wait_until(lambda: self.present() == {"south"}, "the site's arrival")

    def start(self, kit: Kit, name: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start the FLARE process of a kit, its command line changed."""
        command = [re.sub("^uid=.*", f"uid={changes.get('uid', kit.party)}", word) for word in party_command(kit)]
        with (self.root / f"{name}.txt").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _log_in(self) -> bool:
        with suppress(NoConnection, InternalError, RuntimeError):
            self.session = new_secure_session(OPERATOR, str(self.server.folder / OPERATOR_FOLDER), timeout=5.0)
        return self.session is not None

    def present(self) -> set[str]:
        """The sites that the server has let in."""
        assert self.session is not None
        return {client.name for client in self.session.get_system_info().client_info}

    def output(self, name: str) -> str:
        """What a process has said."""
        return (self.root / f"{name}.txt").read_text()

    def outcome(self, job: Path, reason: str = "") -> str:
        """Submit a job, and tell how it ended; the reason may be known a moment after the end."""
        assert self.session is not None
        number = self.session.submit_job(str(job))
        status = ""

        def ended() -> bool:
            nonlocal status
            assert self.session is not None
            meta = self.session.get_job_meta(number)
            detail = meta.get("job_deploy_detail", "")
            status = f"{meta['status']} {detail}"
            return status.startswith("FINISHED") and bool(detail) and reason in status

        wait_until(ended, "the job's end")
        return status

    def close(self) -> None:
        """End everything."""
        if self.session is not None:
            self.session.close()
        for process in self.processes:
            stop(process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("trust"))
    try:
        yield started
    finally:
        started.close()


def _stays_out(cluster: Cluster, kit: Kit, name: str, log: str, refusal: str, **changes: str) -> None:
    """Start a party that must not get in, until it has been refused twice, as a log says each time."""
    process = cluster.start(kit, name, **changes)
    try:
        wait_until(lambda: cluster.output(log).count(refusal) >= 2, f"{name} being refused")
        assert cluster.present() == {"south"}
    finally:
        stop(process)
    assert "Successfully registered" not in cluster.output(name)


def test_a_kit_of_another_authority_gets_no_connection(cluster: Cluster, tmp_path: Path) -> None:
    """A stranger can make kits of the same names, but not sign them."""
    _, stranger, _ = provision(cluster.project, tmp_path / "other")
    _stays_out(cluster, stranger, "stranger", "stranger", "CERTIFICATE_VERIFY_FAILED")


def test_a_site_cannot_take_the_name_of_another(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(cluster.south.folder, tmp_path / "thief")
    thief = replace(cluster.south, folder=tmp_path / "thief")
    refusal = "authenticated as 'south' but claimed endpoint 'north'"
    _stays_out(cluster, thief, "thief", "server", refusal, uid="north")


Sign = Callable[..., None]


def test_a_job_without_a_signature_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_transfer, "sign_folders", lambda *_: None)
    assert "FAILED_TO_RUN" in cluster.outcome(write_job(tmp_path / "job"), "unsigned job rejected")


def test_a_job_that_was_changed_after_it_was_signed_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign: Sign = file_transfer.sign_folders

    def sign_and_change(folder: str, *arguments: object) -> None:
        sign(folder, *arguments)
        for path in Path(folder).rglob("config_fed_client.json"):
            path.write_text(path.read_text().replace("2", "3"))

    monkeypatch.setattr(file_transfer, "sign_folders", sign_and_change)
    assert "FAILED_TO_RUN" in cluster.outcome(write_job(tmp_path / "job"))
    wait_until(lambda: "does not pass signature verification" in cluster.output("server"), "the server's reason")


@pytest.mark.parametrize(
    ("side", "path"),
    [("server", "subprocess.Popen"), ("client", "subprocess.Popen"), ("client", "fedmezo.results.metrics.MetricsFile")],
)
def test_a_job_with_another_class_is_refused(cluster: Cluster, tmp_path: Path, side: str, path: str) -> None:
    """Not even one of ours: a kit names the one relay."""
    job = write_job(tmp_path / "job")
    file = job / "app" / "config" / f"config_fed_{side}.json"
    config = json.loads(file.read_text())
    mark = tmp_path / "ran"
    component = {"id": "extra", "path": path, "args": {"args": ["touch", str(mark)]}}
    config["components"] = [component]
    file.write_text(json.dumps(config))
    try:
        outcome = cluster.outcome(job)
    except InvalidJobDefinition as error:
        outcome = str(error)
    assert "COMPLETED" not in outcome
    assert not mark.exists()
    folder = cluster.server.folder if side == "server" else cluster.south.folder
    refusal = re.compile(rf"'{path}' at config path \S+ is not in allow_list")
    wait_until(lambda: refusal.search(_logs(folder)) is not None, "the reason in FLARE's log")


def _logs(folder: Path) -> str:
    """All that FLARE has written there; the server packs the logs of a job into one file."""
    return "".join(path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_job_that_brings_code_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("raise SystemExit\n")
    try:
        outcome = cluster.outcome(job)
    except (InternalError, InvalidJobDefinition) as error:
        outcome = str(error)
    assert re.search("not authorized|byoc", outcome, re.IGNORECASE), outcome


def test_the_operator_has_no_shell_on_a_site(cluster: Cluster) -> None:
    assert cluster.session is not None
    with pytest.raises(Exception, match=r"(?i)not authorized"):
        cluster.session.ls_target("south")


def test_every_kit_pins_its_relay_and_keeps_its_logs(cluster: Cluster) -> None:
    relays = {cluster.server: SERVER_RELAY, cluster.north: SITE_RELAY, cluster.south: SITE_RELAY}
    for kit, relay in relays.items():
        resources = json.loads((kit.folder / "local" / "resources.json").read_text())
        relay = (
            SERVER_RELAY if kit is cluster.server else SERVER_RELAY.replace("server_relay.Server", "site_relay.Site")
        )
        assert resources["class_allow_list"] == [relay]
        assert resources["class_list_enforcement_mode"] == "enforce"
        assert resources["allow_log_streaming"] is False
