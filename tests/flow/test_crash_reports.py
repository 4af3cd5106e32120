"""An unknown fault in a task that nobody awaits is reported as a crash, whatever the task was at."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from app.audit.shard import Shard
from app.credits.ledger import Ledger, ScriptBroke
from app.credits.upkeep import Upkeep
from app.db.redis import RedisLink
from app.db.topology import make_topology
from app.shadow.steward import Steward

if TYPE_CHECKING:
    from collections.abc import Callable

FAULT = LookupError("nobody has thought of this")
NOTHING = cast("Any", None)


def fail(*_: object) -> Any:
    """Stand in for a part that has a fault."""
    raise FAULT


def upkeep() -> Upkeep:
    return Upkeep(NOTHING, NOTHING, cast("Any", SimpleNamespace(reload=fail)), fail)


def steward() -> Steward:
    return Steward(fail, NOTHING, NOTHING, "replica")


def sweeping(fault: Exception) -> Ledger:
    """A ledger whose sweep of expired holds meets this fault."""

    class Faulty(Ledger):
        def submit(self, _fields: list[dict[str, Any]]) -> Any:
            raise fault

    shard = Shard(0, "shieldx/test/s00")
    shard.leading, shard.state = True, "open"
    return Faulty(shard, NOTHING, RedisLink(make_topology("redis://localhost:1"), "{s00}:"), NOTHING, NOTHING)


@pytest.mark.parametrize("make", [upkeep, steward, lambda: sweeping(FAULT)], ids=["upkeep", "steward", "sweep"])
async def test_a_fault_that_nobody_knows_is_a_crash(make: Callable[[], Upkeep | Steward | Ledger]) -> None:
    crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    part = make()

    part.start(crashed.set_result)

    async with asyncio.timeout(10):
        assert await crashed is FAULT
    await part.stop()


async def test_a_sweep_that_breaks_the_script_ends_the_sweeps_alone(caplog: pytest.LogCaptureFixture) -> None:
    crashes: list[BaseException] = []
    ledger = sweeping(ScriptBroke("the script"))

    ledger.start(crashes.append)

    async with asyncio.timeout(10):
        while "holds are not expired any more" not in caplog.text:
            await asyncio.sleep(0)
    await ledger.stop()
    assert crashes == []
