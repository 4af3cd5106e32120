"""Delivers what is in the outbox: every replica runs this, and each delivery is claimed by one of them at a time.

An attempt is claimed for longer than it can take, sent without holding anything in Postgres, and then closed or
postponed. A replica that dies in between leaves its claim to run out, and the attempt counts. So a message arrives at
least once; its `webhook-id` tells a receiver that it has seen it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import asyncpg

from app.clock import now_ms
from app.db.retry import TRANSIENT
from app.turns import pause
from app.webhooks.outbox import Portion
from app.webhooks.post import ANSWER_TIMEOUT_S, Outcome
from app.webhooks.schedule import next_delay_s
from app.webhooks.signature import SecretUnknown, signed_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.webhooks.outbox import Claim, Outbox
    from app.webhooks.post import Post
    from app.webhooks.signature import SigningKeys

log = logging.getLogger(__name__)

CONCURRENCY_MAX: Final = 16  # attempts at once in this process
OF_ENDPOINT_MAX: Final = 2  # attempts at once for one endpoint, so that a slow one leaves room for others
OF_OWNER_MAX: Final = 4  # for all endpoints of one tenant, so that one whose endpoints hang leaves room for other tenants
POLL_INTERVAL_S: Final = 1.0  # how often the outbox is looked at when nothing wakes the deliverer
LEASE_S: Final = ANSWER_TIMEOUT_S * 3  # an attempt, and the statement that closes it, with room
STOP_GRACE_S: Final = 5.0  # at the end of the process; most endpoints answer within one
FORGET_INTERVAL_S: Final = 3_600.0  # how often old deliveries are removed
COUNT_INTERVAL_S: Final = 5.0  # how old the number of those that wait may be

_STORE_AWAY: Final = (*TRANSIENT, asyncpg.PostgresError)


class Deliverer:
    """Claims, sends and closes deliveries, as one task and one more for each attempt."""

    def __init__(self, outbox: Outbox, post: Post, keys: SigningKeys) -> None:
        """`post` is closed by its owner after `stop`."""
        self._outbox = outbox
        self._post = post
        self._keys = keys
        self._woken = asyncio.Event()
        self._stopping = False
        self._attempts: dict[asyncio.Task[None], Claim] = {}
        self._task: asyncio.Task[None] | None = None
        self._on_crash: Callable[[BaseException], None] | None = None
        self.delivered = 0  # messages that arrived, since the start
        self.failed_attempts = 0  # attempts without a 2xx, since the start
        self.given_up = 0  # deliveries without another attempt, since the start
        self.backlog = 0  # deliveries of all replicas that are still to be made, as of the last count

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin; an error that it does not know is a crash."""
        self._on_crash = on_crash
        self._task = asyncio.create_task(self._run(on_crash), name="webhooks")

    def wake(self) -> None:
        """Look at the outbox now: something has been put out."""
        self._woken.set()

    async def stop(self) -> None:
        """Claim nothing more; attempts under way get STOP_GRACE_S, and what is cut off then is sent again later."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            await self._task
        if self._attempts:
            _, late = await asyncio.wait(self._attempts, timeout=STOP_GRACE_S)
            for attempt in late:
                attempt.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def round(self) -> int:
        """Make deliveries of new messages, claim what there is room for and begin to send it; return how many messages and
        attempts that were.
        """
        spread = await self._outbox.spread()
        return spread.messages + await self._send_due()

    async def _send_due(self) -> int:
        room = CONCURRENCY_MAX - len(self._attempts)
        if room <= 0:
            return 0
        portion = Portion(
            OF_ENDPOINT_MAX,
            OF_OWNER_MAX,
            [claim.endpoint_id for claim in self._attempts.values()],  # one that answers quickly gets its turn next time
            Counter(claim.owner for claim in self._attempts.values()),
        )
        claims = await self._outbox.claim(room, portion, LEASE_S)
        for claim in claims:
            task = asyncio.create_task(self._attempt(claim), name=f"webhook {claim.delivery_id}")
            self._attempts[task] = claim
            task.add_done_callback(self._ended)
        return len(claims)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._attempts[task]
        self._woken.set()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, _STORE_AWAY):
            log.warning("webhook attempt not noted", extra={"reason": type(error).__name__})
        elif error is not None and self._on_crash is not None:
            self._on_crash(error)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        loop = asyncio.get_running_loop()
        forget_at_s = count_at_s = loop.time()
        while not self._stopping:
            try:
                begun = await self.round()
                if loop.time() >= forget_at_s:
                    await self._outbox.forget()
                    forget_at_s = loop.time() + FORGET_INTERVAL_S
                if loop.time() >= count_at_s:
                    self.backlog = await self._outbox.count_pending()
                    count_at_s = loop.time() + COUNT_INTERVAL_S
            except _STORE_AWAY as error:
                log.warning("webhooks wait", extra={"reason": f"{type(error).__name__}: {error}"})
                begun = 0
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
            if not begun:
                await pause(self._woken, POLL_INTERVAL_S)
                self._woken.clear()

    async def _attempt(self, claim: Claim) -> None:
        outcome = await self._send(claim)
        if outcome.error is None:
            self.delivered += 1
            await self._outbox.close(claim, "delivered", outcome)
            return
        self.failed_attempts += 1
        delay_s = next_delay_s(claim.attempts, outcome.retry_after_s)
        if outcome.status == 410 or delay_s is None:
            self.given_up += 1
            await self._outbox.close(claim, "failed", outcome)
            reason = "gone" if outcome.status == 410 else "exhausted"
            if await self._outbox.disable(claim.endpoint_id, reason):
                log.warning("webhook endpoint disabled", extra={"endpoint": claim.endpoint_id, "reason": reason})
            return
        await self._outbox.postpone(claim, delay_s, outcome)

    async def _send(self, claim: Claim) -> Outcome:
        body = claim.body.encode()
        try:
            secrets = self._keys.secrets(
                claim.signing_key_id, claim.endpoint_id, claim.secret_version, old_signs=claim.old_secret_signs
            )
        except SecretUnknown as error:
            log.warning("webhook not signed", extra={"endpoint": claim.endpoint_id, "reason": str(error)})
            return Outcome(None, "secret")
        return await self._post.send(claim.url, signed_fields(secrets, claim.message_id, now_ms() // 1000, body), body)
