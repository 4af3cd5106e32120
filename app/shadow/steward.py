"""What follows from new counts, by itself: rollbacks, crossings, verdicts, weights, steps of canaries.

Each replica looks after every merge of its own, at most ten times a second, at the totals of all replicas: so whoever merges
the outcome that trips a guardrail rolls back, within a fraction of a second. Guardrails are watched by a task that asks no
store: here units get the control at once, whatever statement of whatever experiment the other task waits for, which
then brings the rollback to Postgres. Twice a second it looks for canaries whose step is over, and at what others have merged
where guardrails are watched: they may have died before they looked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final

import asyncpg
import msgspec
from redis.exceptions import RedisError

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.db.retry import TRANSIENT
from app.shadow.assignment import settled
from app.shadow.canary import MS_PER_S, waiting_for
from app.shadow.decision import belief, crossings_of, inputs_of, look_at, verdict_of
from app.shadow.definition import CanaryStep, Rollback
from app.shadow.guardrail import guardrail_inputs, trip_of
from app.shadow.store import Entry
from app.shadow.tallies import counts_of
from app.shadow.thompson import weights_of
from app.turns import end_task, pause
from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.catalog import Catalog
    from app.shadow.decision import Look
    from app.shadow.definition import State
    from app.shadow.experiment import Experiment
    from app.shadow.guardrail import Trip
    from app.shadow.steady import CommonClock, SteadyClock

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 0.1  # a tenth of the second that a rollback may take
CANARY_INTERVAL_S: Final = 0.5  # steps take seconds at least
PROBES: Final = 64  # units that are asked for after a rollback: one that still got a challenger would show
WATCHED_AT_ONCE: Final = 50  # experiments whose totals are read in one go, where others merge: 20 ms
WEIGH_INTERVAL_S: Final = 1.0
BELIEVE_INTERVAL_S: Final = 5.0  # how old the probabilities of the metrics may be
# Outcomes grow by this part between two versions of the weights: so there are at most 1,500 versions in a million outcomes.
WEIGH_GROWTH: Final = 0.01

# What passes by itself: the next look tries again.
LATER: Final = (
    *TRANSIENT, RedisError, asyncpg.PostgresError, Problem, ActorStopped, AskTimeout, InboxFull,
)  # fmt: skip


class Steward:
    """The loop described above, as one task."""

    def __init__(self, catalog: Callable[[], Catalog], clock: SteadyClock, common: CommonClock, replica: str) -> None:
        """`clock` says when something was, `common` how long it took; `replica` is this process's name in entries."""
        self._catalog = catalog
        self._clock = clock
        self._common = common
        self._replica = replica
        self._due: dict[str, Experiment] = {}
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._guarded: dict[str, Experiment] = {}
        self._merged = asyncio.Event()
        self._guard_task: asyncio.Task[None] | None = None
        self._owed: dict[str, Trip] = {}  # rollbacks that are in effect here and that Postgres may not have yet
        self._weighed: dict[str, tuple[float, int]] = {}
        self._later: dict[str, Experiment] = {}
        self._canaries_s = 0.0
        self.rollbacks = 0  # decided by this process since its start

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to look; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="experiment steward")
        self._guard_task = asyncio.create_task(self._guard(on_crash), name="experiment guardrails")

    async def stop(self) -> None:
        """End; another replica, or this one after its start, goes on."""
        for task in (self._task, self._guard_task):
            if task is not None:
                await end_task(task)

    def notice(self, experiment: Experiment) -> None:
        """Look at an experiment soon."""
        self._due[experiment.definition.name] = experiment
        self._woken.set()
        if experiment.definition.guardrails is not None:
            self._guarded[experiment.definition.name] = experiment
            self._merged.set()

    async def look(self, experiment: Experiment) -> None:
        """Do whatever the counts ask for. Raises what the stores raise."""
        state = experiment.state
        if state.rollback is not None and state.rollback.verified_at_ms is None:
            await self.verify(experiment)
            return
        if state.status in {"rolled_back", "archived"} or state.deployment is not None:
            if not experiment.probability_best:  # it was settled before the first look
                await self._believe(experiment)
            return
        name = experiment.definition.name
        trip = self._owed.get(name) or trip_of(experiment.definition, experiment.totals, experiment.cells)
        if trip is not None:
            await self._trip(experiment, trip)
            self._owed.pop(name, None)
            return
        await self._believe(experiment)
        if state.status != "running":
            return
        await self._decide(experiment)
        await self._weigh(experiment)
        await self.step(experiment)

    async def roll_back(self, experiment: Experiment, by: str, reason: str, inputs: dict[str, object]) -> bool:
        """Send all units to the control, for good; return False when that has happened before.

        It is in effect in this process before Postgres has heard of it, and tried again until it has.
        """
        rollback = Rollback(self._clock.now_ms(), by, reason, dict(inputs), common_ms=self._common.ms())
        _settle(experiment)

        def plan(state: State) -> tuple[State, list[Entry]] | None:
            if state.rollback is not None or state.status == "archived":
                return None
            after = msgspec.structs.replace(state, status="rolled_back", rollback=rollback)
            percent = None
            if state.step is not None and experiment.definition.canary is not None:
                percent = experiment.definition.canary.steps[state.step.number]
            details = {"actor": by, "reason": reason, "inputs": inputs, "percent": percent}
            return after, [Entry("experiment.rollback", details)]

        done = await self._catalog().change(experiment, plan)
        if done:
            self.rollbacks += 1
            log.warning("experiment rolled back", extra={"experiment": experiment.definition.name, "reason": reason})
            self.notice(experiment)
        return done

    async def verify(self, experiment: Experiment) -> None:
        """After a rollback, look whether Postgres has it and units get the control here, and record what was found."""
        name, definition = experiment.definition.name, experiment.definition
        row = await self._catalog().store.find(name)
        stored = row is not None and row.state.status in {"rolled_back", "archived"}
        control = definition.names[definition.control]
        found = [experiment.assign_at_once(f"probe-{number}") for number in range(PROBES)]
        elsewhere = sum(one is None or one.variant != control for one in found)
        at_ms, common_ms = self._clock.now_ms(), self._common.ms()

        def plan(state: State) -> tuple[State, list[Entry]] | None:
            if state.rollback is None or state.rollback.verified_at_ms is not None:
                return None
            verified = msgspec.structs.replace(state.rollback, verified_at_ms=at_ms)
            details = {
                "replica": self._replica, "stored": stored, "probes": PROBES, "elsewhere": elsewhere,
                "after_ms": common_ms - state.rollback.common_ms,
            }  # fmt: skip
            return msgspec.structs.replace(state, rollback=verified), [Entry("experiment.rollback_verified", details)]

        if not stored or elsewhere:
            log.error("rollback is not in effect", extra={"experiment": name, "elsewhere": elsewhere})
            return
        await self._catalog().change(experiment, plan)

    async def step(self, experiment: Experiment, *, by: str = "canary", forced: bool = False) -> tuple[str, ...]:
        """Let a canary go on if it may; return what it waits for, nothing when it went on."""
        definition = experiment.definition
        canary, at_ms, common_ms = definition.canary, self._clock.now_ms(), self._common.ms()
        if canary is None:
            return ("there is no canary",)
        waiting: tuple[str, ...] = ()

        def plan(state: State) -> tuple[State, list[Entry]] | None:
            nonlocal waiting
            propensities = experiment.split.stages[0 if state.step is None else state.step.number]
            waiting = waiting_for(definition, state, experiment.totals, propensities, common_ms, forced=forced)
            trip = None if waiting else trip_of(definition, experiment.totals, experiment.cells)
            if trip is not None:
                # Whoever asks for a step may be ahead of the look that rolls back.
                waiting = (trip.reason,)
                self.notice(experiment)
            if waiting or state.step is None:
                return None
            samples = counts_of(experiment.totals, "n", len(definition.variants))
            last = state.step.number == len(canary.steps) - 1
            following = (
                msgspec.structs.replace(state.step, completed=True) if last
                else CanaryStep(state.step.number + 1, at_ms, samples)
            )  # fmt: skip
            look = look_at(definition, experiment.totals, experiment.cells)
            guardrails = guardrail_inputs(definition, experiment.totals, experiment.cells)
            details = {
                "actor": by, "percent": canary.steps[state.step.number],
                "next_percent": None if last else canary.steps[state.step.number + 1],
                "approved": state.step.approved, "after_ms": common_ms - state.began_ms,
                "samples_before": dict(zip(definition.names, state.step.samples, strict=True)),
                "min_samples": canary.min_samples, "min_seconds": canary.min_seconds, "guardrails": "hold",
                "failures": {letter: counts_of(experiment.totals, letter, len(samples)) for letter in "eol"},
                "inputs": inputs_of(definition, look) | {"guardrails": guardrails},
            }  # fmt: skip
            kind = "experiment.canary_completed" if last else "experiment.step"
            began_ms = state.stage_ms if last else common_ms
            return msgspec.structs.replace(state, step=following, stage_ms=began_ms), [Entry(kind, details)]

        await self._catalog().change(experiment, plan)
        return waiting

    async def _trip(self, experiment: Experiment, trip: Trip) -> None:
        inputs = {"variant": trip.variant, "guardrail": trip.guardrail, "test": trip.test, **trip.inputs}
        await self.roll_back(experiment, "guardrail", trip.reason, inputs)

    async def _decide(self, experiment: Experiment) -> None:
        """Keep first crossings, and the verdict when there is one."""
        definition, state = experiment.definition, experiment.state
        if state.verdict is not None:
            return
        look = look_at(definition, experiment.totals, experiment.cells)
        at_ms = self._clock.now_ms()
        new = crossings_of(definition, state, look, at_ms)
        crossed = new or state.crossings
        posterior = await asyncio.to_thread(belief, definition, look) if crossed else None
        after = msgspec.structs.replace(state, crossings=(*state.crossings, *new))
        if not new and verdict_of(definition, after, look, posterior, at_ms) is None:
            return

        def plan(state: State) -> tuple[State, list[Entry]] | None:
            if state.verdict is not None:
                return None
            fresh = crossings_of(definition, state, look, at_ms)
            after = msgspec.structs.replace(state, crossings=(*state.crossings, *fresh))
            verdict = verdict_of(definition, after, look, posterior, at_ms)
            entries = [Entry("experiment.crossing", msgspec.structs.asdict(one)) for one in fresh]
            if verdict is not None:
                entries.append(Entry("experiment.verdict", msgspec.structs.asdict(verdict)))
            return (msgspec.structs.replace(after, verdict=verdict), entries) if entries else None

        await self._catalog().change(experiment, plan)

    async def _believe(self, experiment: Experiment) -> None:
        """Compute for the metrics who is best, now and then."""
        now_s = asyncio.get_running_loop().time()
        if now_s - experiment.believed_s >= BELIEVE_INTERVAL_S:
            experiment.believed_s = now_s
            found = await asyncio.to_thread(belief, experiment.definition, look_of(experiment))
            experiment.probability_best = found.probability_best
        elif experiment.definition.name not in self._later:
            self._later[experiment.definition.name] = experiment

    async def _weigh(self, experiment: Experiment) -> None:
        """Give new units other weights, if enough has been learnt since the last version."""
        definition = experiment.definition
        if definition.allocation != "thompson":
            return
        now_s = asyncio.get_running_loop().time()
        at_s, before = self._weighed.get(definition.name, (0.0, 0))
        look = _counts(experiment)
        total = sum(look[1])
        if now_s - at_s < WEIGH_INTERVAL_S or total < before * (1 + WEIGH_GROWTH) + 1:
            return
        weights = await asyncio.to_thread(weights_of, *look, definition.floor)
        await experiment.weigh(weights)
        self._weighed[definition.name] = (now_s, total)

    async def _look_at_canaries(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for name, experiment in list(self._later.items()):
            if now_s - experiment.believed_s >= BELIEVE_INTERVAL_S:
                del self._later[name]
                self.notice(experiment)
        await self._watch_others()
        await self._common.agree()
        now_ms = self._common.ms()
        for experiment in self._catalog():
            canary, state = experiment.definition.canary, experiment.state
            step = state.step
            if canary is None or step is None or step.completed or state.status != "running":
                continue
            over = now_ms - state.began_ms >= canary.min_seconds * MS_PER_S
            if over and (step.approved or not canary.requires_approval):
                await experiment.refresh()
                self.notice(experiment)

    async def _watch_others(self) -> None:
        """See what others merged where guardrails are watched: whoever did may die before it looks."""
        open_ = [
            one for one in self._catalog()
            if one.definition.guardrails is not None and one.settled is None and one.state.rollback is None
        ]  # fmt: skip
        behind = await self._catalog().behind(open_)
        for at, experiment in random.sample(behind, min(len(behind), WATCHED_AT_ONCE)):
            await experiment.refresh()
            experiment.saw(at.seq, at.born)
            self.notice(experiment)

    async def _round(self) -> None:
        due, self._due = self._due, {}
        for name, experiment in due.items():
            try:
                await self.look(experiment)
            except LATER as error:
                log.warning("experiment waits", extra={"experiment": name, "reason": f"{type(error).__name__}: {error}"})
                self._due.setdefault(name, experiment)
            except (ValueError, ArithmeticError) as error:
                # Counts beyond what the statistics take: the experiment is not judged, and nothing else suffers.
                log.exception("experiment cannot be judged", extra={"experiment": name, "reason": str(error)})
            await asyncio.sleep(0)

    async def _guard(self, on_crash: Callable[[BaseException], None]) -> None:
        while True:
            try:
                await self._merged.wait()
                self._merged.clear()
                due, self._guarded = self._guarded, {}
                for experiment in due.values():
                    self._check(experiment)
                    await asyncio.sleep(0)
                await asyncio.sleep(LOOK_INTERVAL_S)
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return

    def _check(self, experiment: Experiment) -> None:
        """Send units to the control from now on, if a guardrail is crossed."""
        name = experiment.definition.name
        if experiment.settled is not None:
            return
        try:
            trip = self._owed.get(name) or trip_of(experiment.definition, experiment.totals, experiment.cells)
        except (ValueError, ArithmeticError):
            return  # the look that follows says so
        if trip is not None:
            self._owed[name] = trip
            _settle(experiment)

    async def _catch_up(self) -> None:
        """Look at what must not wait for the next outcome: the process before may have died when it was to roll back."""
        for experiment in self._catalog():
            if experiment.definition.guardrails is not None and experiment.state.status in {"running", "paused"}:
                with contextlib.suppress(*LATER):
                    await experiment.refresh()
                self.notice(experiment)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._catch_up()
            while True:
                started_s = loop.time()
                self._woken.clear()
                await self._round()
                if loop.time() - self._canaries_s >= CANARY_INTERVAL_S:
                    self._canaries_s = loop.time()
                    with contextlib.suppress(*LATER):
                        await self._look_at_canaries()
                # As long as the looks took, others have the process for themselves.
                await asyncio.sleep(max(LOOK_INTERVAL_S, loop.time() - started_s))
                await pause(self._woken, CANARY_INTERVAL_S)
        except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
            on_crash(error)


def _counts(experiment: Experiment) -> tuple[tuple[int, ...], tuple[int, ...]]:
    count = len(experiment.definition.variants)
    return counts_of(experiment.totals, "s", count), counts_of(experiment.totals, "n", count)


def _settle(experiment: Experiment) -> None:
    """Give units the control in this process, unless a rollback is known already."""
    if experiment.state.rollback is None:
        local = msgspec.structs.replace(experiment.state, status="rolled_back")
        experiment.settled = settled(experiment.definition, local)


def look_of(experiment: Experiment) -> Look:
    """Return a look at an experiment as its counts were last seen."""
    return look_at(experiment.definition, experiment.totals, experiment.cells)
