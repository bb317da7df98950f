"""What is published: source archive and wheel, installed where there is no repository, and what describes them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from fedmezo.cli import _parser
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SHORT = ("federate.total_round_num=2", "train.local_update_steps=2", "data.subsample=0.05")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    source, out = tmp_path_factory.mktemp("source") / "fedmezo", tmp_path_factory.mktemp("dist")
    files = [*(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")), ROOT / "src" / "fedmezo"]
    source.mkdir()
    for path in files:
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, source / "src" / path.name, ignore=ignored)
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the installed wheel, in an environment that has our requirements but not our repository."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    (wheel,) = built.glob("*.whl")
    target = ["--prefix", str(place), "--no-deps", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *target, "--ignore-installed", str(wheel)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    requirements = place / "lib" / version / "site-packages" / "requirements.pth"
    requirements.write_text(sysconfig.get_paths()["purelib"] + "\n")  # read after the environment's own packages
    return place / "bin"


def run(command: Path | str, *words: str, folder: Path) -> str:
    """What a command of the installed wheel prints, away from the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    where = run(python, "-c", "import fedmezo; print(fedmezo.__file__)", folder=tmp_path)
    assert where.startswith(str(installed.parent))
    # `pip install --prefix` writes the interpreter of pip into scripts: the module is the same command
    run(python, "-m", "fedmezo", "run", "expname=first", *SHORT, folder=tmp_path)
    assert (tmp_path / "runs" / "first" / "adapter" / "adapter_model.safetensors").is_file()
    assert "every state has the recorded hash" in run(python, "-m", "fedmezo", "replay", "runs/first", folder=tmp_path)


def test_every_module_and_file_of_the_package_is_in_the_wheel(installed: Path) -> None:
    (package,) = installed.parent.glob("lib/python*/site-packages/fedmezo")
    skipped = re.compile(r"__pycache__|\.pyc$")

    def files(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not skipped.search(str(p))}

    assert files(package) == files(ROOT / "src" / "fedmezo")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "powershell"])
def test_completion_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fedmezo.cli import main

    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in ("run", "resume", "serve", "completion"):
        assert command in script


def test_completion_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedmezo.cli import main

    main(["completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    ask = 'source completion; COMP_WORDS=(fedmezo {0}); COMP_CWORD={1}; _shtab_fedmezo; echo "${{COMPREPLY[@]}}"'
    for words, expected in (("resu", "resume"), ("check mi", "mine.yaml")):
        script = ask.format(words, len(words.split()))
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


def test_the_commands_of_the_compose_file_are_commands() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    project = yaml.safe_load((ROOT / "docker" / "hospitals.yml").read_text())
    assert project["server"] in compose["services"]
    assert set(project["sites"]) <= set(compose["services"])
    for service in compose["services"].values():
        words = service["command"]
        if service.get("entrypoint"):
            words = words[0].split("fedmezo ")[1].split()
        _parser().parse_args(words)
