"""Project files, kits, and the commands that need them, without starting anything."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fedmezo.cli import main
from fedmezo.config import load_config
from fedmezo.errors import ConfigError
from fedmezo.machines.flare.project import KIT_FILE, Kit, read_kit, read_project
from fedmezo.machines.settings import WorkerOptions, shared_settings, site_config

PROJECT = "server: fl.example.org\nport: 8443\nsites: [north, south]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "hospitals.yml"
    path.write_text(text)
    return path


def test_a_project_file_is_read(tmp_path: Path) -> None:
    project = read_project(write(tmp_path, PROJECT))
    assert (project.server, project.port, project.sites) == ("fl.example.org", 8443, ("north", "south"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: a\n", "sites"),
        ("server: a\nsites: []\n", "sites"),
        ("server: a\nsites: [x, x]\n", "once"),
        ("server: a\nsites: [server]\n", "none may be"),
        ("server: a b\nsites: [x]\n", "server"),
        ("server: a\nsites: [../x]\n", "sites"),
        ("server: a\nsites: [x]\nport: 99999\n", "port"),
        ("server: a\nsites: [x]\nhost: b\n", "host"),
        ("- a\n", "key: value"),
        ("", "server: Field required"),
        ("sites: [" + "x, " * 10_000 + "]", "more than 5,000 values"),
        ("server: [\n", "YAML"),
    ],
)
def test_a_wrong_project_file_is_one_clear_message(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_project(write(tmp_path, text))
    assert words in str(caught.value)
    assert "hospitals.yml" in str(caught.value)


def test_the_kits_of_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvflare")
    assert main(["provision", str(write(tmp_path, PROJECT))]) == 0
    folder = tmp_path / "hospitals"
    assert "client 1" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"authority", "server", "north", "south"}
    south = read_kit(folder / "south", server=False)
    assert (south.client, south.sites, south.plaintext) == (1, ("north", "south"), False)
    assert main(["provision", str(tmp_path / "hospitals.yml")]) == 2  # nothing is overwritten
    assert "is there already" in capsys.readouterr().err


def test_only_who_asks_for_it_gets_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvflare")
    path = write(tmp_path, PROJECT)
    for words, security in (([], "mtls"), (["--plaintext"], "clear")):
        out = tmp_path / security
        assert main(["provision", str(path), "--out", str(out), *words]) == 0
        assert ("plain text" in capsys.readouterr().out) == bool(words)
        for party, file in (("server", "fed_server.json"), ("north", "fed_client.json")):
            text = (out / party / "startup" / file).read_text()
            assert f'"connection_security": "{security}"' in text
        assert read_kit(out / "north", server=False).plaintext == bool(words)


def test_a_kit_is_for_its_own_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for party in ("server", "north"):
        (tmp_path / party).mkdir()
        Kit(tmp_path / party, party, ("north",), "localhost", 1, plaintext=False).write()
    assert main(["serve", str(tmp_path / "north"), "x.yaml"]) == 2
    assert "`fedmezo site`" in capsys.readouterr().err
    assert main(["site", str(tmp_path / "server"), "--data", "x.jsonl", "--model", "m"]) == 2
    assert "`fedmezo serve`" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"party": "north"}', pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_kit_is_said_so(tmp_path: Path, content: str) -> None:
    (tmp_path / KIT_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"is no start-up kit \(its fedmezo.json is damaged\)"):
        read_kit(tmp_path, server=False)


@pytest.mark.parametrize(
    ("folder", "fault"),
    [("", "it holds no fedmezo.json"), ("nowhere", "there is no such folder")],
    ids=["empty", "none"],
)
def test_what_is_no_kit_is_said_so(tmp_path: Path, folder: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_kit(tmp_path / folder, server=True)
    assert str(caught.value) == (
        f"{tmp_path / folder}: is no start-up kit ({fault}); give the server's folder among those that "
        "`fedmezo provision PROJECT.yml` made"
    )


def test_a_distributed_configuration_says_which_commands_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(_config(tmp_path)), "federate.mode=distributed"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("fedmezo serve", "fedmezo site", "fedmezo provision", "--engine flare"))


def _config(folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(
        "federate: {client_num: 3}\ndata: {type: mine.jsonl, root: /secret/place}\nllm: {adapter: {use: True}}\n"
        "model: {type: /secret/model}\nwandb: {name_user: secret}\n"
    )
    return path


def test_sites_are_told_what_their_work_needs_and_nothing_else(tmp_path: Path) -> None:
    settings = shared_settings(load_config(_config(tmp_path)).config, "float32")
    ours = {"seed", "federate", "fedopt", "fedprox", "data", "llm", "dataloader", "train", "grad", "trainer", "model"}
    assert set(settings) == ours
    assert set(settings["data"]) == {"format", "template"}
    assert settings["federate"] == {"protocol": "scalars", "method": "FedAvg", "total_round_num": 50}
    assert settings["model"] == {"dtype": "float32", "quantization": None, "weights": "float32"}
    assert "secret" not in str(settings)


def test_a_site_puts_in_what_is_its_own(tmp_path: Path) -> None:
    settings = shared_settings(load_config(_config(tmp_path)).config, "bfloat16")
    config = site_config(settings, WorkerOptions("", "own.jsonl", "my/model", use_gpu=True, device=1))
    assert (config.model.type, config.model.dtype) == ("my/model", "bfloat16")
    assert (config.use_gpu, config.device) == (True, 1)
    assert not config.model.trust_remote_code
    assert site_config(settings, WorkerOptions("", "own.jsonl", "my/model", own_code=True)).model.trust_remote_code


@pytest.mark.parametrize(
    "harm",
    [
        {"outdir": "/etc"},
        {"data": {"type": "bundled"}},
        {"train": {"local_update_steps": -1}},
        {"train": 3},
        {"model": {"dtype": "float32", "quantization": None, "trust_remote_code": True}},
        {"federate": {"protocol": "scalars", "client_num": "x", "save_to": 3}},
        {"train": {"optimizer": {"weight_decay": 0.1}}},
    ],
)
def test_settings_that_are_not_sound_are_refused(tmp_path: Path, harm: dict[str, Any]) -> None:
    settings = {**shared_settings(load_config(_config(tmp_path)).config, "float32"), **harm}
    with pytest.raises(ConfigError, match="the server"):
        site_config(settings, WorkerOptions("", "own.jsonl", "my/model"))


def test_a_server_does_not_share_a_port_and_a_site_says_that_nothing_answers() -> None:
    pytest.importorskip("nvflare")
    from fedmezo.machines.flare.doorstep import connection_fault
    from fedmezo.machines.flare.serve import require_port

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as FLARE's own listeners do
        other.bind(("", 0))
        port: int = other.getsockname()[1]
        other.listen()
        assert connection_fault("localhost", port) is None
        with pytest.raises(ConfigError, match=f"cannot listen at port {port} of this machine: Address already in use"):
            require_port(port, seconds=0.0)
    require_port(port)
    assert connection_fault("localhost", port) == "Connection refused"


def test_a_site_says_at_once_that_its_file_holds_no_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvflare")
    assert main(["provision", str(write(tmp_path, PROJECT))]) == 0
    data = tmp_path / "other.jsonl"
    data.write_text('{"question": "x", "answer": "y"}\n')
    assert main(["site", str(tmp_path / "hospitals" / "north"), "--data", str(data), "--model", "bundled"]) == 2
    assert f"{data}, line 1: field 'instruction' is missing" in capsys.readouterr().err


def test_the_command_that_goes_on_names_no_kit_that_is_gone_by_then(tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    from fedmezo.machines.flare.serve import Elsewhere

    kit = Kit(tmp_path / "server", "server", ("a",), "localhost", 8002, plaintext=False)
    on_sites = Elsewhere(kit, ExitStack(), 1.0)
    here = Elsewhere(kit, ExitStack(), 1.0, divided=lambda config, tuned, console: pytest.fail("divided"))
    assert on_sites.resume_command(Path("runs/a")) == f"fedmezo serve {tmp_path}/server runs/a"
    assert here.resume_command(Path("runs/a")) == "fedmezo resume runs/a"
