"""The instances among which one pick chooses: those of a service that a filter lets through and that may take calls.

Compiled into plain lists, so that a pick is O(1) or O(log n). What happens in between (a breaker opens, an instance
leaves) is seen by a look at the chosen one, and the lists are compiled anew after at most RECOMPILE_S_PER_INSTANCE for
each instance: a storm of changes costs a bounded share of a core.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from app.locator.load import FREE_S, LOCKED_S, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from app.locator.least import LeastQueue
    from app.locator.ring import Ring
    from app.locator.turns import Turns

DRAWS_MAX: Final = 16  # with half of the candidates refusing, one pick in 65,536 has to search
PANIC_SHARE: Final = 0.5  # with fewer ready than this, those that are suspect or open are offered as well
RECOMPILE_S_PER_INSTANCE: Final = 10e-6  # compiling takes about 0.3 us an instance: 3 % of a core at most
SPILL_FACTOR: Final = 1.4  # a zone keeps all of its calls while at least 1/1.4 of it is ready, as in Envoy


class Filter(NamedTuple):
    """Which instances may be chosen. `side`: "" all zones, "in" only `zone`, "out" all but `zone`."""

    side: str = ""
    zone: str = ""
    tag: str = ""

    def lets(self, load: Load) -> bool:
        """Whether the zone is right. The tag is the index's matter (`Loads.compiled`)."""
        return not self.side or (load.instance.zone == self.zone) is (self.side == "in")


class Candidates:
    """The candidates of one filter of one service. Lives on while the lists in it are replaced."""

    __slots__ = (
        "compile_after_s", "cumulative", "draw_01", "due", "filter", "fresh_until_s", "health", "in_flight",
        "least", "loads", "mean_weight", "panic", "rank_max", "ring",
        "ring_after_s", "ring_version", "turns", "uneven", "version", "warming",
    )  # fmt: skip

    def __init__(self, filter_: Filter, draw_01: Callable[[], float]) -> None:
        """`draw_01` gives [0, 1). Nothing is compiled yet: the first pick does."""
        self.filter: Final = filter_
        self.draw_01: Final = draw_01
        self.in_flight = 0  # open leases that were picked here
        self.fresh_until_s = FREE_S
        self.compile_after_s = FREE_S
        self.version = -1  # of the service, when it was compiled
        self.loads: list[Load] = []  # those that are offered
        self.due: list[Load] = []  # open breakers that may be probed
        self.cumulative: list[int] = []  # of weights; empty while all are the same
        self.mean_weight = 1.0
        self.uneven = False
        self.warming = False
        self.panic = False
        self.rank_max = 0
        self.health = 0.0
        self.turns: Turns | None = None
        self.least: LeastQueue | None = None
        self.ring: Ring | None = None  # of all that may ever be offered: breakers do not move keys
        self.ring_version = -1
        self.ring_after_s = FREE_S

    def __len__(self) -> int:
        """Return how many instances are offered."""
        return len(self.loads)

    def compile(self, loads: Collection[Load], now_s: float, panic_share: float) -> None:
        """Choose who of those with the tag is offered at this time. O(n)."""
        members = [load for load in loads if load.rank < 2]
        if self.filter.side:
            members = [load for load in members if self.filter.lets(load)]
        tripped = [load for load in members if load.breaker is not None and load.breaker.retry_at_s > FREE_S]
        if any(load.is_isolated() for load in tripped):
            members = [load for load in members if not load.is_isolated()]
            tripped = [load for load in tripped if not load.is_isolated()]
        ready = [load for load in members if not load.rank]
        if tripped:
            away = set(tripped)
            ready = [load for load in ready if load not in away]
        self.due = [load for load in tripped if not load.rank and not load.is_shut(now_s)]
        self.panic = bool(members) and len(ready) < panic_share * len(members)
        self.rank_max = 1 if self.panic else 0
        self.loads = offered = members if self.panic else ready
        if self.filter.side:
            total = sum(load.instance.weight for load in members)
            self.health = min(1.0, SPILL_FACTOR * sum(load.instance.weight for load in ready) / total) if total else 0.0
        self._weigh(offered)
        # Slow start protects the new ones by the others; when most are new there is nobody to take their share.
        warm = [load.warm_at_s for load in offered if load.warm_at_s > now_s]
        self.warming = 0 < len(warm) <= len(offered) // 2
        self.turns = self.least = None
        self.compile_after_s = now_s + RECOMPILE_S_PER_INSTANCE * len(loads)
        shut_s = [load.breaker.retry_at_s for load in tripped if load.breaker is not None and load.is_shut(now_s)]
        self.fresh_until_s = max(min([*shut_s, *warm], default=LOCKED_S), self.compile_after_s)

    def _weigh(self, offered: list[Load]) -> None:
        weights = [load.instance.weight for load in offered]
        self.uneven = bool(weights) and min(weights) != max(weights)
        self.mean_weight = sum(weights) / len(weights) if weights else 1.0
        self.cumulative = list(accumulate(weights)) if self.uneven else []

    def draw_admitted(self, now_s: float, client: str) -> Load | None:
        """Return a random candidate that may take a call, by weight; None when there is none."""
        loads, draw_01 = self.loads, self.draw_01
        for _ in range(DRAWS_MAX):
            if self.uneven:
                cumulative = self.cumulative
                load = loads[bisect_right(cumulative, int(draw_01() * cumulative[-1]))]
            else:
                load = loads[int(draw_01() * len(loads))]
            if load.look_until_s <= now_s or self.admits(load, now_s, client):
                return load
        return self.search(now_s, client)

    def search(self, now_s: float, client: str) -> Load | None:
        """Return the first candidate, from a random one on, that may take a call; None when there is none. O(n)."""
        loads = self.loads
        start = int(self.draw_01() * len(loads))
        for index in range(start - len(loads), start):
            if self.may_take(loads[index], now_s, client):
                return loads[index]
        return None

    def may_take(self, load: Load, now_s: float, client: str) -> bool:
        """Whether this candidate may be given a call of this client."""
        if load.rank > self.rank_max or load.is_isolated():
            return False
        if self.panic:
            return True
        return not load.is_shut(now_s) and not load.bars(client, now_s)

    def admits(self, load: Load, now_s: float, client: str) -> bool:
        """Whether this candidate may take a call now; of one that is warming up only a part is taken, at random."""
        if not self.may_take(load, now_s, client):
            return False
        return not self.warming or load.warm_at_s <= now_s or self.draw_01() < load.warmth(now_s)
