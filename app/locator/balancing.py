"""The strategies: which of the candidates takes the call. Each returns an index, or -1 when none may.

p2c                  two at random by weight, the one with fewer calls in flight for its weight
round_robin          in turn, by weight
least_connections    the fewest calls in flight for its weight
weighted_random      at random, by weight
response_time        two at random by weight, the one with the lower peak latency times calls in flight
consistent_hash      by key, with bounded load (`app.locator.ring`)

All see calls in flight of this process only. Choosing among two at random keeps callers with old knowledge from
running to the same instance (Mitzenmacher 2001); taking the fastest of all would do just that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from app.locator.candidates import DRAWS_MAX
from app.locator.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.candidates import Candidates
    from app.locator.least import LeastQueue
    from app.locator.load import Load

Strategy = Literal["p2c", "round_robin", "least_connections", "weighted_random", "response_time", "consistent_hash"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)


def _two(candidates: Candidates, now_s: float, client: str) -> tuple[int, int]:
    """Return two candidates that may take a call: different ones if there are; (-1, -1) when there is none."""
    loads = candidates.loads
    size = len(loads)
    if not candidates.uneven and size > 1:
        draw = candidates.draw_01
        one, other = int(draw() * size), int(draw() * (size - 1))
        if other >= one:
            other += 1
        if loads[one].look_until_s <= now_s and loads[other].look_until_s <= now_s:
            return one, other
    one = other = candidates.draw_admitted(now_s, client)
    for _ in range(DRAWS_MAX if size > 1 else 0):
        other = candidates.draw_admitted(now_s, client)
        if other != one:
            break
    return one, other


def p2c(candidates: Candidates, now_s: float, client: str) -> int:
    """Take two by weight; of those the one with fewer calls in flight for its weight, or else the first."""
    one, other = _two(candidates, now_s, client)
    loads = candidates.loads
    first, second = loads[one], loads[other]
    if candidates.uneven:
        fewer = second.in_flight * first.instance.weight < first.in_flight * second.instance.weight
    else:
        fewer = second.in_flight < first.in_flight
    return other if fewer else one


def response_time(candidates: Candidates, now_s: float, client: str, typical_ms: float) -> int:
    """Take two by weight; of those the one where the call is expected to be answered sooner.

    typical_ms  stands for the latency of an instance that has none yet, so that it neither repels nor attracts
    """
    one, other = _two(candidates, now_s, client)
    loads = candidates.loads
    first, second = loads[one], loads[other]
    mean = candidates.mean_weight
    wait = first.cost(now_s, typical_ms) * (first.in_flight * mean / first.instance.weight + 1)
    other_wait = second.cost(now_s, typical_ms) * (second.in_flight * mean / second.instance.weight + 1)
    return other if other_wait < wait else one


def weighted_random(candidates: Candidates, now_s: float, client: str) -> int:
    """Take one at random, by weight."""
    return candidates.draw_admitted(now_s, client)


def round_robin(candidates: Candidates, now_s: float, client: str) -> int:
    """Take the one whose turn it is; one that may not take a call loses its turn."""
    turns = candidates.turns
    if turns is None:
        turns = candidates.turns = Turns(candidates.loads, uneven=candidates.uneven, draw=candidates.draw_01)
    loads = candidates.loads
    for _ in range(DRAWS_MAX):
        index = turns.take()
        load = loads[index]
        if load.look_until_s <= now_s or candidates.admits(load, now_s, client):
            return index
    return candidates.search(now_s, client, index)


def least_connections(candidates: Candidates, now_s: float, client: str, queue: LeastQueue) -> int:
    """Take the one with the fewest calls in flight for its weight, of those that may take a call."""

    def refuses(load: Load) -> bool:
        return load.look_until_s > now_s and not candidates.admits(load, now_s, client)

    index = queue.take(refuses, DRAWS_MAX)
    return index if index >= 0 else candidates.draw_admitted(now_s, client)


# What needs nothing but the candidates.
PLAIN: Final[dict[str, Callable[[Candidates, float, str], int]]] = {
    "p2c": p2c,
    "round_robin": round_robin,
    "weighted_random": weighted_random,
}
