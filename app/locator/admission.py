"""Who may change the registry now: few changes at a time, key after key, and each key at its rate.

A change costs ten times what a lookup does, in this process and in Redis. Without a bound one key that registers without
end has the event loop for itself, and whoever looks up or spends waits behind it. So a change waits here for its turn,
before its body is decoded: AT_WORK_MAX are under way at once, the keys that wait take turns, and a turn of the event loop
lets in and answers no more than STEP of them. Beyond its burst a key goes on at its rate: its calls are held back, as
nginx does (`limit_req`), because one that is refused at once is sent again at once. Heartbeats and reports never come here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from app.access.bucket import bucket_of
from app.access.limits import LocalShare, limited_problem
from app.access.scope import Rate
from app.turns import Turns
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.access.bucket import Decision

POLICY: Final = "registrations"  # name of the limit in the header fields
# Of each key in each process. The burst is a large fleet that comes back at once, in about 4 s; the rate, a quarter of a
# core, lets a key register all that it may have (`INSTANCES_OF_KEY_MAX`) anew every 20 s.
RATE: Final = Rate(1_000, 10_000)
AT_WORK_MAX: Final = 32  # changes from admission to answer: one script call of them is 0.5 ms of Redis
# Admissions, and as many answers, of one turn of the event loop. With eight a quarter more register a second when nobody
# else calls (2,530 to 2,790 instead of 1,980 to 2,160); already with four a lookup of another key waits three times as long.
STEP: Final = 1
WAITING_OF_KEY_MAX: Final = 1_000  # calls of a key that wait: a second of its rate
WAIT_MAX_S: Final = 1.0  # then a call is refused; with what Redis may take, no caller waits longer than 3 s
REST_S: Final = 0.01  # of a key without a token: the ten that come in that time share one script call


class Admission:
    """Turns of changes. Used from one event loop."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic, rate: Rate = RATE) -> None:
        """Begin with full buckets; `rate` is that of each key."""
        self.answers: Final = Turns(STEP)  # what is left to do for changes that were made
        self.waiting = 0  # calls that wait for their turn
        self.limited = 0  # calls answered 429 since the start
        self._rate = rate
        self._buckets = LocalShare(lambda: 1.0, clock_s)
        self._lines: dict[str, deque[asyncio.Future[bool]]] = {}  # who waits, by key
        self._ready: OrderedDict[str, None] = OrderedDict()  # keys of which somebody may go on; the first one is next
        self._short: dict[str, Decision] = {}  # keys whose line has waited for a token, and what the bucket said last
        self._at_work = 0
        self._scheduled = False

    def turn(self, key_id: str) -> Turn:
        """Return a context that opens when it is the turn of a call of this key."""
        return Turn(self, key_id)

    async def enter(self, key_id: str) -> Problem | None:
        """Wait for a turn, which ends with `leave`. Returns the refusal when there is none: 429 `rate_limited`, or
        503 `unavailable` while it is not the key that has asked for too much.
        """
        line = self._lines.setdefault(key_id, deque())
        if not line:
            self._ready[key_id] = None
        if len(line) >= WAITING_OF_KEY_MAX:
            return self._refusal(key_id)
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[bool] = loop.create_future()
        line.append(granted)
        self._schedule()
        self.waiting += 1
        patience = loop.call_later(WAIT_MAX_S, _refuse, granted)
        try:
            return None if await granted else self._refusal(key_id)
        except asyncio.CancelledError:
            if not granted.cancelled() and granted.result():
                self.leave()
            raise
        finally:
            patience.cancel()
            self.waiting -= 1

    def leave(self) -> None:
        """End a turn."""
        self._at_work -= 1
        self._schedule()

    def _refusal(self, key_id: str) -> Problem:
        """Return why a call has no turn. It takes no token: those are for the calls that wait."""
        made = self._short.get(key_id)
        if made is None or self._at_work >= AT_WORK_MAX:
            detail = "The registry has more work than it takes. Repeat the request."
            return Problem(503, "unavailable", detail, headers={"Retry-After": "1"})
        self.limited += 1
        return limited_problem(made)

    def _schedule(self) -> None:
        if self._ready and self._at_work < AT_WORK_MAX and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        admitted = 0
        while self._ready and self._at_work < AT_WORK_MAX and admitted < STEP:
            admitted += self._admit(next(iter(self._ready)))
        self._schedule()

    def _admit(self, key_id: str) -> bool:
        """Let the next one of a key in; without one, or without a token, the key has no turn."""
        line = self._lines[key_id]
        while line and line[0].done():  # they have given up
            line.popleft()
        if not line:
            del self._lines[key_id], self._ready[key_id]
            self._short.pop(key_id, None)
            return False
        made = self._buckets.decide((bucket_of(POLICY, key_id, self._rate),), 1)
        if not made.allowed:
            del self._ready[key_id]
            self._short[key_id] = made
            asyncio.get_running_loop().call_later(max(REST_S, made.wait_us / 1_000_000), self._rested, key_id)
            return False
        line.popleft().set_result(True)
        self._at_work += 1
        self._ready.move_to_end(key_id)
        return True

    def _rested(self, key_id: str) -> None:
        self._ready[key_id] = None
        self._schedule()


def _refuse(waiting: asyncio.Future[bool]) -> None:
    """End a wait that has taken its time."""
    if not waiting.done():
        waiting.set_result(False)


class Turn:
    """One turn as a context: `async with` gives the refusal, or None while the change may be made."""

    __slots__ = ("_admission", "_key_id", "_refusal")

    def __init__(self, admission: Admission, key_id: str) -> None:
        """Wait for nothing yet."""
        self._admission = admission
        self._key_id = key_id
        self._refusal: Problem | None = None

    async def __aenter__(self) -> Problem | None:
        """Wait for the turn."""
        self._refusal = await self._admission.enter(self._key_id)
        return self._refusal

    async def __aexit__(self, *_: object) -> None:
        """Let the next one go on."""
        if self._refusal is None:
            self._admission.leave()
