"""The scenarios by name, and the accounts that they need."""

import asyncio
from typing import Final

from bench.load import LoadSpec, run_load
from bench.rounds import Contestant, Scenario
from bench.servers import Servers
from bench.shadow_load import Assign, ReportOutcomes
from bench.workloads import (
    Consume,
    ConsumeBatch,
    CreateAccounts,
    Mixed,
    ReadBalance,
    ReserveCommit,
    TopUpBatch,
)

TENANTS: Final = 10_000  # accounts that spread load is spread over
BALANCE: Final = 10**12  # credits of every account: more than any run consumes, and a legal amount
OPEN_CONNECTIONS: Final = 128  # connections of open-loop runs: at 80 ms an answer they carry 1,600 tasks/s
BATCH_CONNECTIONS: Final = 8  # connections of batch runs: one batch is read while others are applied
SETUP_CONNECTIONS: Final = 128  # connections that create accounts
SETUP_BATCH: Final = 500  # top-ups per batch while setting up
# Batches at once while setting up: two of 500 are answered within their time limit even at 1,000 top-ups/s.
SETUP_BATCH_CONNECTIONS: Final = 2
SETUP_DRAIN_SECONDS: Final = 3_600.0  # seconds; setting up ends by its count; a million accounts take minutes
CONSUME_RATE_PER_S: Final = 1_500.0
PAIR_RATE_PER_S: Final = 500.0
READ_RATE_PER_S: Final = 1_000.0
ASSIGN_RATE_PER_S: Final = 500.0
OUTCOMES_BATCH: Final = 100


class SetupError(Exception):
    """Accounts could not be made or filled, so nothing measured on them would mean anything."""


def scenarios(tenants: int = TENANTS) -> dict[str, Scenario]:
    """All scenarios, by name, over `tenants` accounts; the hot account is the first of them."""
    spread = Contestant("consume", "shieldx", Consume(tenants))
    hot = Contestant("consume hot", "shieldx", Consume(1))
    ceiling = Contestant("ceiling", "ceiling", Consume(tenants))
    peer = Contestant("plain postgres", "postgres", Consume(tenants))
    peer_hot = Contestant("plain postgres hot", "postgres", Consume(1))
    listed = (
        Scenario("consume", f"consume on {tenants:,} tenants, against the ceiling", (spread, ceiling)),
        Scenario("hot", "consume on one hot tenant, against spread load", (hot, spread)),
        Scenario("postgres", "consume on many tenants, against plain Postgres", (spread, peer)),
        Scenario("postgres-hot", "consume on one hot tenant, against plain Postgres", (hot, peer_hot)),
        Scenario("steady", "consume, open loop", (spread,), OPEN_CONNECTIONS, CONSUME_RATE_PER_S),
        Scenario(
            "reserve",
            "reserve and commit, open loop",
            (Contestant("reserve+commit", "shieldx", ReserveCommit(tenants)),),
            OPEN_CONNECTIONS,
            PAIR_RATE_PER_S,
        ),
        Scenario(
            "balance",
            "account read, open loop",
            (Contestant("balance", "shieldx", ReadBalance(tenants)),),
            OPEN_CONNECTIONS,
            READ_RATE_PER_S,
        ),
        Scenario("mixed", "60 % consume, 15 % reserve+commit, 20 % read, 5 % top-up", (_mixed(tenants),)),
        *(_batch(size, tenants) for size in (100, 1_000)),
        Scenario("ceiling", "the constant answer alone", (ceiling,)),
        Scenario("peer", "plain Postgres alone, spread and hot", (peer, peer_hot)),
        Scenario(
            "assign",
            "units assigned to variants, open loop: fixed split, and Thompson sampling",
            (
                Contestant("assign fixed", "shieldx", Assign("bench-fixed")),
                Contestant("assign Thompson", "shieldx", Assign("bench-thompson")),
            ),
            OPEN_CONNECTIONS,
            ASSIGN_RATE_PER_S,
        ),
        Scenario(
            "outcomes",
            f"outcomes in batches of {OUTCOMES_BATCH}",
            (Contestant("outcomes", "shieldx", ReportOutcomes("bench-fixed", OUTCOMES_BATCH)),),
            BATCH_CONNECTIONS,
        ),
    )
    return {scenario.name: scenario for scenario in listed}


def _mixed(tenants: int) -> Contestant:
    return Contestant("mixed", "shieldx", Mixed(tenants))


def _batch(size: int, tenants: int) -> Scenario:
    name = f"batch of {size:,}"
    contestant = Contestant(name, "shieldx", ConsumeBatch(tenants, size))
    return Scenario(f"batch{size}", f"{name} consume operations", (contestant,), BATCH_CONNECTIONS)


SHADOW_NAMES: Final = frozenset({"assign", "outcomes"})
DEFAULT_NAMES: Final = tuple(name for name in scenarios() if name not in {"ceiling", "peer"} | SHADOW_NAMES)
"""What runs when none is named: the two left out are parts of others, and experiments have a bench of their own."""


def needed_servers(chosen: list[Scenario]) -> frozenset[str]:
    """Names of the servers that `chosen` need."""
    return frozenset(contestant.server for scenario in chosen for contestant in scenario.contestants)


async def make_accounts(servers: Servers, first: int, count: int, *, bar: bool) -> None:
    """Create the accounts `first` to `first + count - 1` and give each BALANCE credits, through the API.

    faults  SetupError when any call is refused
    """
    for label, workload, connections in (
        ("create accounts", CreateAccounts(first, count), min(SETUP_CONNECTIONS, count)),
        ("top up", TopUpBatch(first, count, BALANCE, SETUP_BATCH), SETUP_BATCH_CONNECTIONS),
    ):
        spec = LoadSpec(
            label=label,
            origin=servers.origin("shieldx"),
            workload=workload,
            connections=connections,
            seconds=0,
            drain_seconds=SETUP_DRAIN_SECONDS,
            bar=bar,
        )
        result = await run_load(spec)
        if result.errors or result.failed_operations or result.operations != count:
            raise SetupError(
                f"{label}: {result.operations} of {count} done, {result.failed_operations} failed, "
                f"statuses {result.statuses}"
            )
        # The connections of one step are closed before the next opens its own.
        await asyncio.sleep(0)
