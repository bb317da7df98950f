"""The pages of reports in a real browser, without a network: curves are drawn, read, hidden and changed."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedmezo.results.curves import curves_of_runs
from fedmezo.results.metrics import Metric, MetricsFile, measured
from fedmezo.results.report import compare, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def losses(scale: float) -> list[Metric]:
    """Six rounds of a run."""
    found = []
    for at in range(6):
        found.append(measured("val_loss", scale / (at + 1), round_index=at))
        if at:
            found += [measured(name, 100.0 * at, round_index=at) for name in ("bytes_up", "bytes_down")]
            found.append(measured("seconds", 2.0, round_index=at))
    return found


def run_folder(folder: Path, scale: float, rate: float) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"train: {{optimizer: {{lr: {rate}}}}}\n")
    sink = MetricsFile(folder)
    sink.write(losses(scale))
    sink.close()
    return folder


def data_of(page: str) -> Any:
    found = re.search(r'id="curves-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_axes_add_up_what_was_measured() -> None:
    data = data_of(curves_of_runs([losses(2.0)], ["one"]))
    (curve,) = data["curves"]
    assert curve["y"] == [2.0 / (at + 1) for at in range(6)]
    assert curve["x"] == {
        "rounds": [0, 1, 2, 3, 4, 5],
        "bytes sent": [0, 200, 600, 1200, 2000, 3000],
        "forward passes": [0] * 6,
        "seconds": [0, 2, 4, 6, 8, 10],
    }
    assert data["axes"] == ["rounds", "bytes sent", "seconds"]


def test_a_label_cannot_end_the_script_and_nan_is_a_gap() -> None:
    metrics = [measured("val_loss", math.nan, round_index=0), measured("val_loss", 1.0, round_index=1)]
    page = curves_of_runs([metrics], ["</script><b>"])
    assert page.count("</script>") == 2
    (curve,) = data_of(page)["curves"]
    assert (curve["label"], curve["y"]) == ("</script><b>", [None, 1.0])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [run_folder(folder / name, scale, rate) for name, scale, rate in (("a", 2.0, 0.1), ("b", 3.0, 0.2))]
    compare(runs, folder / "out")
    write_report(runs[0])
    return folder


def in_browser(page: Path, script: str, tmp_path: Path) -> str:
    """The page as the browser has it after a script of ours."""
    assert BROWSER is not None
    asked = tmp_path / "asked.html"
    asked.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", asked.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@in_a_browser
def test_two_runs_are_drawn_and_one_can_be_hidden(comparison: Path, tmp_path: Path) -> None:
    page = comparison / "out" / "comparison.html"
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", "")  # nothing is fetched
    shown = in_browser(page, "", tmp_path)
    assert sorted(re.findall(r'data-label="([^"]+)"', shown)) == ["lr=0.1", "lr=0.2"]
    hidden = in_browser(page, "document.querySelector('#curves .legend button').click()", tmp_path)
    assert re.findall(r'data-label="([^"]+)"', hidden) == ["lr=0.2"]
    assert 'aria-pressed="false"' in hidden


@in_a_browser
def test_axes_and_values(comparison: Path, tmp_path: Path) -> None:
    script = """
    const axis = document.querySelector('#curves select[name=axis]');
    axis.value = 'bytes sent';
    axis.dispatchEvent(new Event('change'));
    document.querySelector('#curves input[name=log]').click();
    const svg = document.querySelector('#curves svg'), box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 50}));
    """
    shown = in_browser(comparison / "out" / "comparison.html", script, tmp_path)
    read = re.search(r"<output>(.*?)</output>", shown)
    assert read is not None
    assert re.sub(r"<[^>]*>", " ", read[1]).split() == [
        "bytes",
        "sent",
        "3",
        "kB",
        "lr=0.1",
        "0.33333",
        "lr=0.2",
        "0.5",
    ]


@in_a_browser
def test_the_page_of_one_run(comparison: Path, tmp_path: Path) -> None:
    shown = in_browser(comparison / "a" / "report.html", "", tmp_path)
    assert re.findall(r'data-label="([^"]+)"', shown) == ["validation loss"]
