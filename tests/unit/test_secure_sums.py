"""Sums that show no part of themselves: what the server learns, who may leave when, and what clients refuse to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")
pytest.importorskip("Crypto")

from fedmezo.errors import RunError
from fedmezo.privacy.collector import Collector, Question
from fedmezo.privacy.keys import BreachError, Group, KeyPair, fewest_left, fingerprint
from fedmezo.privacy.masks import Words, mask, pack, unpack
from fedmezo.privacy.member import Member
from fedmezo.privacy.messages import (
    decode_masked,
    decode_pairs,
    decode_question,
    decode_shares,
    encode_masked,
    encode_pairs,
    encode_question,
    encode_shares,
    unwrap_task,
    wrap_task,
)
from fedmezo.privacy.shares import keeping, restore

SESSION = bytes(range(16))
LENGTH = 34
WIDTHS = (6,) * LENGTH


@dataclass
class Round:
    """A group in one round, with clients that leave when they are told to."""

    size: int
    round: int = 0
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = self.members or [Member(client, SESSION, KeyPair()) for client in range(self.size)]

    @property
    def group(self) -> Group:
        keys = tuple(member.public for member in self.members)
        return Group(SESSION, self.round, tuple(range(self.size)), keys, fewest_left(self.size, 0.49))

    def words(self, client: int) -> Words:
        return np.random.default_rng([client, self.round]).integers(-(2**40), 2**40, LENGTH)

    def collect(
        self,
        before: Collection[int] = (),
        at_pairs: Collection[int] = (),
        at_shares: Collection[int] = (),
    ) -> Collector:
        """Everything that the server gets of the round, through the messages, until there is nothing left to ask."""
        group = self.group
        collector = Collector(group, LENGTH)
        for member in self.members:
            if member.client not in before:
                told, _ = unwrap_task(wrap_task(group, b"task"))
                message = encode_masked(self.round, member.client, member.mask(told, self.words(member.client)), WIDTHS)
                _, client, masked = decode_masked(message, WIDTHS)
                collector.take_words(client, masked)
        collector.close()
        while questions := collector.questions():
            for question in questions:
                if question.client in (at_shares if question.wards else at_pairs):
                    collector.leave(question.client)
                else:
                    self.ask(collector, question)
        return collector

    def ask(self, collector: Collector, question: Question) -> None:
        answer = tell(self.members[question.client], decode_question(encode_question(question)))
        if question.wards:
            collector.take_shares(question, decode_shares(answer, question))
        else:
            collector.take_pairs(question, decode_pairs(answer, question))


def tell(member: Member, question: Question) -> bytes:
    if question.wards:
        return encode_shares(question, member.tell_shares(question.round, question.gone, question.wards))
    return encode_pairs(question, member.tell_pairs(question.round, question.gone))


def test_the_sum_is_that_of_the_words_and_the_next_rounds_are_too() -> None:
    first = Round(5)
    for this in (first, Round(5, 1, first.members), Round(5, 7, first.members)):
        clients, total = this.collect().total()
        assert clients == (0, 1, 2, 3, 4)
        assert np.array_equal(unpack(pack(total, WIDTHS), WIDTHS), sum(map(this.words, clients)))


@given(data=st.data(), size=st.integers(3, 9))
@settings(max_examples=40, deadline=None)
def test_whoever_leaves_whenever_the_sum_is_of_those_whose_words_are_in_it_or_there_is_none(
    data: st.DataObject, size: int
) -> None:
    some = st.sets(st.integers(0, size - 1), max_size=size)
    before, at_pairs, at_shares = data.draw(some), data.draw(some), data.draw(some)
    this = Round(size)
    collector = this.collect(before, at_pairs, at_shares)
    left = set(range(size)) - before - (at_pairs if before else set())
    enough = len(left) >= fewest_left(size, 0.49)
    circle = keeping(this.group, set(range(size)) - left)
    keepers = all(len(set(circle.keepers(client)) - at_shares) >= circle.enough for client in left)
    assert collector.is_lost == (not (enough and keepers))
    if not collector.is_lost:
        clients, total = collector.total()
        assert set(clients) == left
        assert np.array_equal(unpack(pack(total, WIDTHS), WIDTHS), sum(map(this.words, clients)))


@pytest.mark.parametrize(
    ("size", "before", "at_pairs", "at_shares"),
    [
        (3, {1}, set(), set()),
        (3, set(), set(), {1}),
        (5, {0}, set(), {3}),
        (5, {0}, {4}, set()),
        (12, {2, 5}, {8}, {1}),
    ],
)
def test_a_few_may_leave_before_and_after_they_masked(
    size: int, before: set[int], at_pairs: set[int], at_shares: set[int]
) -> None:
    clients, _ = Round(size).collect(before, at_pairs, at_shares).total()
    assert set(clients) == set(range(size)) - before - at_pairs


def test_masked_words_look_random_and_one_client_less_leaves_noise() -> None:
    """A curious server with everything it gets but the last share of one client's seed."""
    this = Round(64)
    collector = this.collect()
    sent = [np.frombuffer(pack(masked.words, WIDTHS), np.uint8) for masked in collector.masked.values()]
    alone, beside = np.unpackbits(np.stack(sent)), np.unpackbits(np.stack(sent[:-1]) ^ np.stack(sent[1:]))
    for bits in (alone, beside):
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    for client, masked in collector.masked.items():
        assert not np.any(masked.words == this.words(client))


