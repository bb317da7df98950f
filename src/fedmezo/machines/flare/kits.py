"""Make FLARE's start-up kits, and in each of them the policy of its owner.

FLARE's defaults let a project's lead ship code, run shell commands and read logs. Ours let nobody: a party runs what
is installed there, and of that only the one relay.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Participant
from nvflare.lighter.entity import Project as FlareProject
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from fedmezo.errors import ConfigError
from fedmezo.machines.flare.project import SERVER, Kit, Project

AUTHORITY = "authority"
OPERATOR = "operator@fedmezo.org"
OPERATOR_FOLDER = "operator"
ORGANISATION = "fedmezo"
SCHEME = "grpc"
LARGEST_FRAME = 1 << 24
"""Bytes on the wire between server and site; FLARE cuts messages into pieces of 1 MiB."""
ROOM_FOR_NAMES = 1 << 20
"""Bytes of a message to the server that are none of an answer, and messages that FLARE sends for itself."""
SERVER_RELAY = "fedmezo.machines.flare.server_relay.ServerRelay"
SITE_RELAY = "fedmezo.machines.flare.site_relay.SiteRelay"

_OPERATOR_MAY = {
    "submit_job": "any",
    "manage_job": "any",
    "view": "any",
    "operate": "any",
    "clone_job": "none",
    "download_job": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
# FLARE's own ways to start, which leave processes behind when their parent is killed, and examples
_UNUSED = (
    "*.sh",
    "*.yaml",
    "*.ipynb",
    "*.sample",
    "readme.txt",
    "Dockerfile",
)


def provision(project: Project, folder: Path, *, plaintext: bool = False) -> list[Kit]:
    """Make the kits of the server (which holds the operator's) and of every site, in a new folder.

    Beside them lies `authority` with the key that signed them all; who holds it can make kits. Keep it offline.

    Args:
        project: who takes part.
        folder: must not exist.
        plaintext: without encryption, for looking at the traffic on one machine.

    Raises:
        ConfigError: the folder is there already, or FLARE cannot make the kits.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; name a folder that does not exist")
    work = folder / AUTHORITY
    work.mkdir(parents=True, mode=0o700)
    made = _build(project, work, "clear" if plaintext else "mtls")
    kits = []
    for party in (SERVER, *project.sites):
        kit = Kit(folder / party, party, project.sites, project.server, project.port, plaintext)
        shutil.move(made / party, kit.folder)
        if party == SERVER:
            shutil.move(made / OPERATOR, kit.folder / OPERATOR_FOLDER)
        _write_policy(kit)
        _tidy(kit.folder)
        kits.append(kit)
    shutil.rmtree(made)
    _tidy(work)
    return kits


def _build(project: Project, work: Path, security: str) -> Path:
    """Let FLARE make its kits; returns the folder they lie in."""
    participants = [
        Participant(
            "server",
            SERVER,
            ORGANISATION,
            {"fed_learn_port": project.port, "admin_port": project.port, "default_host": project.server},
        ),
        *(Participant("client", site, ORGANISATION, {}) for site in project.sites),
        Participant("admin", OPERATOR, ORGANISATION, {"role": "lead"}),
    ]
    props = {"api_version": 3, "connection_security": security}
    flare_project = FlareProject("kits", "made by fedmezo provision", participants, props)
    builders = [
        WorkspaceBuilder(),
        StaticFileBuilder(config_folder="config", scheme=SCHEME, require_signed_jobs=True),
        CertBuilder(),
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        context = Provisioner(str(work), builders).provision(flare_project)
    if context.get(CtxKey.BUILD_ERROR):
        raise ConfigError(f"the start-up kits cannot be made: {said.getvalue().strip()}")
    return Path(context[CtxKey.CURRENT_PROD_DIR])


def _write_policy(kit: Kit) -> None:
    """Say in the kit who may do what there."""
    kit.write()
    relay = SERVER_RELAY if kit.party == SERVER else SITE_RELAY
    roles = {
        "lead": _OPERATOR_MAY,
        **{role: dict.fromkeys(_OPERATOR_MAY, "none") for role in ("project_admin", "org_admin", "member")},
    }
    _write_json(kit.folder / "local" / "authorization.json", {"format_version": "1.0", "permissions": roles})
    resources = _server_resources(kit.folder) if kit.party == SERVER else _site_resources()
    policy = {"class_list_enforcement_mode": "enforce", "class_allow_list": [relay], "allow_log_streaming": False}
    _write_json(kit.folder / "local" / "resources.json", {"format_version": 2, **policy, **resources})


def place_server(kit: Kit, largest_answer: int) -> None:
    """Tell the server's kit where it lies, as FLARE wants absolute paths for what it stores, and what sites may send.

    Args:
        kit: the server's.
        largest_answer: bytes; twice as many are let through, so that whoever sends too many is told from the others.
    """
    path = kit.folder / "local" / "resources.json"
    _write_json(path, {**json.loads(path.read_text()), **_server_resources(kit.folder)})
    frames = [[f"grpc.max_{way}_message_length", LARGEST_FRAME] for way in ("send", "receive")]
    limits = {"grpc": {"options": frames}, "streaming_max_blob_size": 2 * largest_answer + ROOM_FOR_NAMES}
    _write_json(kit.folder / "local" / "comm_config.json", limits)


def _server_resources(folder: Path) -> dict[str, Any]:
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    place = {"root_dir": str(folder / "storage" / "snapshots"), "uri_root": "/"}
    persistor = "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor"
    scheduler = "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler"
    jobs = {"uri_root": str(folder / "storage" / "jobs"), "job_store_id": "job_store"}
    return {
        "servers": [
            {"admin_storage": "transfer", "max_num_clients": 1000, "heart_beat_timeout": 60, "admin_timeout": 10.0}
        ],
        "snapshot_persistor": {
            "path": persistor,
            "args": {"uri_root": "/", "storage": {"path": storage, "args": place}},
        },
        "components": [
            _component("job_scheduler", scheduler, max_jobs=2),
            _component("job_manager", "nvflare.apis.impl.job_def_manager.SimpleJobDefManager", **jobs),
            _component("job_store", storage),
            _component(
                "process_launcher", "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher"
            ),
        ],
    }


def _site_resources() -> dict[str, Any]:
    managers = "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager"
    consumers = "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer"
    launchers = "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher"
    return {
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            _component("resource_manager", managers, num_of_gpus=0, mem_per_gpu_in_GiB=0, expiration_period=300),
            _component("resource_consumer", consumers),
            _component("process_launcher", launchers),
        ],
    }


def _component(name: str, path: str, **arguments: Any) -> dict[str, Any]:
    return {"id": name, "path": path, "args": arguments}


def _tidy(folder: Path) -> None:
    """Leave what is needed, for the owner's eyes only."""
    for pattern in _UNUSED:
        for path in folder.rglob(pattern):
            path.unlink()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
