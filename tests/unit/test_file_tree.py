"""The page of files is current and complete."""

from pathlib import Path

from scripts.file_tree import FOLDERS, PACKAGE, page

PAGE = Path(__file__).parents[2] / "docs" / "tree.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "python -m scripts.file_tree > docs/tree.md"


def test_no_folder_is_forgotten_and_every_file_says_what_it_is_for() -> None:
    folders = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert folders == {folder or "." for folder in FOLDERS}
    assert "|  |" not in page()
