"""What is on the wire, read off it: a run in plain text through proxies that keep every byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fedmezo.zo.arithmetic import encode_scalars
from tests.machines import Machines

pytest.importorskip("nvflare")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    cluster = Machines(tmp_path_factory.mktemp("wire"), plaintext=True, through_proxies=True)
    for proxy in cluster.proxies.values():
        proxy.keep = True
    changes: dict[str, Any] = {"federate.total_round_num": 3, "federate.min_clients": 3, "eval.freq": 0}
    config = cluster.config(**changes)
    cluster.run("partition", config, "--out", cluster.root / "shares")
    for kit in cluster.sites:
        cluster.start_site(kit)
    try:
        cluster.run("serve", cluster.server.folder, config)
        yield cluster
    finally:
        cluster.close()


def test_the_messages_can_be_seen(machines: Machines) -> None:
    """So that not seeing something else means something."""
    for proxy in machines.proxies.values():
        assert all(kind in proxy.seen for kind in (b"FMZS\x02", b"FMZT\x02", b"FMZY\x02", b"FMZR\x02"))


def test_no_example_and_no_path_of_a_site_leaves_it(machines: Machines) -> None:
    for kit in machines.sites:
        file = machines.root / "shares" / f"client_{kit.client}.jsonl"
        texts = [json.loads(line) for line in file.read_text().splitlines()]
        seen = machines.proxies[kit.party].seen
        assert not [t for t in texts if len(t["output"]) > 8 and t["output"].encode() in seen]
        assert str(file.parent).encode() not in seen
        assert str(machines.base).encode() not in seen


def test_a_report_is_on_the_wire_as_the_journal_has_it(machines: Machines) -> None:
    for line in machines.journal():
        for part in line["clients"]:
            scalars = base64.b64decode(part["scalars"])
            assert len(scalars) == len(encode_scalars([0.0] * 3))
            assert scalars in machines.proxies[machines.sites[part["client"]].party].seen


def test_the_commands_say_that_it_is_plain_text(machines: Machines) -> None:
    assert "plain text" in machines.output(machines.sites[0].party)
