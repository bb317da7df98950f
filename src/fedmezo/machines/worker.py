"""The model worker: the process on a site that holds the model and the data, and answers over a local socket.

It lives as long as the site takes part, through all rounds and through every restart of the network engine, so that
the model is loaded once. It is started with `WorkerOptions` as one JSON argument.

For each connection there is one message and one answer; an empty one is a greeting. While it works it says so twice a
second: whoever asked can tell a long round from a process that hangs.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmezo.errors import FedMeZOError
from fedmezo.machines.frames import listen, receive_frame, send_frame
from fedmezo.machines.orphans import exit_with_parent
from fedmezo.machines.settings import WorkerOptions, site_config, sums_of
from fedmezo.plain import one_line

if TYPE_CHECKING:
    from fedmezo.config import Config
    from fedmezo.federation.joining import Setup
    from fedmezo.machines.site import Loaded, Masking, Site

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SIGNS = 0.5
_SECONDS_TO_RECEIVE = 60.0


def main() -> None:
    """Serve until the parent ends."""
    exit_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    logging.getLogger().handlers[0].setFormatter(_OneLine("%(message)s"))
    options = WorkerOptions(**json.loads(sys.argv[1]))
    from fedmezo.machines.site import Site  # imports torch

    site = Site(partial(load, options))
    with listen(Path(options.socket)) as listener:
        logger.info("the model worker is ready")
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_SECONDS_TO_RECEIVE)
                serve_one(site, connection)


class _OneLine(logging.Formatter):
    """Part of a message may be the server's words: they stay on the line, and what does not print is written out."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the base class's name)
        return one_line(super().formatMessage(record))


def serve_one(site: Site, connection: socket.socket) -> None:
    """Answer one message."""
    try:
        _, message = receive_frame(connection)
        with _signs_of_life(connection):
            answer = site.answer(message) if message else b""
        send_frame(connection, {"state": "answer"}, answer)
    except (OSError, FedMeZOError) as error:
        logger.warning("a message was not answered: %s", error)


@contextmanager
def _signs_of_life(connection: socket.socket) -> Iterator[None]:
    done = threading.Event()

    def send() -> None:
        while not done.wait(_SECONDS_BETWEEN_SIGNS):
            try:
                send_frame(connection, {"state": "working"})
            except OSError:
                return  # nobody waits any more; the answer will find that out too

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()


def load(options: WorkerOptions, setup: Setup) -> Loaded:
    """Load the site's model and data as the server's settings say.

    Raises:
        FedMeZOError: the settings are not sound, or the model or the data cannot be used.
    """
    import numpy as np

    from fedmezo.data.encode import encode_examples
    from fedmezo.data.parse import read_examples
    from fedmezo.data.rows import Layout
    from fedmezo.data.shard import Shard
    from fedmezo.machines.site import Loaded
    from fedmezo.runs import assemble

    config = site_config(setup.settings, options)
    tuned = assemble.load_model(config)
    examples = read_examples(Path(options.data), Layout())
    prompts = assemble.make_prompts(config, tuned.tokenizer)
    dataset = encode_examples(examples, tuned.tokenizer, config.llm.tok_len, assemble.tokens_folder(config), prompts)
    assemble.require_fit(config, tuned, dataset)
    for notice in assemble.use_lanes(config, tuned, dataset):
        logger.warning(notice)
    schedule = assemble.make_schedule(config)
    shard = Shard(dataset, np.arange(len(dataset)), config.seed, setup.client, schedule, tuned.model.device)
    logger.info("joined as client %d with %d examples, %s", setup.client, len(dataset), tuned.model.device)
    return Loaded(
        work=assemble.make_work(config, tuned),
        data=shard,
        base_hash=tuned.base_hash,
        initial=assemble.initial_thetas(config, tuned),
        num_parameters=len(tuned.theta),
        device=tuned.model.device,
        course=assemble.make_course(config, tuned.model),
        held=tuned.theta.dtype,
        masking=make_masking(setup.settings, config),
    )


def make_masking(settings: Mapping[str, Any], config: Config) -> Masking | None:
    """How a site masks its reports, where the server is to see sums alone.

    Raises:
        ConfigError: the settings are not sound, or the extra is not installed.
    """
    from fedmezo.federation.sums import FixedPoint
    from fedmezo.machines.site import Masking
    from fedmezo.privacy.extra import require_extra
    from fedmezo.runs import assemble, hiding

    if (sums := sums_of(settings)) is None:
        return None
    require_extra("federate.secure_aggregation")
    steps, estimator = config.train.local_update_steps, assemble.bare_estimator(config)
    scalars, examples = steps * estimator.directions, steps * config.dataloader.batch_size
    if sums.clip:
        noisy = hiding.noisy_coding(scalars, sums.clients, sums.groups, sums.clip, sums.noise_multiplier)
        return Masking(noisy, hiding.TOLERATED_UNDER_NOISE, sums.clients // sums.groups)
    fixed = FixedPoint(scalars, sums.clients, examples, estimator.largest, sums.equal)
    return Masking(fixed, hiding.TOLERATED, sums.clients // sums.groups)


if __name__ == "__main__":
    main()
