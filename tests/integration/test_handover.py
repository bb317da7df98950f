"""What becomes of a finished run: its card, a merged model, a repository on a hub that is a server on this machine."""

import base64
import json
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedmezo.cli import main
from fedmezo.handover import push as pushing

BASE = Path(__file__).parents[2] / "src" / "fedmezo" / "bundled" / "base"


SHORT = ("train.local_update_steps=2", "data.subsample=0.05", "eval.samples=0", "expname=short")


def run_bundled(folder: Path, *keys: str) -> Path:
    """A short run of the quickstart."""
    assert main(["run", f"outdir={folder}", *SHORT, *keys]) == 0
    return folder / "short"


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as an upload of small files takes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.forbidden = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Requests(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if self.server.forbidden:
            self._answer({"error": "not yours"}, 403)
        elif self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = "private" in (asked.get("visibility"), asked.get("private") and "private")
            self._answer({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/validate-yaml" in self.path:
            self._answer({"errors": [], "warnings": []})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[name][line["value"]["path"]] = content
            self._answer({"commitUrl": f"{self.server.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _answer(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(pushing, "HfApi", lambda: HfApi(endpoint=server.address, token="hf_of_a_test"))
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_bundled(tmp_path_factory.mktemp("runs"), "federate.total_round_num=2", "train.optimizer.lr=0.05")


def test_the_card_says_what_was_done_and_nothing_of_the_machine(run: Path) -> None:
    for folder in ("adapter", "adapter_best"):
        text = (run / folder / "README.md").read_text()
        head = yaml.safe_load(text.split("---\n")[1])
        assert head["library_name"] == "peft"
        settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
        assert settings["train"]["optimizer"]["lr"] == 0.05
        assert "validation loss" in text
        assert str(run.parent) not in text
        assert "outdir" not in settings


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return found[..., :1024]  # a run adds a padding token to the base's vocabulary


def test_a_merged_model_needs_no_adapter(run: Path, tmp_path: Path) -> None:
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(BASE)
    plain = logits(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT reads the old name
        tuned = PeftModel.from_pretrained(base, str(run / "adapter"))
    torch.testing.assert_close(logits(merged), logits(tuned), rtol=0, atol=1e-4)  # the sum is rounded once more
    assert not torch.allclose(logits(merged), plain, rtol=0, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == merged.get_input_embeddings().num_embeddings


def test_what_cannot_be_merged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for words, message in (
        ([str(run), "--out", str(tmp_path / "used")], "not empty"),
        ([str(BASE), "--out", str(tmp_path / "out")], "no adapter"),
        ([str(tmp_path / "nothing"), "--out", str(tmp_path / "out")], "no such folder"),
    ):
        assert main(["merge", *words]) == 2
        assert message in capsys.readouterr().err


def test_virtual_tokens_cannot_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = "llm.adapter.args=[{adapter_method: prompt, num_virtual_tokens: 2}]"
    run = run_bundled(tmp_path, "federate.total_round_num=1", method)
    capsys.readouterr()
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 2
    assert "virtual tokens" in capsys.readouterr().err


def test_a_pushed_adapter_arrives_with_its_card(run: Path, hub: Hub) -> None:
    assert main(["push", str(run), "me/tuned", "--base", "me/little-llama", "--private"]) == 0
    files = hub.repositories["me/tuned"]
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["README.md"] == (run / "adapter" / "README.md").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/little-llama"
    assert hub.private["me/tuned"]
    assert not any(str(run.parent).encode() in content for content in files.values())


def test_what_cannot_be_pushed(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/tuned"]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["push", str(run), "not a name", "--base", "gpt2"]) == 2
    assert "not a name" in capsys.readouterr().err
    assert not hub.repositories
    hub.forbidden = True
    assert main(["push", str(run), "me/tuned", "--base", "gpt2"]) == 1
    assert "refused" in capsys.readouterr().err


def test_a_hub_that_does_not_answer(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pushing, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_of_a_test"))
    assert main(["push", str(run), "me/tuned", "--base", "gpt2"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
