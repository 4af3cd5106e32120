"""Consistent hashing with bounded load: a key goes to the owner of the next point on a ring, unless that one is too busy.

An instance has points by its weight: the first so many of a sequence that depends on its id alone, so that all replicas
agree, and a change of membership moves only the keys that it must. Sources: Karger et al. 1997; Mirrokni, Thorup and
Zadimoghaddam 2016 ("Consistent Hashing with Bounded Loads"); splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.locator.load import Load

POINTS: Final = 40  # of an instance of mean weight: shares differ by 1/sqrt(40), and the bound levels them
POINTS_MAX: Final = 64 * POINTS  # of a heavy one
LOAD_FACTOR: Final = 1.25  # an instance takes at most so many times its share of the calls in flight
ROOM_MIN: Final = 4  # and always so many: below that nothing is overloaded, and moving keys costs their caches
POINTS_TRIED: Final = 128  # points that are looked at for one key
INDEX_BITS: Final = 12  # the first bits of a position lead to its part of the ring
PLACE_BITS: Final = 16  # the next ones are its place in that part; the last four tell too few points apart to be kept

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_U32: Final = 0xFFFF_FFFF
_UNUSED_BITS: Final = 32 - INDEX_BITS - PLACE_BITS
_PLACE_MASK: Final = (1 << PLACE_BITS) - 1


def position_of(key: str) -> int:
    """Return where on the ring a key lies: 32 bits, the same in every process.

    CRC-32 gives keys of equal length that differ in a few places different values; the multiplication, by 2^32 over the
    golden ratio, spreads those over the ring.
    """
    return (zlib.crc32(key.encode()) * 0x9E37_79B1) & _U32


def seed_of(instance_id: str) -> int:
    """Return the 64 bits that an instance's points are made from."""
    return int.from_bytes(hashlib.blake2b(instance_id.encode(), digest_size=8).digest())


def _points(seeds: Sequence[int], counts: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return the points of all instances, 64 bits each: position, then the index of the owner."""
    owners = np.repeat(np.arange(len(seeds), dtype=np.uint64), counts)
    starts = np.repeat(np.cumsum(counts) - np.asarray(counts), counts)
    ordinals = (np.arange(len(owners)) - starts + 1).astype(np.uint64)
    mixed: npt.NDArray[np.uint64] = np.repeat(np.asarray(seeds, dtype=np.uint64), counts) + ordinals * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    mixed ^= mixed >> np.uint64(31)
    points = (mixed & np.uint64(_U32 << 32)) | owners
    points.sort()
    return points


def _narrowest(largest: int) -> type[np.uint16 | np.uint32]:
    """Return the smaller type that holds numbers up to `largest`."""
    return np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32


class Ring:
    """The ring of one set of instances. Immutable; building takes about 2 ms for 1,000 of them."""

    __slots__ = ("_first", "_owners", "_places", "loads", "weight_total")

    def __init__(self, loads: Sequence[Load]) -> None:
        """Lay out the points. The order of `loads` does not matter."""
        self.loads: Final = sorted(loads, key=lambda load: load.instance.id)
        weights = [load.instance.weight for load in self.loads]
        self.weight_total: Final = sum(weights)
        mean = self.weight_total / len(weights) if weights else 1.0
        counts = [min(max(round(POINTS * weight / mean), 1), POINTS_MAX) for weight in weights]
        points = _points([seed_of(load.instance.id) for load in self.loads], counts)
        starts = np.arange(1 << INDEX_BITS, dtype=np.uint64) << np.uint64(64 - INDEX_BITS)
        first = np.searchsorted(points, starts)
        self._first = np.append(first, len(points)).astype(_narrowest(len(points))).data
        self._places = (points >> np.uint64(32 + _UNUSED_BITS)).astype(np.uint16).data
        self._owners = (points & np.uint64(_U32)).astype(_narrowest(len(self.loads))).data

    def owner(self, position: int) -> int:
        """Return the number of the first point at or after the position."""
        part = position >> (32 - INDEX_BITS)
        place = position >> _UNUSED_BITS & _PLACE_MASK
        at = bisect_left(self._places, place, self._first[part], self._first[part + 1])
        return at if at < len(self._places) else 0

    def load_at(self, point: int) -> Load:
        """Return the load that owns the point."""
        return self.loads[self._owners[point]]

    def take(self, point: int, in_flight: float, may_take: Callable[[Load], bool]) -> Load | None:
        """Return the load that takes a call: the first owner from the point on that may, and is below its bound.

        in_flight  calls in flight of all instances on the ring
        returns    the least busy of the owners of POINTS_TRIED points when all are at their bound; None when none of
                   them may take a call
        """
        owners, loads = self._owners, self.loads
        size = len(owners)
        room = LOAD_FACTOR * (in_flight + 1) / self.weight_total
        best: Load | None = None
        for step in range(point, point + POINTS_TRIED):
            load = loads[owners[step % size]]
            if not may_take(load):
                continue
            if load.in_flight < ROOM_MIN or load.in_flight < room * load.instance.weight:
                return load
            if best is None or load.in_flight * best.instance.weight < best.in_flight * load.instance.weight:
                best = load
        return best
