"""One experiment in this process: whom it gives what, and the actor that merges what it is told into Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import asyncpg
import orjson
from redis.exceptions import RedisError

from app.actor import Actor
from app.db.retry import TRANSIENT
from app.shadow.assignment import Assignment, Split, settled
from app.shadow.contributions import Add, Contributions
from app.shadow.counters import EventsFull, Forgot, Known
from app.shadow.enrolment import Enrol, Enrolment
from app.shadow.journal import ungot, unit_number
from app.shadow.recovery import lay
from app.shadow.thompson import draw
from app.turns import answer_from_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from app.actor import Reply
    from app.shadow.contributions import Counted
    from app.shadow.counters import Counters, Enrolled, Merged, Work
    from app.shadow.definition import State
    from app.shadow.store import ExperimentStore, Row

BATCH_MAX: Final = 250  # outcomes of one script call: about 2 ms of Redis, which money needs too
INBOX_MAX: Final = 100_000  # outcomes that wait: 5 s at 20,000 a second, 20 MB
ASK_TIMEOUT_S: Final = 5.0
UNITS_CACHED: Final = 10_000  # of what sampled units got: 3 MB
TOTALS_INTERVAL_S: Final = 0.05  # how old the totals may be while merges come one after the other


class Experiment(Actor[Add]):
    """State, totals and assignment of one experiment.

    totals, latency  counters of all replicas, as they were last seen
    probability_best as the steward has computed it last, empty before
    merged_s         when this process last merged outcomes, on the loop's clock
    """

    def __init__(
        self,
        row: Row,
        counters: Counters,
        store: ExperimentStore,
        on_crash: Callable[[BaseException], None],
        on_merged: Callable[[Experiment], None],
    ) -> None:
        """Begin with what Postgres holds."""
        super().__init__(
            inbox_max=INBOX_MAX, batch_max=BATCH_MAX, ask_timeout_s=ASK_TIMEOUT_S, name=f"experiment {row.name}"
        )
        self.definition: Final = row.definition
        self.created_at: Final = row.created_at
        self.created_by: Final = row.created_by
        self.totals = dict(row.totals)
        self.latency = dict(row.latency)
        self.saved = row.seq
        self.seq = row.seq
        self._seen_born = ""
        self.known = Known()
        self.version = 0
        self.weights_saved = 0
        self.weights: dict[int, tuple[float, ...]] = {0: row.definition.first_weights}
        self.odd: frozenset[str] = frozenset()
        self._counters = counters
        self._store = store
        self._on_crash = on_crash
        self._on_merged = on_merged
        self._enrolment = Enrolment(row.name, self._enrol, self._follow, on_crash)
        self._units: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._contributions = Contributions(row.definition, self._row)
        self._started = False
        self._comparing = asyncio.Lock()
        self._compared = 0
        self._totals_s = 0.0
        self.merged_s = 0.0
        self.probability_best: tuple[float, ...] = ()
        self.believed_s = 0.0
        self.adopt(row.state, row.revision, row.changed_at)

    def adopt(self, state: State, revision: int, changed_at: datetime) -> None:
        """Take over where the experiment stands."""
        self.state = state
        self.revision = revision
        self.changed_at = changed_at
        self.split = Split(self.definition, state)
        self.settled = settled(self.definition, state)
        self._contributions.forget()

    @property
    def quiet_ms(self) -> int:
        """How long the stage has held, by the replicas' common clock."""
        return self._counters.clock.ms() - self.state.began_ms

    @property
    def cells(self) -> dict[int, tuple[float, ...]]:
        """The propensities in every cell of a fixed split."""
        return self.split.cells

    def assign_at_once(self, unit: str) -> Assignment | None:
        """Return what a unit gets; None when Redis has to be asked, under Thompson sampling."""
        if self.settled is not None:
            return self.settled
        if self.definition.allocation == "fixed":
            return self.split.assign(unit)
        known = self._units.get(unit)
        if known is None or known[0] not in self.weights:
            return None
        self._units.move_to_end(unit)
        return self._sampled(*known)

    def assign_soon(self, unit: str, reply: Reply[Assignment]) -> None:
        """Tell `reply` what a unit gets, now or later; without a task if its one round trip is all there is to do.

        Raises InboxFull and ActorStopped at once; `reply` gets every other error of `assign`.
        """
        at_once = self.assign_at_once(unit)
        if at_once is not None:
            reply(at_once, None)
            return
        if not self.known.born or self.state.status == "paused":
            answer_from_task(self.assign(unit), reply)
            return

        def enrolled(one: tuple[int, int] | None, error: Exception | None) -> None:
            if one is not None and one[0] in self.weights:
                self._remember(unit, one)
                reply(self._sampled(*one), None)
            elif one is not None or isinstance(error, Forgot):
                answer_from_task(self.assign(unit), reply)
            else:
                reply(None, error)

        self._post(unit, enrolled)

    async def assign(self, unit: str) -> Assignment:
        """Return what a unit gets, always the same. Raises InboxFull, ActorStopped and what the stores raise."""
        at_once = self.assign_at_once(unit)
        if at_once is not None:
            return at_once
        if self.state.status == "paused":
            found = (await self.what_units_got([unit]))[0]
            if found is None:
                control = self.definition.control
                return Assignment(self.definition.names[control], control, "paused")
            return self._sampled(*found)
        await self.prepare()
        try:
            one = await self._ask(unit)
        except Forgot:
            one = await self._ask(unit)  # with the weights of what was restored
        await self._learn([one[0]])
        self._remember(unit, one)
        return self._sampled(*one)

    def _post(self, unit: str, reply: Reply[tuple[int, int]]) -> None:
        variant = draw(self.definition.seed, unit, self.weights[self.version])
        self._enrolment.post(Enrol(unit_number(unit), self.version, variant, reply))

    async def _ask(self, unit: str) -> tuple[int, int]:
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()

        def reply(one: tuple[int, int] | None, error: Exception | None) -> None:
            if answer.done():
                return
            if one is not None:
                answer.set_result(one)
            else:
                answer.set_exception(error or AssertionError("neither an answer nor an error"))

        self._post(unit, reply)
        return await answer

    async def _enrol(self, units: Sequence[str | int]) -> Enrolled:
        try:
            return await self._counters.enrol(self.definition.name, self.saved, self.known, units)
        except Forgot:
            await self.restore()
            raise  # what was drawn names versions of weights that may not be the same any more

    async def what_units_got(self, units: Sequence[str]) -> list[tuple[int, int] | None]:
        """Return version and variant of units that were enrolled, None for others."""
        try:
            found = await self._look_up(units)
        except Forgot:
            await self.restore()
            found = await self._look_up(units)
        return [found.get(unit) for unit in units]

    async def _look_up(self, units: Sequence[str]) -> dict[str, tuple[int, int]]:
        found = {unit: self._units[unit] for unit in units if unit in self._units}
        missing = [unit for unit in dict.fromkeys(units) if unit not in found]
        new: dict[str, tuple[int, int]] = {}
        for start in range(0, len(missing), BATCH_MAX):
            part = missing[start : start + BATCH_MAX]
            answers = await self._counters.units(self.definition.name, [unit_number(unit) for unit in part])
            new |= {unit: ungot(one) for unit, one in zip(part, answers, strict=True) if one is not None}
        await self._learn({version for version, _ in new.values()})
        for unit, one in new.items():
            self._remember(unit, one)
        return found | new

    async def merge(self, outcomes: Sequence[Counted], known: Known) -> tuple[set[int], set[int]]:
        """Merge outcomes; return the places of those that Redis took none of, since it forgot, and of repetitions.

        known  the counters with whose weights and units they were sorted
        Raises what `ask` raises, EventsFull, and what the stores raise.
        """
        if not self._started:
            self._started = True
            self.start(self._on_crash)
        # A request may be ordered by variant. Somebody may look between its parts: in the order of the events, which are
        # hashes, each part is a sample of the whole.
        order = sorted(range(len(outcomes)), key=lambda place: outcomes[place].event)
        parts = [order[start : start + BATCH_MAX] for start in range(0, len(order), BATCH_MAX)]
        asked = [self.ask(Add([outcomes[place] for place in part], known)) for part in parts]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        forgot: set[int] = set()
        repeated: set[int] = set()
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, Forgot):
                forgot.update(part)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                repeated.update(part[place] for place in answer)
        return forgot, repeated

    async def receive(self, batch: list[Add]) -> None:
        """Merge a batch with one script call, then answer. What was sorted before a restore is to be sorted again."""
        for message in batch:
            if message.known != self.known:
                message.fail(Forgot(self.definition.name))
        batch = [message for message in batch if message.known == self.known]
        if not batch:
            return
        try:
            merged = await self._merge(self._contributions.work(message.outcomes for message in batch))
        except (*TRANSIENT, RedisError, asyncpg.PostgresError, EventsFull) as error:
            for message in batch:
                message.fail(error)
            return
        self._take_over(merged, batch[0].known.born)
        with contextlib.suppress(*TRANSIENT, RedisError):  # the next merge tells the same again
            await self._keep_up(merged)
        first = 0
        for message in batch:
            end = first + len(message.outcomes)
            message.answer([number - first for number in merged.repeated if first <= number < end])
            first = end
        self._on_merged(self)

    async def prepare(self) -> None:
        """Know what Redis holds besides counts, before the first outcome is sorted. Raises what the stores raise."""
        if not self.known.born:
            async with self._comparing:
                if not self.known.born:
                    await self._compare()

    async def restore(self) -> bool:
        """Compare Redis with Postgres, and lay Postgres over a Redis that is behind; return whether it was.

        Whoever finds out at the same time shares one comparison that began after that: a hundred requests are no reason to
        ask Postgres a hundred times.
        """
        enough = self._compared + (2 if self._comparing.locked() else 1)
        async with self._comparing:
            return self._compared < enough and await self._compare()

    async def _compare(self) -> bool:
        name = self.definition.name
        run_id = await self._counters.connect(name)
        row = await self._store.find(name)
        if row is None:
            raise AssertionError(f"experiment {name} is gone from Postgres")
        place = (await self._counters.places([name]))[0]
        behind = place is None or place.seq < row.seq
        if behind:
            await lay(self._store, self._counters, [row])
            place = (await self._counters.places([name]))[0]
            if place is None:
                raise Forgot(name)
        assert place is not None
        found = Known(run_id, place.born)
        if found != self.known:
            # Another Redis may have been laid at the same time and still be behind: the one that took over from a server
            # that died has all but its last changes. Then units and weights that were seen are others by now.
            texts = await self._counters.all_weights(name)
            self.weights = {0: self.definition.first_weights} | {
                number: tuple(orjson.loads(one)) for number, one in texts.items()
            }
            self.version = max(self.weights)
            self.odd = frozenset(await self._counters.odd(name))
            self._units.clear()
            self._contributions.forget()
            self._seen_born = ""
        self.saved = row.seq
        self.known = found
        self._compared += 1
        return behind

    async def refresh(self) -> None:
        """Read totals and histogram of all replicas. Raises what Redis raises."""
        try:
            self.totals, self.latency = await self._counters.read(self.definition.name)
        except Forgot:
            await self.restore()
            self.totals, self.latency = await self._counters.read(self.definition.name)

    async def weigh(self, weights: Sequence[float]) -> None:
        """Let new units get other weights: the next version, unless another replica has made it."""
        wanted = orjson.dumps(list(weights)).decode()  # the shortest texts that are read back as the same numbers
        text = await self._counters.weigh(self.definition.name, self.version + 1, wanted)
        if text:
            self.weights[self.version + 1] = tuple(orjson.loads(text))
            self.version += 1

    async def end(self) -> None:
        """Finish what was accepted."""
        if self._started:
            await self.stop()
        await self._enrolment.stop()

    async def _merge(self, work: Work) -> Merged:
        assert self._loop is not None
        totals = self._loop.time() - self._totals_s >= TOTALS_INTERVAL_S or not self._inbox
        try:
            return await self._counters.merge(self.definition.name, self.saved, self.known, work, totals=totals)
        except Forgot:
            await self.restore()
            raise

    def is_behind(self, seq: int, born: str) -> bool:
        """Return whether the counters in Redis were laid anew, or have gone on, since they were seen here."""
        return born != self._seen_born or seq > self.seq

    def saw(self, seq: int, born: str) -> None:
        """Note what was seen of the counters; those that were laid anew begin again with an earlier seq."""
        self.seq = max(seq, self.seq) if born == self._seen_born else seq
        self._seen_born = born

    def _take_over(self, merged: Merged, born: str) -> None:
        assert self._loop is not None
        self.saw(merged.seq, born)
        self.merged_s = self._loop.time()
        if merged.totals is not None:
            self.totals = merged.totals
            self._totals_s = self.merged_s

    async def _keep_up(self, merged: Merged) -> None:
        """Read what other replicas added that is no total: weights and quarantined units."""
        await self._learn_to(merged.version)
        if merged.odd != len(self.odd):
            self.odd = frozenset(await self._counters.odd(self.definition.name))

    async def _follow(self, version: int) -> None:
        with contextlib.suppress(*TRANSIENT, RedisError):  # the next unit tells the same again
            await self._learn_to(version)

    async def _learn_to(self, version: int) -> None:
        if version > self.version and await self._learn(range(self.version + 1, version + 1)):
            self.version = max(self.version, version)

    async def _learn(self, versions: Sequence[int] | set[int] | range) -> bool:
        """Read versions of the weights; return False when Redis was laid anew meanwhile, so that they say nothing."""
        missing = [version for version in versions if version not in self.weights]
        known = self.known
        found = await self._counters.weights(self.definition.name, missing)
        if known != self.known:
            return False
        self.weights |= {version: tuple(orjson.loads(text)) for version, text in found.items()}
        return len(found) == len(missing)

    def _sampled(self, version: int, variant: int) -> Assignment:
        weights = self._row(version)
        return Assignment(self.definition.names[variant], variant, "sampled", weights[variant], version)

    def _row(self, version: int) -> tuple[float, ...]:
        """Return one version of the weights. Raises Forgot when Redis has lost it."""
        row = self.weights.get(version)
        if row is None:
            raise Forgot(self.definition.name)
        return row

    def _remember(self, unit: str, one: tuple[int, int]) -> None:
        self._units[unit] = one
        if len(self._units) > UNITS_CACHED:
            self._units.popitem(last=False)
