"""The Prometheus series of webhooks. No endpoint is named: their number is the clients' affair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from app.metrics import labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from app.webhooks.delivery import Deliverer


class WebhookSeries:
    """Reads the deliverer at every scrape."""

    def __init__(self, deliverer: Callable[[], Deliverer | None]) -> None:
        """`deliverer` returns None before webhooks are open."""
        self._deliverer = deliverer

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        one = self._deliverer()
        counts = (0, 0, 0) if one is None else (one.delivered, one.failed_attempts, one.given_up)
        yield labelled(
            CounterMetricFamily, "shieldx_webhook_deliveries", "Attempts by how they ended, and deliveries given up",
            "result", zip(("delivered", "failed", "given_up"), counts, strict=True),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "shieldx_webhook_backlog", "Deliveries of all replicas that are due or wait for another attempt",
            value=0 if one is None else one.backlog,
        )  # fmt: skip
