"""Thompson sampling with known probabilities: weights from the posterior, a floor, and a draw that anyone can repeat. Pure.

A unit gets variant i with probability floor + (1 - k floor) P(i is best): the probability matching of Thompson's rule,
computed instead of drawn, so that it can be logged when the unit is assigned. The floor keeps every variant observed,
bounds the bias of adaptive samples, and keeps the evidence of `app.shadow.evidence` flowing. The weights must be fixed
before the unit arrives; they may depend on every earlier outcome.

Sources: W. R. Thompson, "On the likelihood that one unknown probability exceeds another", Biometrika 25, 1933; D. Russo
et al., "A Tutorial on Thompson Sampling", 2018.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from app.shadow.posterior import posterior_parameters, probability_best

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR_DEFAULT: Final = 0.05  # halves the bias that a losing variant's mean suffers (0.0976 instead of 0.0958 at a true 0.1)
_PERSON: Final = b"shieldx-thompson"  # BLAKE2's personalisation: no other use of the hash gives the same numbers
_SEED_LENGTH_BYTES: Final = 4
_DRAW_BITS: Final = 53  # what a float holds exactly


def weights_of(successes: Sequence[int], samples: Sequence[int], floor: float = FLOOR_DEFAULT) -> tuple[float, ...]:
    """Return the probability with which the next unit gets each variant; they sum to 1.

    floor   least probability of a variant, 0 to 1 / number of variants; at the upper end the split is even
    faults  ValueError that names what is wrong
    """
    a, b = posterior_parameters(successes, samples)
    count = len(samples)
    if not 0 <= floor * count <= 1:
        raise ValueError(f"the floor must be from 0 to 1/{count} for {count} variants")
    return with_floor(probability_best(a, b).tolist(), floor)


def with_floor(shares: Sequence[float], floor: float) -> tuple[float, ...]:
    """Return shares that sum to 1 mixed with even ones, so that none is below the floor."""
    return tuple(floor + (1 - len(shares) * floor) * share for share in shares)


def draw(seed: str, unit: str, weights: Sequence[float]) -> int:
    """Return the variant that this unit draws, always the same one for the same arguments.

    To the bit: BLAKE2b with 8 bytes of digest and the personalisation "shieldx-thompson", over the length of the seed's
    UTF-8 as
    4 bytes big-endian, the seed's UTF-8, and the unit's UTF-8. The upper 53 bits of the digest, read big-endian, divided by
    2^53, fall into one of the intervals that the running sums of the weights bound. Independent of `bucketing.bucket_of`.

    weights  not negative; they should sum to 1: what the sum leaves is the last variant's with a weight above 0
    faults   ValueError when no weight is above 0
    source   BLAKE2: RFC 7693
    """
    salt = seed.encode()
    text = len(salt).to_bytes(_SEED_LENGTH_BYTES, "big") + salt + unit.encode()
    digest = blake2b(text, digest_size=8, person=_PERSON).digest()
    place = (int.from_bytes(digest, "big") >> (64 - _DRAW_BITS)) / (1 << _DRAW_BITS)
    bound, chosen = 0.0, None
    for index, weight in enumerate(weights):
        if not 0 <= weight < math.inf:
            raise ValueError("weights must be numbers from 0 up")
        if weight:
            chosen = index
            bound += weight
            if place < bound:
                return index
    if chosen is None:
        raise ValueError("some weight must be above 0")
    return chosen
