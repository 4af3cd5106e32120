"""What the registry does by itself, every second: tells heartbeats to other replicas, and judges silence.

Whoever is silent for long enough is put to Redis, which knows the heartbeats of all replicas and removes only so many in
a minute. While Redis is away a replica that was alone judges by itself, and one that was not gives everybody time: what
it does not hear may be heard elsewhere. The same holds for the time in which this process itself did not run.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from app.actor import ActorStopped, InboxFull
from app.locator.record import split_field
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.feed import Feed
    from app.locator.record import Record
    from app.locator.registry import Answer, Change, Registry

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
# A tick that is later than this judges nobody: heartbeats that have arrived may not have been read yet.
DELAYED_S: Final = 0.25
# Later than this, the process did not run, and everybody gets the time that was lost. Below, it is in the margin between
# the interval of heartbeats and suspicion; a busy machine, whose ticks are always a little late, still finds the dead.
LATE_S: Final = 2.0
BEATS_MAX: Final = 500  # of one change: about 2 ms of Redis
MOTIONS_MAX: Final = 1_000  # of one tick; the rest follow at the next
KEPT_PAUSE_S: Final = 5.0  # before the next removal is tried, once there were enough of them for this minute
PURGE_TICKS: Final = 60


class Upkeep:
    """One task. `tick` is what it does each second."""

    def __init__(
        self,
        registry: Registry,
        feed: Feed,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        shuffle: Callable[[list[tuple[str, Record, str]]], None] = random.shuffle,
        also: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`also` is called with every tick; `shuffle` orders motions, because only some may pass."""
        self._registry = registry
        self._directory = registry.directory
        self._feed = feed
        self._clock_s = clock_s
        self._shuffle = shuffle
        self._also = also
        self._task: asyncio.Task[None] | None = None
        self._due_s = clock_s()
        self._ticks = 0
        self._passed = False  # the last tick, without a judgement
        self._evict_after_s = 0.0
        self._proposed: set[str] = set()  # motions under way
        self.extended_s = 0.0  # given to all instances since the start
        self.kept = 0  # removals that were put off because too many were silent at once

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin with the next second."""
        self._due_s = self._clock_s() + TICK_S
        self._task = asyncio.create_task(self._run(on_crash), name="registry upkeep")

    async def stop(self) -> None:
        """End, and tell the heartbeats that have not been told."""
        if self._task is not None:
            await end_task(self._task)
        self._tell_beats()

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        try:
            while True:
                await asyncio.sleep(max(0.0, self._due_s - self._clock_s()))
                self.tick()
        except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
            on_crash(error)

    def tick(self) -> None:
        """Do what is due. Reads the clock once; needs no event loop to be judged right."""
        now_s = self._clock_s()
        late_s = now_s - self._due_s
        self._due_s = now_s + TICK_S
        if late_s > LATE_S:
            self._extend(late_s)
        self._passed = late_s > DELAYED_S and not self._passed
        self._ticks += 1
        if self._feed.loaded:
            self._tell_beats()
            if not self._passed:
                self._judge(now_s)
        if self._ticks % PURGE_TICKS == 0:
            self._directory.purge(now_s)
        self._also(now_s)

    def _extend(self, seconds: float) -> None:
        self._directory.extend(seconds)
        self.extended_s += seconds

    def _tell_beats(self) -> None:
        """Tell the heartbeats; without any, the call still says that this replica lives."""
        renewed = self._directory.take_renewed()
        for start in range(0, max(1, len(renewed)), BEATS_MAX):
            part = renewed[start : start + BEATS_MAX]

            def settle(answer: Answer | None, _: Exception | None, part: list[tuple[str, str]] = part) -> None:
                if answer is None:
                    self._directory.renewed = dict(part) | self._directory.renewed

            self._submit(self._registry.beat(part), settle)

    def _judge(self, now_s: float) -> None:
        if not self._feed.following:
            if len(self._registry.replicas) > 1:
                self._extend(TICK_S)
            else:
                self._directory.doubt(now_s)
            return
        silent = self._directory.silent(now_s, evicting=now_s >= self._evict_after_s)
        motions = [one for one in silent if one[0] not in self._proposed]
        self._shuffle(motions)
        for field, record, kind in motions[:MOTIONS_MAX]:
            self._propose(field, record, kind)

    def _propose(self, field: str, record: Record, kind: str) -> None:
        def settle(answer: Answer | None, _: Exception | None) -> None:
            self._proposed.discard(field)
            if answer is not None:
                self._decided(field, record, answer)

        if self._submit(self._registry.judge(kind, field, record), settle):
            self._proposed.add(field)

    def _decided(self, field: str, record: Record, answer: Answer) -> None:
        if answer.word == "kept":
            self.kept += 1
            self._evict_after_s = self._clock_s() + KEPT_PAUSE_S
        elif answer.word == "fresh":
            record.renew(max(record.renewed_s, self._clock_s() - answer.number / 1000))
            record.overdue = False
            if record.judge():
                name, id_ = split_field(field)
                service = self._directory.get(name)
                if service is not None:
                    self._directory.restate(service, (id_,), self._clock_s())

    def _submit(self, change: Change, settle: Callable[[Answer | None, Exception | None], None]) -> bool:
        try:
            self._registry.submit(change, settle)
        except (InboxFull, ActorStopped):
            settle(None, None)
            return False
        return True
