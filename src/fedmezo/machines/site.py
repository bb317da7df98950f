"""What a site does with the server's messages: it keeps its model, its data and the state it knows, and answers.

No network and no process in here: bytes in, bytes out. The same client work as in the simulation runs on the same
theta, brought up to date by what the task carries and checked against the state hash before any step is taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmezo.errors import DataError, FedMeZOError, ModelError
from fedmezo.federation.clients import ClientWork
from fedmezo.federation.course import Course, hash_of
from fedmezo.federation.joining import (
    UNKNOWN,
    Ready,
    Reason,
    RefusedTask,
    Setup,
    decode_setup,
    encode_ready,
    encode_refusal,
    is_setup,
)
from fedmezo.federation.messages import BYTES_PER_PARAMETER, CatchUp, decode_task, encode_report, records_size
from fedmezo.federation.server_optimizers import Moments, moment_names
from fedmezo.federation.sums import Coding
from fedmezo.privacy.extra import WRAPPED
from fedmezo.records import ClientData, ClientTask, Report
from fedmezo.zo.arithmetic import state_hash

if TYPE_CHECKING:
    from fedmezo.machines.masks import Masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Masking:
    """How a site's reports are masked.

    Args:
        coding: makes words of a report.
        tolerated: share of a group that may leave.
        fewest: clients that a group has.
    """

    coding: Coding
    tolerated: float
    fewest: int


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A site's parts, made from a setup and its own data.

    Args:
        work: the local steps.
        data: the site's own examples.
        base_hash: of the site's base weights.
        initial: makes theta (d,) before round 0 from the base model and the run's seed, for the site to change.
        num_parameters: d.
        device: where theta is changed.
        course: follows what others reported.
        held: what theta is: float32, or bfloat16, which the course rounds.
        masking: how reports are masked, where the server is to see sums alone; None where it sees each of them.
    """

    work: ClientWork
    data: ClientData
    base_hash: str
    initial: Callable[[], Tensor]
    num_parameters: int
    device: torch.device
    course: Course
    held: torch.dtype = torch.float32
    masking: Masking | None = None


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """The site cannot do what a message asks."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Site:
    """One site's side of a run.

    Args:
        load: makes the parts from a setup, once for each run; raises FedMeZOError if it cannot.
    """

    def __init__(self, load: Callable[[Setup], Loaded]) -> None:
        self._load = load
        self._setup: Setup | None = None
        self._loaded: Loaded | None = None
        self._theta: Tensor | None = None
        self._moments: Moments = {}  # of the server's optimiser
        self._round = UNKNOWN  # theta is the state before this round
        self._masks: Masks | None = None

    def answer(self, message: bytes) -> bytes:
        """The reply to a setup, a task, or a question about masked words.

        Raises:
            RunError: the message is none of them.
        """
        if is_setup(message):
            return self._answer_setup(decode_setup(message))
        if self._masks is not None and self._masks.is_question(message):
            return self._masks.answer(message)
        return self._answer_task(message)

    def _answer_setup(self, setup: Setup) -> bytes:
        try:
            loaded = self._set_up(setup)
        except (Refused, FedMeZOError) as error:
            logger.error("cannot take part: %s", error)
            return encode_refusal(RefusedTask(setup.client, 0, Reason.FAILED, UNKNOWN, _outward(error)))
        data = loaded.data
        key = b"" if self._masks is None else self._masks.public_key
        return encode_ready(Ready(setup.client, self._round, data.num_examples, data.num_batches, key))

    def _set_up(self, setup: Setup) -> Loaded:
        """Load what the setup asks for, unless it is there: a run that goes on finds the state it left.

        A run that is behind that state is another one, or one that lost rounds, and starts from the beginning.
        """
        before = self._setup
        if self._loaded is not None and before is not None and _same_run(setup, before):
            if self._round > setup.round:
                self._begin(self._loaded, setup)
            if setup.session != before.session:
                self._masks = _masks_of(self._loaded, setup)
            self._setup = setup
            return self._loaded
        self._loaded = self._theta = None  # before loading: two models may not fit
        self._round = UNKNOWN
        loaded = self._load(setup)
        if loaded.base_hash != setup.base_hash:
            raise Refused(
                Reason.FAILED,
                f"its base model has other weights than the server's, or another precision ({loaded.base_hash[:12]}, "
                f"not {setup.base_hash[:12]}): give --model the same model",
            )
        self._loaded, self._setup, self._masks = loaded, setup, _masks_of(loaded, setup)
        self._begin(loaded, setup)
        return loaded

    def _begin(self, loaded: Loaded, setup: Setup) -> None:
        """Know the initial state, if it is the one that the site derives for itself."""
        self._theta, self._moments, self._round = None, {}, UNKNOWN
        theta = loaded.initial()
        if state_hash(theta) == setup.theta_hash:
            self._theta, self._round = theta, 0

    def _answer_task(self, message: bytes) -> bytes:
        masks = self._masks
        group, message = _unwrapped(message) if masks is None else masks.unwrap(message)
        task, digest, way = decode_task(message)
        try:
            if masks is not None and group is None:
                raise Refused(Reason.FAILED, "the run sums securely, and this task would show the site's own report")
            report = self._work(task, digest, way)
            return encode_report(report) if masks is None or group is None else masks.masked(group, report)
        except Refused as refusal:
            logger.warning("round %d refused: %s", task.round, refusal)
            reason, text = refusal.reason, str(refusal)
        except FedMeZOError as error:
            logger.error("round %d failed: %s", task.round, error)
            reason, text = Reason.FAILED, _outward(error)
        return encode_refusal(RefusedTask(task.client, task.round, reason, self._round, text))

    def _work(self, task: ClientTask, digest: str, way: CatchUp) -> Report:
        if self._loaded is None or self._setup is None:
            raise Refused(Reason.NOT_SET_UP, "this site has had no setup")
        if task.client != self._setup.client:
            raise Refused(Reason.FAILED, f"the task is for client {task.client}; this is {self._setup.client}")
        if task.round < self._round:
            raise Refused(Reason.STALE, f"the task is of round {task.round}; this site is at round {self._round}")
        started = time.monotonic()
        theta = self._advance(self._loaded, task.round, digest, way)
        (report,) = self._loaded.work.run([task], theta, digest, {task.client: self._loaded.data})
        seconds = time.monotonic() - started
        logger.info("round %d: train loss %.4f, %.1f s", task.round, report.train_loss, seconds)
        return report

    def _require_fitting(self, loaded: Loaded, way: CatchUp) -> None:
        """Refuse what cannot be a state of this run, and records that weigh more than a state does."""
        size = loaded.num_parameters
        if way.theta is not None and not self._is_state(loaded, way.theta, way.moments):
            raise Refused(Reason.FAILED, f"the task brings no state of {size} numbers that are finite")
        if records_size(way.records) > BYTES_PER_PARAMETER * size:
            raise Refused(Reason.FAILED, "the task brings more records than a state weighs")

    def _is_state(self, loaded: Loaded, theta: Tensor, moments: tuple[Tensor, ...]) -> bool:
        if len(moments) != len(moment_names(loaded.course.server)):
            return False
        return all(len(v) == loaded.num_parameters and bool(torch.isfinite(v).all()) for v in (theta, *moments))

    def _advance(self, loaded: Loaded, round_index: int, digest: str, way: CatchUp) -> Tensor:
        """Bring theta to the state before a round; its hash must be the server's."""
        self._require_fitting(loaded, way)
        if way.theta is not None:
            names = moment_names(loaded.course.server)
            theta, self._round = way.theta.to(loaded.device, loaded.held), round_index
            self._moments = {n: moment.to(loaded.device) for n, moment in zip(names, way.moments, strict=True)}
        elif self._theta is None:
            raise Refused(Reason.OTHER_STATE, "this site knows no state")
        else:
            theta = self._theta
            for record in way.records:
                if record.round == self._round:
                    self._moments = loaded.course.advance_(theta, self._moments, record)
                    self._round += 1
        self._theta = theta
        if self._round != round_index or hash_of(theta, self._moments) != digest:
            reached, self._theta, self._round = self._round, None, UNKNOWN
            raise Refused(Reason.OTHER_STATE, f"from the state before round {reached} the task's state is not reached")
        return theta


def _unwrapped(message: bytes) -> tuple[None, bytes]:
    """A task as a site takes it that masks nothing, or has had no setup yet."""
    if not message.startswith(WRAPPED):
        return None, message
    from fedmezo.privacy.messages import unwrap_task

    return None, unwrap_task(message)[1]


def _same_run(setup: Setup, before: Setup) -> bool:
    return setup == replace(before, round=setup.round, session=setup.session)


def _masks_of(loaded: Loaded, setup: Setup) -> Masks | None:
    """New keys for a session, where the run sums securely.

    Raises:
        Refused: the server names no session for it.
    """
    masking = loaded.masking
    if masking is None:
        return None
    from fedmezo.machines.masks import Masks  # its libraries are an extra

    try:
        return Masks(setup.client, bytes.fromhex(setup.session), masking.coding, masking.tolerated, masking.fewest)
    except ValueError as error:
        raise Refused(Reason.FAILED, f"the server's session is none: {error}") from error


def _outward(error: Exception) -> str:
    """What the server may hear of an error: nothing that names the site's files or what is in them."""
    if isinstance(error, DataError):
        return "its data cannot be used; its own log says why"
    if isinstance(error, ModelError):
        return "its base model cannot be loaded; its own log says why"
    return str(error)
