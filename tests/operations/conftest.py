"""The live operations stack: one for all tests of this directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.credits.ledger_house import house_of
from tests.operations.live_stack import LiveOperations, live_operations, wait_for
from tests.operations.live_traffic import bring_traffic
from tests.stores import run_apart, store_directory


@pytest.fixture(scope="package")
def operations(pytestconfig: pytest.Config) -> Iterator[LiveOperations]:
    """A server of its own on a ledger of its own, Prometheus, Alertmanager, and traffic that was scraped."""
    house = house_of(pytestconfig)
    ledger = run_apart(house.make_ledger())
    server = house.server_on(ledger, "operations", shards=2)
    run_apart(server.start())
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        directory = stack.enter_context(store_directory("operations"))
        live = stack.enter_context(live_operations(server, ledger, directory))
        wait_for("the first scrape", lambda: live.query('up{job="credits"} == 1'))
        run_apart(bring_traffic(server.url))
        ended_s = time.time()
        wait_for("a scrape after the traffic", lambda: live.query(f'timestamp(up{{job="credits"}} == 1) > {ended_s}'))
        yield live


@pytest.fixture
def live(operations: LiveOperations) -> LiveOperations:
    """The same stack, with the server up: `live.query(expr)` asks Prometheus."""
    if not operations.server.alive:
        run_apart(operations.server.start())
    return operations
