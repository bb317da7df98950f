"""What cannot be had where clients share directions is refused with what is allowed, before anything is loaded."""

from pathlib import Path

import pytest

from tests.unit.test_config import SMALL, load_text, message

GROUPS = "federate.direction_groups=2"
ELSEWHERE = "federate.client_num=9"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("federate.direction_groups=4",), "is 4, but 3 clients take part in a round; needs at most that"),
        ((GROUPS, "trainer.type=llmtrainer"), "is 2; needs 0, or federate.protocol: scalars"),
        ((GROUPS, "federate.protocol=weights"), "is 2; needs 0, or federate.protocol: scalars"),
        ((GROUPS, "train.train_strategy=round-wise"),
         "is 2, with which only sums are known, but train.train_strategy round-wise follows each client's own numbers; "
         "needs 0, or frozen or random"),
        ((GROUPS, "train.train_strategy=scale-free"), "train.train_strategy scale-free follows each client's own"),
        ((GROUPS, "train.batch_or_epoch=epoch"),
         "is 2, and all clients of a group take as many steps; needs 0, or train.batch_or_epoch: batch"),
        (("federate.aggregation=krum",),
         "is krum, which compares clients that share directions; needs mean, or federate.direction_groups: 1 or more"),
        (("federate.direction_groups=3", "federate.client_num=8", "federate.aggregation=median"),
         "which compares clients that share directions, but a group has 2 of them; needs 3, so fewer groups"),
        ((GROUPS, "train.zo.eps=1e-12"),
         "train.zo.clip: is 0, so that scalars may be as large as 5e+13, and those of 3 clients with 64 examples"),
        (("federate.direction_groups=-1",), "got -1; needs a whole number of at least 0"),
        (("federate.aggregation=average",), "needs one of mean, median, trimmed-mean, krum, sign-vote"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path: Path, overrides: tuple[str, ...], expected: str) -> None:
    assert expected in message(tmp_path, SMALL, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.train_strategy=random",),
        ("train.zo.estimator=one-sided", "train.zo.queries=4"),
        ("train.zo.estimator=per-example",),
        ("federate.method=FedAvgM", "train.trust=True", "train.zo.noise=low-rank"),
        ("federate.aggregation=sign-vote", ELSEWHERE),
        ("federate.mode=distributed",),
        ("train.zo.eps=auto",),
    ],
)
def test_what_is_linear_in_the_scalars_goes_with_groups(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load_text(tmp_path, SMALL, GROUPS, *overrides).config
    assert config.federate.direction_groups == 2


def test_the_papers_own_directions_are_the_default(tmp_path: Path) -> None:
    federate = load_text(tmp_path, SMALL).config.federate
    assert (federate.direction_groups, federate.aggregation) == (0, "mean")
