"""Which requests count as work for users, and from which values on the dashboards turn yellow or red."""

from __future__ import annotations

from typing import Final

from grafana.panels import GREEN, RED, YELLOW, Steps

REQUESTS: Final = "http_requests_total"
DURATION: Final = "http_request_duration_seconds"

# Probes and scrapes are no users, and watches wait on purpose: both would hide what callers see.
SERVED: Final = 'route!~"/(health|ready|metrics)|/v1/(health|catalog)/.*|.*/watch"'
FAILED: Final = 'status=~"5.."'

# Shares of requests. Yellow is where the budget of a 99.9 % objective is being eaten, red where CreditsHighErrorRate fires.
ERROR_STEPS: Final[Steps] = ((None, GREEN), (0.001, YELLOW), (0.05, RED))
# Seconds. 80 ms is the product's target for the 99th percentile, 1 s where CreditsSlowTransactions fires.
LATENCY_STEPS: Final[Steps] = ((None, GREEN), (0.08, YELLOW), (1, RED))
# Seconds that the event loop was late: what every request in the process waits in addition. Red is where ShieldxEventLoopLag
# fires.
LAG_STEPS: Final[Steps] = ((None, GREEN), (0.05, YELLOW), (0.2, RED))
# Share of a pool's connections that are in use; red is where CreditsDatabasePoolExhausted fires.
POOL_STEPS: Final[Steps] = ((None, GREEN), (0.7, YELLOW), (0.9, RED))
# Entries that Redis has applied and the chain does not hold yet; red is where CreditsChainLagging fires.
CHAIN_LAG_STEPS: Final[Steps] = ((None, GREEN), (500, YELLOW), (2_000, RED))

BREAKER_WORDS: Final = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}
"""What shieldx_breaker_state tells by number."""
