"""The Prometheus series of access: attempts that were denied, requests over a limit. No key and no tenant is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily

from app.metrics import labelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from app.access.opening import Access

# The reasons of `app.access.table` that are noted, and those of the gate.
REASONS: Final = ("missing", "malformed", "unknown", "revoked", "expired", "forbidden", "foreign_tenant")


class AccessSeries:
    """Reads the parts of access at every scrape."""

    def __init__(self, access: Access) -> None:
        """`access` may not be open yet."""
        self._access = access

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        access = self._access
        denied = dict.fromkeys(REASONS, 0) | access.denials.denied
        yield labelled(CounterMetricFamily, "shieldx_access_denied", "Requests denied by reason", "reason", denied.items())
        refused = {"key": 0, "tenant": 0} if access.limits is None else access.limits.refused
        yield labelled(
            CounterMetricFamily, "shieldx_rate_limited", "Requests answered 429 by whose rate limit was used up", "by",
            refused.items(),
        )  # fmt: skip
