"""Puts the tables of `fedmezo reproduce` into a page.

    python -m scripts.update_results reproduction/small docs/results.md

What stands in the page between `<!-- ITEM -->` and `<!-- end -->` is replaced by the item's command, tables and
picture; the pictures are copied beside the page, into `results/`. Everything else is left as it is: findings, and items
that were not made there. A page that is not there yet is made with a section for each item that has been reproduced.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from fedmezo.campaign.catalogue import read_scale

BLOCK = re.compile(r"<!-- (?P<item>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
PICTURES = "results"


def block(reproduction: Path, page: Path, item: str, present: str) -> str:
    """What belongs between the marks of an item; what is there at present, where it was not made."""
    parts = [
        path.read_text(encoding="utf-8").partition("\n\n")[2].strip()
        for path in (reproduction / f"{item}.md", reproduction / f"{item}-downstream.md")
        if path.exists()
    ]
    if not parts:
        print(f"left as it is: {item}, of which there is no {reproduction / item}.md")
        return present
    picture = reproduction / f"{item}.png"
    if picture.exists():
        (page.parent / PICTURES).mkdir(exist_ok=True)
        shutil.copy(picture, page.parent / PICTURES / picture.name)
        parts.append(f"![{item}]({PICTURES}/{picture.name})")
    return "\n\n".join([f"<!-- {item} -->", *parts, "<!-- end -->"])


def skeleton(reproduction: Path) -> str:
    """A page with a section for each item, in the order of the catalogue."""
    items = [item for item in read_scale("small").items.values() if (reproduction / f"{item.name}.md").exists()]
    sections = [f"## {item.title}\n\n<!-- {item.name} -->\n<!-- end -->" for item in items]
    return "\n\n".join(["# Results", *sections]) + "\n"


def update(reproduction: Path, page: Path) -> None:
    """Rewrite the page."""
    text = page.read_text(encoding="utf-8") if page.exists() else skeleton(reproduction)
    page.write_text(BLOCK.sub(lambda match: block(reproduction, page, match["item"], match[0]), text), encoding="utf-8")


def main() -> None:
    """Rewrite the page that the command line names."""
    reproduction, page = map(Path, sys.argv[1:])
    update(reproduction, page)


if __name__ == "__main__":
    main()
