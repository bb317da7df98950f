"""A run that is looked at while it works."""

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from fedmezo.cli import main
from fedmezo.results.metrics import MetricsFile, measured
from fedmezo.runs.watch import sparks, watch

SHORT = ("train.local_update_steps=1", "data.subsample=0.05", "eval.samples=0", "federate.total_round_num=3")


def test_a_run_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", f"outdir={tmp_path}", "expname=whole", *SHORT]) == 0
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    growing.mkdir()
    (growing / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    looked = threading.Event()
    pages = []

    def grow(_seconds: float) -> None:
        """Between two looks, the run goes on; the last time it ends."""
        pages.append((tmp_path / "page.html").read_text() if (tmp_path / "page.html").exists() else "")
        if not looked.is_set():
            (growing / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2]))
            looked.set()
        else:
            (growing / "metrics.jsonl").write_text("".join(lines))
            (growing / "journal.jsonl").write_bytes((whole / "journal.jsonl").read_bytes())

    monkeypatch.setattr("fedmezo.runs.watch.time.sleep", grow)
    shown = io.StringIO()
    assert watch(growing, tmp_path / "page.html", console=Console(file=shown, force_terminal=True, width=100)) == 0
    assert pages[0] == ""  # nothing was measured yet
    assert 'http-equiv="refresh"' in pages[1]
    final = (tmp_path / "page.html").read_text()
    assert 'http-equiv="refresh"' not in final
    assert "validation loss" in final
    assert "round 0 of 3" in shown.getvalue()
    assert "growing: done" in shown.getvalue()


def test_a_terminal_of_few_characters_gets_a_plain_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "federate: {client_num: 1}\ndata: {type: bundled}\nmodel: {type: bundled}\nllm: {adapter: {use: true}}\n"
    )
    sink = MetricsFile(tmp_path)
    sink.write([measured("train_loss", 3.0 - at, round_index=at) for at in range(3)])
    sink.close()
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii", write_through=True) as file:
        assert watch(tmp_path, once=True, console=Console(file=file, width=100)) == 0
        assert b"^=_" in raw.getvalue() or b"^-_" in raw.getvalue()


def test_sparks() -> None:
    assert sparks([0.0, 1.0, 2.0, 3.0], "abcd") == "abcd"
    assert sparks([1.0, 1.0], "abcd") == "aa"
    assert sparks([float("nan"), 1.0, 2.0, float("inf")], "ab") == "!ab!"


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "no run's folder" in capsys.readouterr().err