def test_fewer_shares_than_needed_give_another_seed() -> None:
    this = Round(5)
    collector = this.collect()
    points = sorted(collector._shares[0].items())
    assert restore(points[:2]) != restore(points[:3])


def after_shares(this: Round, collector: Collector) -> object:
    return this.members[1].tell_pairs(0, [0])


def share_after_pair(this: Round, collector: Collector) -> object:
    fresh = Round(5)
    for member in fresh.members:
        member.mask(fresh.group, fresh.words(member.client))
    fresh.members[1].tell_pairs(0, [0])
    return fresh.members[1].tell_shares(0, [0], {0: b""})


def forgets_who_had_gone(this: Round, collector: Collector) -> object:
    fresh = Round(5)
    for member in fresh.members:
        member.mask(fresh.group, fresh.words(member.client))
    fresh.members[1].tell_pairs(0, [0])
    return fresh.members[1].tell_shares(0, [], {0: b""})


def too_few_left(this: Round, collector: Collector) -> object:
    fresh = Round(5)
    for member in fresh.members:
        member.mask(fresh.group, fresh.words(member.client))
    return fresh.members[1].tell_pairs(0, [0, 2, 3])


def of_no_ward(this: Round, collector: Collector) -> object:
    big = Round(7)
    for member in big.members:
        member.mask(big.group, big.words(member.client))
    return big.members[0].tell_shares(0, [], {1: b""})


def of_another_round(this: Round, collector: Collector) -> object:
    return this.members[1].tell_shares(3, [], {0: b""})


def replayed_share(this: Round, collector: Collector) -> object:
    later = Round(5, 1, this.members)
    for member in later.members:
        member.mask(later.group, later.words(member.client))
    old = collector.masked[0].sealed[0]  # of client 0's seed in round 0, for its fourth keeper
    return later.members[3].tell_shares(1, [], {0: old})


def share_for_another(this: Round, collector: Collector) -> object:
    return this.members[3].tell_shares(0, [], {0: collector.masked[1].sealed[0]})


def masks_twice(this: Round, collector: Collector) -> object:
    this.members[0].mask(this.group, this.words(0))
    return None


def another_key(this: Round, collector: Collector) -> object:
    keys = (*this.group.keys[:-1], KeyPair().public)
    this.members[0].mask(replace(this.group, round=1, keys=keys), this.words(0))
    return None


def another_key_for_oneself(this: Round, collector: Collector) -> object:
    keys = (KeyPair().public, *this.group.keys[1:])
    this.members[0].mask(replace(this.group, round=1, keys=keys), this.words(0))
    return None


