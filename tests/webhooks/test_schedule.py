"""The schedule of the specification, with jitter."""

from __future__ import annotations

import pytest

from app.webhooks.schedule import ATTEMPTS_MAX, JITTER, next_delay_s

HOUR_S = 3_600


def test_ten_attempts_at_the_times_of_the_specification() -> None:
    delays = [next_delay_s(attempt, draw=lambda: 0.0) for attempt in range(1, ATTEMPTS_MAX + 1)]

    assert delays == [
        5, 300, 1_800, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S, 24 * HOUR_S, None,
    ]  # fmt: skip


@pytest.mark.parametrize("attempt", range(1, ATTEMPTS_MAX))
def test_jitter_only_adds(attempt: int) -> None:
    least, most = next_delay_s(attempt, draw=lambda: 0.0), next_delay_s(attempt, draw=lambda: 1.0)

    assert least is not None
    assert most == pytest.approx(least * (1 + JITTER))
    assert least <= (next_delay_s(attempt) or 0) <= most


def test_a_pause_that_was_asked_for_is_kept() -> None:
    assert next_delay_s(1, 600.0, draw=lambda: 0.0) == 600.0
    assert next_delay_s(2, 10.0, draw=lambda: 0.0) == 300.0
    assert next_delay_s(ATTEMPTS_MAX, 600.0) is None
