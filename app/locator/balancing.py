"""The strategies: which of the candidates takes the call. Each returns its load, or None when none may.

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

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, get_args

from app.locator.candidates import DRAWS_MAX
from app.locator.ring import ROOM_MIN, position_of
from app.locator.turns import Turns

if TYPE_CHECKING:
    from app.locator.candidates import Candidates
    from app.locator.load import Load
    from app.locator.loads import Loads

    # Given the service, its candidates (at least one), monotonic seconds, who asks, and the key.
    Choose = Callable[[Loads, Candidates, float, str, str], Load | None]

Strategy = Literal["p2c", "round_robin", "least_connections", "weighted_random", "response_time", "consistent_hash"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
SECOND_DRAWS: Final = 4  # for a second candidate, where a heavy one is drawn again and again
COST_UNKNOWN_MS: Final = 1.0  # any figure does while nothing was reported: all have the same


def _two(candidates: Candidates, now_s: float, client: str) -> tuple[Load, Load] | None:
    """Return two candidates that may take a call, by weight: different ones if there are."""
    loads = candidates.loads
    size = len(loads)
    one: Load | None
    two: Load | None
    if size > 1 and not candidates.uneven:
        draw = candidates.draw_01
        index, other = int(draw() * size), int(draw() * (size - 1))
        one, two = loads[index], loads[other if other < index else other + 1]
        if one.look_until_s > now_s and not candidates.admits(one, now_s, client):
            one = candidates.draw_admitted(now_s, client)
        if two.look_until_s > now_s and not candidates.admits(two, now_s, client):
            two = candidates.draw_admitted(now_s, client)
    else:
        one = two = candidates.draw_admitted(now_s, client)
        for _ in range(SECOND_DRAWS if size > 1 else 0):
            two = candidates.draw_admitted(now_s, client)
            if two is not one:
                break
    return None if one is None or two is None else (one, two)


def p2c(_service: Loads, candidates: Candidates, now_s: float, client: str, _key: str) -> Load | None:
    """Take two by weight; of those the one with fewer calls in flight for its weight, or else the first."""
    pair = _two(candidates, now_s, client)
    if pair is None:
        return None
    one, two = pair
    if two.in_flight * one.instance.weight < one.in_flight * two.instance.weight:
        return two
    return one


def response_time(service: Loads, candidates: Candidates, now_s: float, client: str, _key: str) -> Load | None:
    """Take two by weight; of those the one where the call is expected to be answered sooner.

    An instance without a latency of its own is taken for a typical one, so that it neither attracts nor repels.
    """
    pair = _two(candidates, now_s, client)
    if pair is None:
        return None
    one, two = pair
    typical_ms, mean = service.typical_ms or COST_UNKNOWN_MS, candidates.mean_weight
    wait_ms = one.cost(now_s, typical_ms) * (one.in_flight * mean / one.instance.weight + 1)
    return two if two.cost(now_s, typical_ms) * (two.in_flight * mean / two.instance.weight + 1) < wait_ms else one


def weighted_random(_service: Loads, candidates: Candidates, now_s: float, client: str, _key: str) -> Load | None:
    """Take one at random, by weight."""
    return candidates.draw_admitted(now_s, client)


def round_robin(_service: Loads, candidates: Candidates, now_s: float, client: str, _key: str) -> Load | None:
    """Take the one whose turn it is; one that may not take a call loses its turn."""
    turns = candidates.turns
    if turns is None:
        turns = candidates.turns = Turns(candidates.loads, uneven=candidates.uneven, draw=candidates.draw_01)
    for _ in range(DRAWS_MAX):
        load = turns.take()
        if load.look_until_s <= now_s or candidates.admits(load, now_s, client):
            return load
    return candidates.search(now_s, client)


def least_connections(service: Loads, candidates: Candidates, now_s: float, client: str, _key: str) -> Load | None:
    """Take the one with the fewest calls in flight for its weight, of those that may take a call."""
    return service.least(candidates).take(candidates, now_s, client) or candidates.draw_admitted(now_s, client)


def consistent_hash(service: Loads, candidates: Candidates, now_s: float, client: str, key: str) -> Load | None:
    """Take the key's owner, or the next one on the ring that is not too busy. Raises ValueError without a key."""
    if not key:
        raise ValueError("consistent_hash needs a key")
    ring = service.ring_of(candidates, now_s)
    if not ring.loads:
        return None
    point = ring.owner(position_of(key))
    owner = ring.load_at(point)
    if owner.in_flight < ROOM_MIN and owner.look_until_s <= now_s:
        return owner

    def may_take(load: Load) -> bool:
        return load.look_until_s <= now_s or candidates.may_take(load, now_s, client)

    return ring.take(point, service.in_flight_of(candidates, ring), may_take) or candidates.draw_admitted(now_s, client)


CHOICES: Final[dict[str, Choose]] = {
    "p2c": p2c,
    "round_robin": round_robin,
    "least_connections": least_connections,
    "weighted_random": weighted_random,
    "response_time": response_time,
    "consistent_hash": consistent_hash,
}
assert tuple(CHOICES) == STRATEGIES