def no_key(this: Round, collector: Collector) -> object:
    Member(0, SESSION, KeyPair())._keys.pair(bytes(32), SESSION)
    return None


def of_two(this: Round, collector: Collector) -> object:
    group = this.group
    replace(group, members=group.members[:2], keys=group.keys[:2])
    return None


def with_itself_thrice(this: Round, collector: Collector) -> object:
    """A server that plays all others with one key."""
    replace(this.group, keys=(this.group.keys[0],) * 5)
    return None


@pytest.mark.parametrize(
    ("breach", "says"),
    [
        (after_shares, "is settled"),
        (share_after_pair, "could be read"),
        (forgets_who_had_gone, "but before"),
        (too_few_left, "needs 3"),
        (of_no_ward, "keeps no share"),
        (of_another_round, "masked no words"),
        (replayed_share, "not one it sealed"),
        (share_for_another, "not one it sealed"),
        (masks_twice, "went out already"),
        (another_key, "another key than before"),
        (another_key_for_oneself, "another key for client 0"),
        (no_key, "no public key"),
        (of_two, "too small"),
        (with_itself_thrice, "a key twice"),
    ],
)
def test_clients_refuse_what_would_show_one_of_them(breach: Callable[[Round, Collector], object], says: str) -> None:
    this = Round(5)
    with pytest.raises(BreachError, match=says):
        breach(this, this.collect())


def test_two_views_of_a_group_give_masks_that_do_not_cancel() -> None:
    """A server that tells clients of different groups gets noise: the group's name is in every key."""
    this = Round(4)
    collector = Collector(this.group, LENGTH)
    other = replace(this.group, fewest=3, round=0, session=SESSION, keys=this.group.keys, members=(0, 1, 2, 9))
    for member in this.members:
        seen = other if member.client == 0 else this.group
        collector.take_words(member.client, member.mask(seen, this.words(member.client)))
    collector.close()
    while questions := collector.questions():
        for question in questions:
            try:
                this.ask(collector, question)
            except RunError:
                collector.leave(question.client)
    if not collector.is_lost:
        assert not np.any(collector.total()[1] == sum(map(this.words, range(4))))


@pytest.mark.parametrize("width", [1, 3, 6, 8])
def test_words_of_few_bytes_come_back(width: int) -> None:
    limit = 2 ** (8 * width - 1)
    words = np.array([0, 1, -1, limit - 1, -limit], np.int64)
    assert np.array_equal(unpack(pack(words, [width] * 5), [width] * 5), words)


@pytest.mark.parametrize("data", [b"", b"FMZM", b"FMZM\2" + bytes(8), b"FMZQ\2" + bytes(8), b"FMZA\2" + bytes(9)])
def test_messages_cut_short_are_refused(data: bytes) -> None:
    for decode in (
        lambda d: decode_masked(d, WIDTHS),
        decode_question,
        lambda d: decode_pairs(d, Question(0, 0, (1,))),
    ):
        with pytest.raises(RunError):
            decode(data)


def test_uplink_of_thirty_steps_is_below_three_hundred_bytes_in_groups_of_four() -> None:
    """Thirty words and what is counted, and the answer with the shares: all that a client sends beyond its key."""
    this = Round(4)
    widths = (6,) * 30 + (2, 6, 2, 1)
    collector = Collector(this.group, LENGTH)
    sent = {}
    for member in this.members:
        masked = member.mask(this.group, this.words(member.client))
        sent[member.client] = len(encode_masked(0, member.client, masked, widths))
        collector.take_words(member.client, masked)
    collector.close()
    for question in collector.questions():
        sent[question.client] += len(tell(this.members[question.client], question))
    assert set(sent.values()) == {297}


def test_masks_of_different_keys_differ_and_fingerprints_are_short() -> None:
    assert not np.any(mask(bytes(32), 8) == mask(b"\1" + bytes(31), 8))
    assert len(fingerprint(bytes(32)).split()) == 8
