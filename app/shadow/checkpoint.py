"""Saves the counters of experiments to Postgres every two seconds, as long as they change.

Each round asks Redis, not this process, what has changed: so the outcomes of a replica that has died are saved by the
others, and what one replica has saved no other saves again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import asyncpg
from redis.exceptions import RedisError

from app.db.retry import TRANSIENT
from app.shadow.counters import Forgot
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.catalog import Catalog
    from app.shadow.counters import Counters
    from app.shadow.experiment import Experiment

log = logging.getLogger(__name__)

# A lost Redis may cost 5 seconds of outcomes: two rounds that take their time stay below.
SAVE_INTERVAL_S: Final = 2.0
FORGET_INTERVAL_S: Final = 3_600.0  # events are forgotten by the hour
AT_ONCE: Final = 2  # saves side by side: as many as leave a connection for changes


class Checkpoints:
    """The loop described above, as one task; every replica runs one."""

    def __init__(self, catalog: Catalog, counters: Counters, on_saved: Callable[[Experiment], None]) -> None:
        """`on_saved` hears of experiments with new totals: whoever merged them may have died before it looked at them."""
        self._catalog = catalog
        self._on_saved = on_saved
        self._counters = counters
        self._task: asyncio.Task[None] | None = None
        self._forgot_s = 0.0
        self._room = asyncio.Semaphore(AT_ONCE)

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin with a round at once; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="experiment checkpoints")

    async def stop(self) -> None:
        """Save what has changed, as far as the stores answer, and end."""
        if self._task is not None:
            await end_task(self._task)
            with contextlib.suppress(*TRANSIENT, RedisError, asyncpg.PostgresError):
                await self.round()

    async def round(self) -> int:
        """Save every experiment that has changed; return how many that were. Raises what the stores raise."""
        experiments = list(self._catalog)
        places = await self._counters.places([one.definition.name for one in experiments])
        changed = [
            one for one, found in zip(experiments, places, strict=True)
            if (found is not None and found.seq > found.saved) or (found is None and one.seq > 0)
        ]  # fmt: skip
        await asyncio.gather(*map(self._save_in_turn, changed))
        return len(changed)

    async def _save_in_turn(self, experiment: Experiment) -> None:
        async with self._room:
            try:
                await self.save(experiment)
            except Forgot:
                if await experiment.restore():
                    log.warning("redis forgot an experiment", extra={"experiment": experiment.definition.name})

    async def save(self, experiment: Experiment) -> None:
        """Save one experiment. Raises Forgot."""
        name = experiment.definition.name
        found = await self._counters.snapshot(name)
        new = range(experiment.weights_saved + 1, found.version + 1)
        weights = await self._counters.weights(name, new)
        await self._catalog.store.save(name, found.seq, found.totals, found.latency, found.journal, weights)
        if experiment.is_behind(found.seq, found.born):
            experiment.totals, experiment.latency = found.totals, found.latency
            experiment.saw(found.seq, found.born)
            self._on_saved(experiment)
        experiment.saved = max(experiment.saved, found.seq)
        experiment.weights_saved = max(experiment.weights_saved, found.version)
        await self._counters.saved(name, found)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.round()
                if loop.time() - self._forgot_s > FORGET_INTERVAL_S:
                    await self._catalog.store.forget_events()
                    self._forgot_s = loop.time()
            except (*TRANSIENT, RedisError, asyncpg.PostgresError) as error:
                log.warning("experiments not saved", extra={"reason": f"{type(error).__name__}: {error}"})
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
            await asyncio.sleep(SAVE_INTERVAL_S)
