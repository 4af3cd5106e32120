"""When a message that did not arrive is sent again: the schedule of the Standard Webhooks specification. Pure."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
# Seconds between an attempt and the next one. The first attempt is made at once; ten attempts in all, over three days.
DELAYS_S: Final = (
    5, 5 * _MINUTE_S, 30 * _MINUTE_S, 2 * _HOUR_S, 5 * _HOUR_S, 10 * _HOUR_S, 14 * _HOUR_S, 20 * _HOUR_S, 24 * _HOUR_S,
)  # fmt: skip
ATTEMPTS_MAX: Final = len(DELAYS_S) + 1
JITTER: Final = 0.2  # of the delay, added: what failed together does not come back together


def next_delay_s(attempts: int, asked_s: float | None = None, draw: Callable[[], float] = random.random) -> float | None:
    """Return the seconds to wait after attempt number `attempts`, counted from 1; None when it was the last.

    asked_s  what the endpoint asked for by Retry-After: it is never sent to earlier than that
    draw     gives [0, 1)
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    return max(DELAYS_S[attempts - 1], asked_s or 0.0) * (1 + JITTER * draw())
