"""Which variant of a fixed split a unit gets: the hash of GrowthBook's SDK specification, version 2, and its ranges. Pure.

To the bit: FNV-1a of 32 bits over the UTF-8 bytes of seed + unit; the result as decimal digits; FNV-1a of 32 bits over those
digits; the remainder by 10,000, divided by 10,000. Any implementation of that specification gives the same bucket for ASCII
names (the SDKs differ from one another outside ASCII). Variants own ranges of [0, 1) whose starts depend on the weights
alone, so that a change of coverage moves no unit from one variant to another.

Source: GrowthBook, "Build your own SDK", sections hash, getBucketRange, chooseVariation; its vectors are in the tests.
FNV-1a: RFC 9923.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKETS: Final = 10_000  # steps of the hash: the finest split is 0.01 %
_FNV_OFFSET: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193
_FNV_MASK: Final = 0xFFFFFFFF
_SEEDS_CACHED: Final = 10_000  # as many as there can be experiments: 2 MB
# Each bucket as the float that `bucket_of` returns: shares are counted with the comparisons that assignment makes.
_VALUES: Final = tuple(number / BUCKETS for number in range(BUCKETS))

Ranges = tuple[tuple[float, float], ...]


def _fnv1a32(data: bytes, value: int = _FNV_OFFSET) -> int:
    """Return FNV-1a of 32 bits, RFC 9923, section 2; `value` is that of the bytes before, if there are any."""
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & _FNV_MASK
    return value


@lru_cache(maxsize=_SEEDS_CACHED)
def _begun(seed: str) -> int:
    return _fnv1a32(seed.encode())


def bucket_of(seed: str, unit: str) -> float:
    """Return the bucket of a unit: 0.0 to 0.9999 in steps of 1/10,000, uniform over units.

    seed  of the experiment; two seeds put the units in order independently of one another
    cost  about 0.1 us per byte of the unit, and 1 us
    """
    inner = _fnv1a32(unit.encode(), _begun(seed))
    return _fnv1a32(str(inner).encode()) % BUCKETS / BUCKETS


def ranges_of(weights: Sequence[float], coverage: float = 1.0) -> Ranges:
    """Return the range [start, end) of each variant.

    weights   of the variants, not negative, some above 0; only their proportions count
    coverage  0 to 1, the part of each variant's range that is in the experiment; the start of a range does not depend on it
    faults    ValueError that names what is wrong
    """
    if not weights or any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise ValueError("weights must be numbers from 0 up")
    total = sum(weights)
    if not 0 < total < math.inf:
        raise ValueError("the weights need a finite sum above 0")
    if not 0 <= coverage <= 1:
        raise ValueError("coverage must be from 0 to 1")
    shares = [weight / total for weight in weights]
    starts = accumulate(shares[:-1], initial=0.0)
    return tuple((start, start + coverage * share) for start, share in zip(starts, shares, strict=True))


def index_in(ranges: Ranges, bucket: float) -> int | None:
    """Return which range holds the bucket, None when none does: the unit is not in the experiment."""
    for index, (start, end) in enumerate(ranges):
        if start <= bucket < end:
            return index
    return None


def shares_of(ranges: Ranges) -> tuple[float, ...]:
    """Return the exact probability of each variant: its part of the 10,000 buckets, as `index_in` hands them out.

    This is the propensity to log for a fixed split. Three equal weights own 3,334, 3,333 and 3,333 buckets, so it differs
    from the weights by up to 1/10,000. The sum is the part of all units that is in the experiment.
    """
    return tuple((bisect_left(_VALUES, end) - bisect_left(_VALUES, start)) / BUCKETS for start, end in ranges)
