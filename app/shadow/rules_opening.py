"""Everything of rules in one process: there from the start, open once Postgres and Redis are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from app.shadow.rules_book import RuleBook
from app.shadow.rules_calls import RuleCalls
from app.shadow.rules_exchange import Exchange
from app.shadow.rules_store import RuleStore
from app.shadow.rules_trial import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from app.db.redis import RedisLink
    from app.db.statements import Statements
    from app.metrics import Metrics


class _Series:
    """What this process compared. Rules are not told apart: their reports do that."""

    def __init__(self, trials: Callable[[], Trials | None]) -> None:
        self._trials = trials

    def collect(self) -> Iterator[Metric]:
        trials = self._trials()
        compared, dropped, waiting = (0, 0, 0) if trials is None else (trials.compared, trials.dropped, trials.waiting)
        yield CounterMetricFamily("shieldx_rules_compared", "Evaluations compared with the challenger's", compared)
        yield CounterMetricFamily("shieldx_rules_dropped", "Comparisons dropped because too many waited", dropped)
        yield GaugeMetricFamily("shieldx_rules_waiting", "Evaluations that wait to be compared", waiting)


class Rules:
    """The parts, and their life. `calls` is None before `open`."""

    def __init__(self, metrics: Metrics) -> None:
        """Make nothing yet: the parts need the stores."""
        metrics.add(_Series(lambda: self.trials).collect)
        self.calls: RuleCalls | None = None
        self.book: RuleBook | None = None
        self.trials: Trials | None = None
        self.exchange: Exchange | None = None

    def open(self, statements: Statements, link: RedisLink, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to follow rules, to compare and to publish. Several replicas may do so on one database.

        link  a connection to Redis of its own; opened and closed here
        """
        store = RuleStore(statements)
        self.book = RuleBook(store)
        self.trials = Trials()
        self.exchange = Exchange(link, store, self.book, self.trials)
        self.calls = RuleCalls(store, self.book, self.trials, self.exchange)
        self.book.start(on_crash)
        self.trials.start(on_crash)
        self.exchange.start(on_crash)

    async def close(self) -> None:
        """Compare no more, and keep what was counted."""
        if self.trials is not None:
            await self.trials.stop()
        if self.exchange is not None:
            await self.exchange.stop()
        if self.book is not None:
            await self.book.stop()
