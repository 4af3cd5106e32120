"""Everything of webhooks in one process: there from the start, open once Postgres is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.webhooks.calls import WebhookCalls
from app.webhooks.delivery import Deliverer
from app.webhooks.outbox import Outbox
from app.webhooks.post import Post
from app.webhooks.series import WebhookSeries

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.db.statements import Statements
    from app.webhooks.signature import SigningKeys
    from app.webhooks.target import TargetRules


class Webhooks:
    """The parts, and their life. `calls` and `deliverer` are None before `open`."""

    def __init__(self, keys: SigningKeys, rules: TargetRules) -> None:
        """`keys` derive the secrets; `rules` say where messages may go."""
        self._keys = keys
        self._rules = rules
        self._post: Post | None = None
        self.calls: WebhookCalls | None = None
        self.deliverer: Deliverer | None = None
        self.series = WebhookSeries(lambda: self.deliverer)

    def open(self, statements: Statements, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to deliver. Several replicas may do so on one database."""
        outbox = Outbox(statements)
        self._post = Post(self._rules)
        self.calls = WebhookCalls(outbox, self._keys, self._rules)
        self.deliverer = Deliverer(outbox, self._post, self._keys)
        self.deliverer.start(on_crash)

    def wake(self) -> None:
        """Look at the outbox now: a message has been put out, and its transaction is committed."""
        if self.deliverer is not None:
            self.deliverer.wake()

    async def close(self) -> None:
        """End within a few seconds; what has not arrived is sent by another replica, or after the next start."""
        if self.deliverer is not None:
            await self.deliverer.stop()
        if self._post is not None:
            await self._post.close()
