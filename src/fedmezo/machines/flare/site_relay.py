"""What FLARE runs on a site: a relay between its messages and the model worker's socket. It imports no torch."""

from __future__ import annotations

import os

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedmezo.machines.flare.exchange import TOPIC, WORKER_SOCKET, Mailbox
from fedmezo.machines.orphans import exit_with_parent


class SiteRelay(Executor):  # type: ignore[misc]  # nvflare has no types
    """Takes no arguments, so that whoever writes a job can only ask for it or not."""

    def __init__(self) -> None:
        super().__init__()
        self._mailbox = Mailbox(os.environ.get(WORKER_SOCKET, ""))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Listen for the server's relay once the job runs."""
        if event_type == EventType.START_RUN:
            exit_with_parent()
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._reply)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Refuse: messages come over the auxiliary channel, tasks are not used."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _reply(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        reply = make_reply(ReturnCode.OK)
        reply.update(self._mailbox.handle(request))
        return reply
