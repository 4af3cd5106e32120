"""What /metrics says of the breakers before our own stores."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from app.breaker import STORE_POLICY, Breaker
from app.breaker_series import BreakerSeries


def test_breakers_of_one_name_are_told_by_the_worst_state_and_all_openings() -> None:
    now_s = 100.0
    registry, series = CollectorRegistry(), BreakerSeries(lambda: now_s)
    registry.register(series)
    failing, well, other = (series.add(Breaker(name, STORE_POLICY)) for name in ("redis s00", "redis s00", "postgres"))

    for _ in range(3):
        failing.record(now_s, ok=False)
    well.record(now_s, ok=True)
    other.record(now_s, ok=True)

    assert registry.get_sample_value("shieldx_breaker_state", {"name": "redis s00"}) == 2
    assert registry.get_sample_value("shieldx_breaker_opened_total", {"name": "redis s00"}) == 1
    assert registry.get_sample_value("shieldx_breaker_state", {"name": "postgres"}) == 0
    now_s += STORE_POLICY.open_s
    assert registry.get_sample_value("shieldx_breaker_state", {"name": "redis s00"}) == 1
