"""A run as a sequence of FLARE jobs: keeps FLARE's server running, and a job on it as long as the run lasts.

FLARE's jobs do not survive what a run must: a server that is killed, a site that comes back. Such a job is over, and
the next one takes its place; the training loop notices only that clients are away for a while.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api import api_spec
from nvflare.fuel.flare_api.flare_api import Session

from fedmezo.engines.peers import Contact
from fedmezo.machines.flare.exchange import SERVER_SOCKET
from fedmezo.machines.flare.kits import OPERATOR, OPERATOR_FOLDER, SERVER_RELAY, SITE_RELAY, place_server
from fedmezo.machines.flare.link import Link
from fedmezo.machines.flare.party import party_command
from fedmezo.machines.flare.project import Kit
from fedmezo.machines.processes import stop
from fedmezo.scratch import scratch_folder

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_LOG_IN = 5.0
SECONDS_TO_START = 60.0
"""How long a job may take from its submission until our relay speaks."""
SECONDS_BEFORE_RENEWAL = 10.0
"""How long a site may be silent in the job while FLARE hears of it, before a new job is made for it."""
SECONDS_BETWEEN_RENEWALS = 60.0
FRESH_SECONDS = 15.0
"""A site whose last sign of life to FLARE is older is not there."""
JOB = "fedmezo"

_TROUBLE = (
    *(api_spec.NoConnection, api_spec.SessionClosed, api_spec.InternalError, api_spec.NoReply, api_spec.CommandError),
    *(api_spec.AuthenticationError, api_spec.JobNotFound, api_spec.JobNotRunning, api_spec.NoClientsAvailable),
    *(FLCommunicationError, OSError, RuntimeError, ValueError),
)
"""What FLARE raises while its server starts, stops or is busy; the next look may find it well again."""


def write_job(folder: Path) -> Path:
    """The job that every segment is: our relay on the server and on each site, and nothing else."""
    meta = {"name": JOB, "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": 1}
    server = {"format_version": 2, "workflows": [{"id": "relay", "path": SERVER_RELAY, "args": {}}], "components": []}
    site = {
        "format_version": 2,
        "executors": [{"tasks": [JOB], "executor": {"path": SITE_RELAY, "args": {}}}],
        "components": [],
    }
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(site))
    return folder


@dataclass(slots=True)
class _Job:
    """The job in hand."""

    id: str
    submitted: float
    connected: bool = False


class Segments:
    """Looks after FLARE's server and its jobs, in a thread of its own; a context manager.

    Args:
        kit: the server's.
        link: what the relay of each job connects to.
        socket_path: where that is.
        wait_seconds: how long the first job waits for sites that are not there yet.
        largest_answer: bytes that a site may send.
    """

    def __init__(self, kit: Kit, link: Link, socket_path: Path, wait_seconds: float, largest_answer: int) -> None:
        self._kit = kit
        self._link = link
        self._socket_path = socket_path
        self._largest_answer = largest_answer
        self._wait_until = time.monotonic() + wait_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._session: Session | None = None
        self._job: _Job | None = None
        self._silent_since: dict[str, float] = {}
        self._renewed = 0.0
        self._over = threading.Event()
        self._scratch = ExitStack()
        self._thread = threading.Thread(target=self._run, name="segments", daemon=True)

    def __enter__(self) -> Segments:
        place_server(self._kit, self._largest_answer)
        logging.getLogger().addHandler(logging.NullHandler())  # else FLARE's warnings land in our progress
        self._jobs = self._scratch.enter_context(scratch_folder())
        write_job(self._jobs / "job")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._link.hang_up()
        self._thread.join(SECONDS_TO_START)
        self._close_session()
        if self._process is not None:
            stop(self._process)
        self._scratch.close()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._keep_server()
                self._look()
            except _TROUBLE as error:
                logger.debug("FLARE's server did not answer: %s", error)
                self._close_session()
            self._over.wait(SECONDS_BETWEEN_LOOKS)
        with suppress(*_TROUBLE):
            if self._job is not None and self._session is not None:
                self._session.abort_job(self._job.id)

    def _keep_server(self) -> None:
        """Start FLARE's server, and start it again when it has died."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            logger.warning("FLARE's server ended (%s); starting it again", self._process.returncode)
        self._close_session()
        self._job = None
        shutil.rmtree(self._kit.folder / "storage", ignore_errors=True)  # jobs of a server that is gone
        environment = {**os.environ, SERVER_SOCKET: str(self._socket_path)}
        with (self._kit.folder / "flare.txt").open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            self._process = subprocess.Popen(
                party_command(self._kit),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,  # what it logs and stores is for nobody else
            )

    def _look(self) -> None:
        session = self._connected_session()
        job = self._job
        now = time.monotonic()
        if job is None:
            self._begin(session, now)
        elif self._link.connected:
            job.connected = True
            self._renew_if_due(session, now)
        elif job.connected or now - job.submitted > SECONDS_TO_START:
            logger.info("FLARE's job %s is over", job.id[:8])
            self._end(session)

    def _connected_session(self) -> Session:
        if self._session is None:
            session = Session(OPERATOR, str(self._kit.folder / OPERATOR_FOLDER))
            session.api._print_hci = logger.debug  # its greetings would land in the middle of our progress
            try:
                session.try_connect(SECONDS_TO_LOG_IN)
            except _TROUBLE:
                session.close()
                raise
            self._session = session
        return self._session

    def _present(self, session: Session) -> set[str]:
        """The sites that FLARE has heard of lately."""
        now = time.time()
        clients = session.get_system_info().client_info
        return {client.name for client in clients if now - client.last_connect_time < FRESH_SECONDS}

    def _begin(self, session: Session, now: float) -> None:
        present = self._present(session)
        missing = [site for site in self._kit.sites if site not in present]
        if not present or (missing and now < self._wait_until):
            return
        job = session.submit_job(str(self._jobs / "job"))
        logger.info("FLARE's job %s with %s", job[:8], ", ".join(sorted(present)))
        self._job = _Job(job, now)

    def _renew_if_due(self, session: Session, now: float) -> None:
        """A site that FLARE hears of, but that is not in the job, gets a new job: that of the others goes on in it."""
        contacts = self._link.contacts
        present = self._present(session)
        for site, contact in contacts.items():
            if contact is Contact.AWAY and site in present:
                self._silent_since.setdefault(site, now)
            else:
                self._silent_since.pop(site, None)
        longest = max((now - since for since in self._silent_since.values()), default=0.0)
        if longest > SECONDS_BEFORE_RENEWAL and now - self._renewed > SECONDS_BETWEEN_RENEWALS:
            logger.info("making a new job for %s", ", ".join(self._silent_since))
            self._renewed = now
            self._silent_since.clear()
            self._link.hang_up()

    def _end(self, session: Session) -> None:
        """Be sure that the job runs nowhere any more."""
        job, self._job = self._job, None
        if job is not None:
            with suppress(*_TROUBLE):
                session.abort_job(job.id)

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(*_TROUBLE):
                session.close()
