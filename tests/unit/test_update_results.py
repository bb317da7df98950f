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


def test_a_missing_item_says_how_to_make_it(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("<!-- mu -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="fedmezo reproduce mu --out"):
        update(tmp_path, page)
