"""The script that puts reproduced tables into a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.update_results import update


def make(folder: Path, loss: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "table6.md").write_text(
        f"# Number of clients\n\nAbout.\n\n    fedmezo reproduce table6\n\n| N | {loss} |\n"
    )
    (folder / "table6.png").write_bytes(b"picture")
    return folder


def test_a_page_is_made_and_kept_up_to_date_around_what_people_write(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    update(make(tmp_path / "small", "1.5"), page)
    made = page.read_text()
    assert made.startswith(
        "# Results\n\n## Number of clients\n\n<!-- table6 -->\n\nAbout.\n\n    fedmezo reproduce table6"
    )
    assert (page.parent / "results" / "table6.png").read_bytes() == b"picture"
    page.write_text(made.replace("# Results\n", "# Results\n\nMore clients help.\n"))
    update(make(tmp_path / "small", "1.25"), page)
    again = page.read_text()
    assert "More clients help." in again
    assert "| N | 1.25 |" in again
    assert "1.5" not in again
    assert again.count("<!-- table6 -->") == again.count("<!-- end -->") == 1


def test_items_that_were_not_made_there_are_left_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "results.md"
    page.write_text("<!-- mu -->\nof another scale\n<!-- end -->\n<!-- table6 -->\n<!-- end -->\n")
    update(make(tmp_path / "small", "1.5"), page)
    assert page.read_text().startswith("<!-- mu -->\nof another scale\n<!-- end -->\n<!-- table6 -->\n\nAbout.")
    assert "left as it is: mu" in capsys.readouterr().out
