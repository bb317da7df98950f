"""A site's answers to setups and tasks that it cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedmezo.errors import ConfigError, DataError, FedMeZOError, ModelError
from fedmezo.federation.clients import ZerothOrderClients
from fedmezo.federation.course import Course
from fedmezo.federation.joining import (
    UNKNOWN,
    Ready,
    Reason,
    RefusedTask,
    Setup,
    decode_joining,
    encode_setup,
)
from fedmezo.federation.messages import CatchUp, decode_report, encode_task
from fedmezo.machines.site import Loaded, Site
from fedmezo.records import ClientTask, Contribution, RoundRecord
from fedmezo.zo.arithmetic import state_hash
from fedmezo.zo.noise import Noise
from tests.toy import SIZE, Quadratic, ToyData, two_point

ESTIMATOR = two_point(eps=0.01, queries=1, noise=Noise("gaussian"), clip=0.0)
THETA = torch.linspace(-1.0, 1.0, SIZE)
BASE_HASH = "ab" * 32
SETUP = Setup(1, 0, BASE_HASH, state_hash(THETA), {})
ELSEWHERE = torch.ones(SIZE)


def load(setup: Setup) -> Loaded:
    work = ZerothOrderClients(Quadratic(), ESTIMATOR, 7, "scalars")
    return Loaded(work, ToyData(setup.client), BASE_HASH, THETA.clone, len(THETA), THETA.device, Course(7, ESTIMATOR))


def joined(setup: Setup = SETUP) -> Site:
    site = Site(load)
    assert isinstance(decode_joining(site.answer(encode_setup(setup))), Ready)
    return site


def task(round_index: int, *, client: int = 1, digest: str = SETUP.theta_hash, way: CatchUp | None = None) -> bytes:
    return encode_task(ClientTask(round_index, client, 0.01), digest, way or CatchUp())


def refusal_of(site: Site, message: bytes) -> RefusedTask:
    answer = decode_joining(site.answer(message))
    assert isinstance(answer, RefusedTask)
    return answer


def test_a_task_before_any_setup_is_refused() -> None:
    assert refusal_of(Site(load), task(0)).reason is Reason.NOT_SET_UP


def test_a_task_of_another_client_is_refused() -> None:
    assert refusal_of(joined(), task(0, client=2)).reason is Reason.FAILED


def test_a_state_that_is_not_reached_is_refused_and_weights_help() -> None:
    site = joined()
    refusal = refusal_of(site, task(4, digest=state_hash(ELSEWHERE)))
    assert (refusal.reason, refusal.known_round) == (Reason.OTHER_STATE, UNKNOWN)
    report = decode_report(site.answer(task(4, digest=state_hash(ELSEWHERE), way=CatchUp(theta=ELSEWHERE))))
    assert (report.round, report.client, report.state_hash) == (4, 1, state_hash(ELSEWHERE))


def test_a_round_behind_the_known_state_is_refused() -> None:
    site = joined()
    site.answer(task(4, digest=state_hash(ELSEWHERE), way=CatchUp(theta=ELSEWHERE)))
    refusal = refusal_of(site, task(3))
    assert (refusal.reason, refusal.known_round) == (Reason.STALE, 4)


def test_the_same_task_gives_the_same_report_again() -> None:
    site = joined()
    assert site.answer(task(0)) == site.answer(task(0))


def test_weights_that_are_not_those_of_the_hash_are_refused() -> None:
    refusal = refusal_of(joined(), task(4, way=CatchUp(theta=ELSEWHERE)))
    assert refusal.reason is Reason.OTHER_STATE


def test_records_with_a_gap_are_refused() -> None:
    part = Contribution(0, 0.01, 1.0, 1, 0.0, 0, (1.0,))
    later = RoundRecord(1, (0,), (part,), (), state_hash="")
    assert refusal_of(joined(), task(2, way=CatchUp(records=(later,)))).reason is Reason.OTHER_STATE


def test_a_site_that_cannot_derive_the_initial_state_knows_none() -> None:
    site = Site(load)
    answer = decode_joining(site.answer(encode_setup(replace(SETUP, theta_hash="00" * 32))))
    assert isinstance(answer, Ready)
    assert answer.known_round == UNKNOWN


def test_the_same_setup_finds_the_state_it_left() -> None:
    site = joined()
    site.answer(task(4, digest=state_hash(ELSEWHERE), way=CatchUp(theta=ELSEWHERE)))
    answer = decode_joining(site.answer(encode_setup(replace(SETUP, round=5))))
    assert isinstance(answer, Ready)
    assert answer.known_round == 4


def test_another_run_with_the_same_settings_starts_from_the_beginning_without_loading() -> None:
    loads = []

    def count(setup: Setup) -> Loaded:
        loads.append(setup)
        return load(setup)

    site = Site(count)
    site.answer(encode_setup(SETUP))
    first = site.answer(task(0))
    site.answer(task(4, digest=state_hash(ELSEWHERE), way=CatchUp(theta=ELSEWHERE)))
    answer = decode_joining(site.answer(encode_setup(SETUP)))
    assert isinstance(answer, Ready)
    assert answer.known_round == 0
    assert site.answer(task(0)) == first
    assert len(loads) == 1


def test_another_base_model_is_refused_with_both_hashes() -> None:
    refusal = refusal_of(Site(load), encode_setup(replace(SETUP, base_hash="cd" * 32)))
    assert "abababababab" in refusal.text
    assert "cdcdcdcdcdcd" in refusal.text


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (DataError("/home/me/records.jsonl, line 3: SECRET"), False),
        (ModelError("/home/me/model: SECRET"), False),
        (ConfigError("the settings do not fit: SECRET"), True),
    ],
)
def test_the_server_does_not_hear_of_files_and_what_is_in_them(error: FedMeZOError, is_told: bool) -> None:
    def fail(setup: Setup) -> Loaded:
        raise error

    refusal = refusal_of(Site(fail), encode_setup(SETUP))
    assert refusal.reason is Reason.FAILED
    assert ("SECRET" in refusal.text) == is_told
