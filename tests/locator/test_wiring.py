"""The locator in the application: its metrics have bounded labels, and a process runs only the services it is told to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.locator.opening import Locator
from app.main import make_app
from app.metrics import Metrics
from app.settings import Settings
from tests.locator.replicas import replicas
from tests.locator.test_watching import change

LABELS = {"state", "strategy", "ok"}


def locator_series(text: str) -> Iterator[str]:
    """Yield the lines of the locator's series."""
    return (line for line in text.splitlines() if line.startswith("shieldx_locator_"))


async def test_metrics_count_what_happened_and_name_no_service(redis_url: str) -> None:
    async with replicas(redis_url, 1) as (one,):
        one.directory.apply([change(2, "a", "secret-service"), change(3, "b", "secret-service")], 0.0)
        one.series.count_lookup("p2c", panic=True)
        one.series.count_report(ok=False)

        lines = list(locator_series(one.metrics.text().decode()))

    assert 'shieldx_locator_instances{state="up"} 2.0' in lines
    assert 'shieldx_locator_lookups_total{strategy="p2c"} 1.0' in lines
    assert "shieldx_locator_panics_total 1.0" in lines
    assert 'shieldx_locator_reports_total{ok="false"} 1.0' in lines
    assert "shieldx_locator_following 1.0" in lines
    assert not any("secret" in line for line in lines)
    assert {line.partition("{")[2].partition("=")[0] for line in lines if "{" in line} == LABELS


def test_series_can_be_read_before_the_start() -> None:
    metrics = Metrics()
    Locator((), metrics)

    assert "shieldx_locator_following 0.0" in metrics.text().decode()


@pytest.mark.parametrize("services", [("credits",), ("locator",), ("credits", "locator")], ids=str)
def test_a_process_has_the_routes_of_the_services_that_it_runs(services: tuple[str, ...]) -> None:
    app = make_app(Settings(root_key="r" * 16, services=services), on_crash=lambda _: None)

    paths = {route.resource.canonical for route in app.router.routes() if route.resource is not None}

    assert ("/v1/accounts" in paths) == ("credits" in services)
    assert ("/v1/services/{service}/lookup" in paths) == ("locator" in services)
    assert "/ready" in paths
