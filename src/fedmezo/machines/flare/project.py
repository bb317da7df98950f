"""Start-up kits: certificates, keys and policies for the server and every site, from a short file of ours.

    server: fl.example.org      # how the sites reach the server: a host name or an address
    port: 8002                  # the one port that the server must be reachable at
    sites: [north, south, west] # a site's client number is its place in this list, from 0

Each kit pins what its owner lets the others do. FLARE verifies both ends' certificates (mutual TLS) and every job's
signature; a job may name no class but our two relays, bring no code, and use no shell command; logs are not uploaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from fedmezo.atomic import read_whole
from fedmezo.config.document import read
from fedmezo.config.schema import Allowed, Section
from fedmezo.config.strict import Format, read_strictly
from fedmezo.errors import ConfigError

SERVER = "server"
KIT_FILE = "fedmezo.json"
"""In each kit: what our own commands need to know of it."""

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"), Allowed("letters, digits, - and _")]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$"), Allowed("a host name or an address")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Project(Section):
    """Who takes part, and where the server is."""

    server: Host
    """How the sites reach the server: a host name or an address."""
    port: Port = 8002
    """The port that the server must be reachable at."""
    sites: tuple[SiteName, ...] = Field(min_length=1, strict=False)
    """The sites; a site's client number is its place here, from 0."""


class KitFields(Format):
    """What stands in a kit's file; see `Kit`."""

    party: SiteName
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1, strict=False), Allowed("a list of names of sites")]
    host: Host
    port: Port
    plaintext: bool

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if len(set(self.sites)) < len(self.sites) or self.party not in (SERVER, *self.sites):
            raise ValueError("a name stands twice among the sites, or the kit's own is none of them")
        return self


@dataclass(frozen=True, slots=True)
class Kit:
    """A start-up kit as our commands see it.

    Args:
        folder: where it lies.
        party: `server` or the name of a site.
        sites: all sites, in the order of their client numbers.
        host: of the server.
        port: of the server.
        plaintext: whether it was made to speak without encryption.
    """

    folder: Path
    party: str
    sites: tuple[str, ...]
    host: str
    port: int
    plaintext: bool

    @property
    def client(self) -> int:
        """The site's client number."""
        return self.sites.index(self.party)

    def write(self) -> None:
        """Keep in the folder what `read_kit` reads."""
        fields = {key: value for key, value in asdict(self).items() if key != "folder"}
        (self.folder / KIT_FILE).write_text(json.dumps(fields) + "\n")


def read_kit(folder: Path, *, server: bool) -> Kit:
    """Read a kit for the server, or for a site.

    Raises:
        ConfigError: it is no kit of ours, or one of the other kind.
    """
    try:
        fields = read_strictly(KitFields, json.loads(read_whole(folder / KIT_FILE)))
        kit = Kit(folder.resolve(), **dict(fields))
    except (OSError, ValueError, RecursionError) as error:
        party = "the server's" if server else "the site's"
        raise ConfigError(
            f"{folder}: is no start-up kit {_kit_fault(folder, error)}; give {party} folder among those that "
            "`fedmezo provision PROJECT.yml` made"
        ) from error
    if (kit.party == SERVER) != server:
        wanted = "fedmezo serve" if kit.party == SERVER else "fedmezo site"
        raise ConfigError(f"{folder}: is the kit of {kit.party}; it is for `{wanted}`")
    return kit


def _kit_fault(folder: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"(it holds no {KIT_FILE})" if folder.is_dir() else "(there is no such folder)"
    if isinstance(error, OSError):
        return f"(its {KIT_FILE} cannot be read: {error.strerror})"
    return f"(its {KIT_FILE} is damaged): {error}"


def read_project(path: Path) -> Project:
    """Read a project file.

    Raises:
        ConfigError: it cannot be read, or a key is wrong.
    """
    document = read(path)
    if document.problems:
        raise ConfigError("\n".join(map(str, document.problems)))
    try:
        project = Project.model_validate(document.data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(
            f"{path}: {'; '.join(faults)}. A project file has server: HOST, port: NUMBER and sites: [NAME, ...]"
        ) from error
    taken = {SERVER, "admin", "operator"}
    if len(set(project.sites)) < len(project.sites) or taken.intersection(project.sites):
        raise ConfigError(f"{path}: sites: every name may stand there once, and none may be {', '.join(sorted(taken))}")
    return project
