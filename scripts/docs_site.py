"""What `mkdocs build` does with our pages besides showing them: the README is the home page.

The README and some pages link to files of the repository that are no pages; on the site these are plain file names.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)#]+)([^)]*)\)")


def home_page(readme: str) -> str:
    """The README as a page of docs/: its links to pages are relative to that folder."""
    return LINK.sub(lambda link: f"[{link[1]}]({link[2].removeprefix('docs/')}{link[3]})", readme)


def without_repository_links(markdown: str, pages: set[str]) -> str:
    """Links to what is neither a page nor an address become their text."""

    def plain(link: re.Match[str]) -> str:
        is_kept = link[2] in pages or "://" in link[2]
        return link[0] if is_kept else link[1]

    return LINK.sub(plain, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs: add the home page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=home_page(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by mkdocs for each page before it is rendered."""
    return without_repository_links(markdown, {file.src_uri for file in files})
