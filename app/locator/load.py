"""What is known of an instance beside its record: calls in flight, latency, breaker, slow start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from app.breaker import Breaker, BreakerState
from app.locator.instance import State

if TYPE_CHECKING:
    from app.locator.instance import Instance

DECAY_S: Final = 10.0  # an old latency counts for 1/e after this: the value of Finagle's peak EWMA
WARM_S: Final = 30.0  # a new instance takes its full share after this
WARM_SHARE_MIN: Final = 0.1  # and this share at first, as Envoy's slow start
LATENCY_MAX_MS: Final = 600_000.0  # reports beyond ten minutes count as that
LATENCY_MIN_MS: Final = 0.01  # an instance that answers in no time has the clock of its client to thank
FAILURE_COST: Final = 5.0  # a failed call counts as this many typical ones, so that failing fast is not attractive

ROW_MAX: Final = 3  # failures in a row after which a client gets no more of an instance that others are content with
BARRED_S: Final = 30.0
BARRED_MAX_S: Final = 300.0
BARRED_STEPS_MAX: Final = 4  # doublings that reach it; a power of any row of failures would be out of range
CLIENTS_MAX: Final = 16  # clients with failures that are remembered for an instance; the oldest goes first

# Who is offered: rank 0 always, rank 1 when too few others are left, rank 2 never.
RANKS: Final = {State.UP: 0, State.SUSPECT: 1, State.UNVERIFIED: 1, State.DRAINING: 2, State.DOWN: 2}
FREE_S: Final = float("-inf")
LOCKED_S: Final = float("inf")


def counted_ms(latency_ms: float) -> float:
    """Return a reported latency within the limits; what is no number, or below 0, counts as the least."""
    return min(latency_ms, LATENCY_MAX_MS) if latency_ms > LATENCY_MIN_MS else LATENCY_MIN_MS


class Grudge(msgspec.Struct, frozen=True, gc=False):
    """The failures in a row that one client had with one instance, and until when it gets no more of it."""

    client: str
    row: int
    barred_until_s: float


class Load:
    """Mutable, one for each id and generation, shared by all that choose among a service's instances.

    `look_until_s` is the fast path: before that time an offer needs a look at rank, breaker and slow start, after it
    the instance may be taken as it is.
    """

    __slots__ = (
        "breaker", "cost_at_s", "cost_ms", "expired", "failures", "grudges", "in_flight", "instance", "look_until_s",
        "picks", "rank", "reports", "warm_at_s",
    )  # fmt: skip

    def __init__(self, instance: Instance) -> None:
        """Make the load of an instance that nothing is known of."""
        self.in_flight = 0
        self.cost_ms = 0.0  # peak EWMA at cost_at_s; 0 while unknown
        self.cost_at_s = 0.0
        self.warm_at_s = FREE_S
        self.breaker: Breaker | None = None
        self.grudges: tuple[Grudge, ...] = ()  # few, so a tuple is looked through; the newest stands last
        self.picks = self.reports = self.failures = self.expired = 0
        self.instance = instance
        self.rank = 0
        self.look_until_s = FREE_S
        self.renew(instance)

    def renew(self, instance: Instance) -> None:
        """Take a new record of the same instance."""
        self.instance = instance
        self.rank = RANKS[instance.state] if instance.weight else 2
        self.guard()

    def retire(self) -> None:
        """Take no more calls: the instance is gone, or has become another one."""
        self.rank = 2
        self.guard()
        if self.breaker is not None:
            self.breaker.retire()

    def warm_up(self, now_s: float) -> None:
        """Begin a slow start."""
        self.warm_at_s = now_s + WARM_S
        self.guard()

    def guard(self) -> None:
        """Work out anew from when on no look is needed."""
        if self.rank or (self.breaker is not None and self.breaker.retry_at_s > FREE_S):
            self.look_until_s = LOCKED_S
        else:
            self.look_until_s = max((self.warm_at_s, *(grudge.barred_until_s for grudge in self.grudges)))

    def warmth(self, now_s: float) -> float:
        """Return the share of its weight that the instance may take, from WARM_SHARE_MIN to 1."""
        return min(1.0, max(WARM_SHARE_MIN, 1.0 - (self.warm_at_s - now_s) / WARM_S))

    def is_shut(self, now_s: float) -> bool:
        """Whether the breaker keeps calls away, and probes are not due."""
        return self.breaker is not None and not self.breaker.admits(now_s)

    def is_isolated(self) -> bool:
        """Whether a person has taken it out."""
        return self.breaker is not None and self.breaker.isolated

    def bars(self, client: str, now_s: float) -> bool:
        """Whether this client had too many failures with it that nobody else had."""
        return any(grudge.client == client and now_s < grudge.barred_until_s for grudge in self.grudges)

    def breaker_state(self, now_s: float) -> BreakerState:
        """Return the breaker's state; closed while nothing has ever failed."""
        return BreakerState.CLOSED if self.breaker is None else self.breaker.state(now_s)

    def cost(self, now_s: float, typical_ms: float) -> float:
        """Return the expected latency in ms: the last peak, fading by the time since; `typical_ms` while unknown."""
        if self.cost_ms:
            return self.cost_ms * math.exp((self.cost_at_s - now_s) / DECAY_S)
        return typical_ms

    def observe(self, latency_ms: float, now_s: float) -> None:
        """Take a latency above 0 into the peak EWMA: a rise counts at once, a fall by the time since the last one."""
        if latency_ms < self.cost_ms:
            kept = math.exp(min(0.0, self.cost_at_s - now_s) / DECAY_S)
            latency_ms = self.cost_ms * kept + latency_ms * (1.0 - kept)
        self.cost_ms = latency_ms
        self.cost_at_s = now_s

    def resent(self, client: str, now_s: float) -> None:
        """Remember a failure that only this client saw."""
        row = 1 + sum(grudge.row for grudge in self.grudges if grudge.client == client)
        barred_until_s = FREE_S
        if row >= ROW_MAX:
            barred_until_s = now_s + min(BARRED_S * 2.0 ** min(row - ROW_MAX, BARRED_STEPS_MAX), BARRED_MAX_S)
        others = [grudge for grudge in self.grudges if grudge.client != client]
        self.grudges = (*others[1 - CLIENTS_MAX :], Grudge(client, row, barred_until_s))
        self.guard()

    def forgive(self, client: str) -> None:
        """Forget the client's failures: it had a success."""
        kept = tuple(grudge for grudge in self.grudges if grudge.client != client)
        if len(kept) < len(self.grudges):
            self.grudges = kept
            self.guard()
