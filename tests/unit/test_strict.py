"""What others wrote is read against its format: the data, or one message that names key, value and what is allowed."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from fedmezo.config.describe import allowed
from fedmezo.config.strict import Client, Format, Hash, Name, Since, read_strictly
from fedmezo.runs.format import ContributionLine, EndLine, Header, LogDocument, RefusalLine, RemarkLine, RoundLine


class Part(Format):
    client: Client
    share: float = Field(ge=0, le=1)
    mark: Annotated[str | None, Since(2)] = None


class Line(Format):
    name: Name
    hash: Hash
    kind: Annotated[str, Since(2)] = "old"
    parts: Annotated[tuple[Part, ...], Field(strict=False)] = ()


GOOD: dict[str, Any] = {"name": "a", "hash": "0" * 64, "parts": [{"client": 1, "share": 0.5}]}


def test_older_versions_are_read_with_what_they_meant() -> None:
    assert read_strictly(Line, GOOD, 1).kind == "old"
    assert read_strictly(Line, GOOD | {"kind": "new"}, 2).kind == "new"
    newer = GOOD | {"kind": "new", "parts": [{"client": 1, "share": 0.5, "mark": "x"}]}
    assert read_strictly(Line, newer, 2).parts[0].mark == "x"


@pytest.mark.parametrize(
    ("data", "version", "message"),
    [
        (GOOD | {"kind": "new"}, 1, "kind: is no key of format 1"),
        (GOOD, 2, "kind: missing; needs text"),
        (GOOD | {"parts": [{"client": 1, "share": 0.5, "mark": "x"}]}, 1, "parts.0: mark: is no key of format 1"),
        (GOOD | {"size": 1}, 1, "size: unknown key"),
        (GOOD | {"name": "a\x1b[31m"}, 1, "name: holds characters that cannot be shown"),
        (GOOD | {"name": "\ud800"}, 1, "name: got '\\ud800'; needs text of 1 to 4096 characters that can be shown"),
        (GOOD | {"name": "a" * 5000}, 1, "name: got 'aaaaa"),
        (GOOD | {"hash": 5}, 1, "hash: got 5; needs 64 hexadecimal digits, in lower case"),
        (GOOD | {"hash": "0" * 64 + "\n"}, 1, "hash: got '0000"),
        (GOOD | {"parts": {}}, 1, "parts: got {}; needs keys below it: client, share, mark"),
        (GOOD | {"parts": [{"client": -1, "share": 0.5}]}, 1, "parts.0.client: got -1; needs the number of a client"),
        (GOOD | {"parts": [{"client": True, "share": 0.5}]}, 1, "parts.0.client: got True; needs"),
        (GOOD | {"parts": [{"client": 1, "share": float("nan")}]}, 1, "parts.0.share: got nan; needs a number from"),
        (GOOD | {"parts": [{"share": 0.5}]}, 1, "parts.0.client: missing; needs the number of a client"),
        ([], 1, "got []; needs keys name, hash, kind, parts"),
        (GOOD | {"x\x1b" * 99: 1}, 1, "x\\x1bx"),
    ],
)
def test_what_is_wrong_is_named(data: object, version: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is what is tested
        read_strictly(Line, data, version)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [Header, RoundLine, ContributionLine, RefusalLine, RemarkLine, EndLine, LogDocument])
def test_every_field_says_what_it_may_hold(kind: type[Format]) -> None:
    assert all(allowed(field) for field in kind.model_fields.values())


def test_what_is_written_is_checked_too() -> None:
    with pytest.raises(ValueError, match="hash"):
        Line(name="a", hash="00")
