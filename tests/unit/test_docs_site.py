"""The README as a page of the site."""

from scripts.docs_site import home_page, without_repository_links


def test_links_to_pages_and_pictures_stay_links() -> None:
    text = "![picture](docs/a.png) and [journal](docs/journal.md#format), [paper](https://arxiv.org/abs/1)"
    page = home_page(text)
    assert page == "![picture](a.png) and [journal](journal.md#format), [paper](https://arxiv.org/abs/1)"
    assert without_repository_links(page, {"a.png", "journal.md"}) == page


def test_links_into_the_repository_become_their_text() -> None:
    text = "see [extending](../src/fedmezo/zo/noise.py) and [configs/](configs/)"
    assert without_repository_links(text, {"journal.md"}) == "see extending and configs/"
