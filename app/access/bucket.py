"""Token buckets in exact integers: the numbers that `lua/rate_limit.lua` and the local fall-back share. Pure.

The header fields are those of draft-ietf-httpapi-ratelimit-headers, revisions 08 to 10 (2024-10 to 2025-09), which is not
an RFC yet: RateLimit-Policy with `q` (quota) and `w` (window in seconds), RateLimit with `r` (remaining) and `t`
(seconds). What the values mean for a token bucket is said at the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.access.scope import Rate

UNITS: Final = 1_000_000_000  # of one token; as in lua/rate_limit.lua
BURST_MAX: Final = 1_000_000  # tokens; 10^15 units stay exact in Lua
RATE_MAX_PER_S: Final = 1_000_000  # of a key, and of an account
_SECOND_US: Final = 1_000_000


class Bucket(NamedTuple):
    """One bucket that a request draws from.

    policy   short word for the header fields and the Redis key, such as `key` or `tenant`
    name     whose bucket it is: a key id or a tenant
    rate_milli  1/1000 token a second, at least 1: slower is no limit but a ban
    burst    tokens that it holds
    """

    policy: str
    name: str
    rate_milli: int
    burst: int

    @property
    def window_s(self) -> int:
        """Whole seconds in which an empty bucket fills, at least 1: `w` of its policy."""
        return max(1, -(-self.burst * 1000 // self.rate_milli))

    @property
    def quota(self) -> int:
        """Tokens that can be had in a window: `q` of its policy; the burst, or more where it fills within a second."""
        return max(self.burst, self.rate_milli * self.window_s // 1000)


def bucket_of(policy: str, name: str, rate: Rate) -> Bucket:
    """Return the bucket of a rate: to the nearest 1/1000 token a second."""
    return Bucket(policy, name, max(1, round(rate.per_s * 1000)), rate.burst)


class Decision(NamedTuple):
    """Whether a request may go on, and what its buckets hold afterwards.

    refused   the bucket that had too little, None if the request may go on
    wait_us   microseconds until all its buckets will have enough, 0 if they had
    levels    units in each bucket
    local     decided by this process alone, because Redis did not answer in time
    """

    buckets: tuple[Bucket, ...]
    levels: tuple[int, ...]
    refused: Bucket | None
    wait_us: int
    local: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return self.refused is None

    @property
    def retry_after_s(self) -> int:
        """Value of Retry-After: whole seconds until the same request would be let in; at least 1 if it was not."""
        return -(-self.wait_us // _SECOND_US)

    @property
    def limit_field(self) -> str:
        """Value of RateLimit: per policy `r`, the whole tokens left, and `t`, the seconds that they are for.

        `t` is the time until the bucket is full; for a bucket that refused, until it has enough, so that Retry-After
        is never earlier.
        """
        parts = []
        for bucket, units in zip(self.buckets, self.levels, strict=True):
            if bucket is self.refused:
                seconds = self.retry_after_s
            else:
                seconds = -(-(bucket.burst * UNITS - units) // (bucket.rate_milli * _SECOND_US))
            parts.append(f'"{bucket.policy}";r={units // UNITS};t={seconds}')
        return ", ".join(parts)

    @property
    def policy_field(self) -> str:
        """Value of RateLimit-Policy."""
        return ", ".join(f'"{bucket.policy}";q={bucket.quota};w={bucket.window_s}' for bucket in self.buckets)


def decision(
    buckets: tuple[Bucket, ...], tokens: int, refused: int, levels: Sequence[int], *, local: bool = False
) -> Decision:
    """Return the decision that an answer of the script means; `refused` counts buckets from 1, 0 for none."""
    if not refused:
        return Decision(buckets, tuple(levels), None, 0, local)
    pairs = zip(buckets, levels, strict=True)
    wait_us = max(-(-(tokens * UNITS - units) // bucket.rate_milli) for bucket, units in pairs)
    return Decision(buckets, tuple(levels), buckets[refused - 1], wait_us, local)


def charge(buckets: Sequence[Bucket], tokens: int) -> int:
    """Return what a request of this many tokens costs: no more than its smallest bucket holds, so that a large batch
    can pass at all, once that bucket is full.
    """
    return max(1, min(tokens, *(bucket.burst for bucket in buckets)))
