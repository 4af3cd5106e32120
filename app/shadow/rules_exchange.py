"""Publishes what this process counted, and gathers what all of them did: through Redis at once, through Postgres for good.

Each process writes its own counts, as they stand, so that a write may be lost or repeated and nothing is counted twice.
Redis may forget: everything is written again with the next change, and what Postgres has is at most CHECKPOINT_S old.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import msgspec
import redis.exceptions

from app.clock import time_text
from app.db.keys import rule_samples_key, rule_trial_key
from app.db.retry import TRANSIENT
from app.shadow.rules_difference import KINDS
from app.shadow.rules_masking import Sample as MaskedSample
from app.shadow.rules_report import decision_inputs
from app.shadow.rules_store import SAMPLES_OF_KIND, Sample
from app.shadow.rules_tally import Tally, tally_of, total_of
from app.shadow.rules_trial import SHARE, SLICE_S
from app.shadow.rules_verdict import statement_of
from app.turns import Pace, end_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.db.redis import RedisLink
    from app.shadow.rules_book import RuleBook
    from app.shadow.rules_definition import Rule
    from app.shadow.rules_difference import Judged
    from app.shadow.rules_store import RuleStore
    from app.shadow.rules_trial import Compared, Trial, Trials

log = logging.getLogger(__name__)

PUBLISH_S: Final = 0.2  # how often changed counts go to Redis
CHECKPOINT_S: Final = 2.0  # how often they go to Postgres: with its own time below the 5 s that may be lost
KEEP_S: Final = 86_400  # how long Redis keeps what nobody writes any more; Postgres has it
LOOKS_MAX: Final = 50  # trials looked at between two writes to Postgres, about 5 ms each; those that waited longest first
SAMPLES_WAITING_MAX: Final = 1_000  # samples that wait for a store that is away; the oldest go first
SAMPLE_BYTES_MAX: Final = 32_768  # of one sample's JSON; beyond it the input is left out

_AWAY: Final = (*TRANSIENT, redis.exceptions.RedisError)


class Gathered(NamedTuple):
    """The counts and samples of a trial, of all processes.

    fresh       False while Redis is away: then others' are older
    crossed_at  when its evidence first crossed the threshold; None before
    """

    tally: Tally
    samples: list[Sample]
    fresh: bool
    crossed_at: datetime | None


class Exchange:
    """Writes and reads counts and samples. One per process; it counts under a name of its own, made at the start."""

    def __init__(self, link: RedisLink, store: RuleStore, book: RuleBook, trials: Trials) -> None:
        """`link` is opened and closed here."""
        self._link = link
        self._alone = asyncio.Lock()  # one connection, one user at a time
        self._store = store
        self._book = book
        self._trials = trials
        self._process: Final = secrets.token_hex(8)
        self._unpublished: deque[Sample] = deque(maxlen=SAMPLES_WAITING_MAX)
        self._unsaved: deque[Sample] = deque(maxlen=SAMPLES_WAITING_MAX)
        self._dirty: set[Trial] = set()  # published and not yet in Postgres
        self._crossed: dict[Trial, datetime] = {}  # of trials that are counted here
        self._looked_s: dict[Trial, float] = {}  # the same
        self._serial = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to publish; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="rule counts")

    async def stop(self) -> None:
        """Publish and keep what is left, and end."""
        if self._task is not None:
            await end_task(self._task)
        with contextlib.suppress(*_AWAY, asyncpg.PostgresError):
            await self.publish()
        with contextlib.suppress(*_AWAY, asyncpg.PostgresError):
            await self.checkpoint()
        await self._link.close()

    async def _take_samples(self) -> None:
        """Mask what the trials kept of comparisons that differ: at most for a share of the time, as they are compared."""
        pace = Pace(SHARE, SLICE_S)
        for compared in self._trials.take_differing():
            self._serial += 1
            sample_id = f"{compared.at_ms:013x}-{self._process}-{self._serial:08x}"
            rule = compared.rule
            sample = Sample(rule.rule_id, rule.trial, compared.difference.kind, sample_id, sample_text(compared))
            self._unsaved.append(sample)
            self._unpublished.append(sample)
            await pace.keep()

    async def publish(self) -> None:
        """Write changed counts and new samples to Redis."""
        await self._take_samples()
        trials = self._trials
        async with self._alone:
            if not self._link.is_open:
                await self._link.open()
            for trial in list(trials.changed):
                trials.changed.discard(trial)
                self._dirty.add(trial)
                try:
                    key = rule_trial_key(*trial)
                    await self._link.command("HSET", key, self._process, msgspec.json.encode(trials.tallies[trial]))
                    await self._link.command("EXPIRE", key, KEEP_S)
                except BaseException:
                    trials.changed.add(trial)
                    raise
            while self._unpublished:
                sample = self._unpublished[0]
                key = rule_samples_key(sample.rule_id, sample.trial, sample.kind)
                await self._link.command("LPUSH", key, f"{sample.sample_id} {sample.text}")
                await self._link.command("LTRIM", key, 0, SAMPLES_OF_KIND - 1)
                await self._link.command("EXPIRE", key, KEEP_S)
                self._unpublished.popleft()

    async def checkpoint(self) -> None:
        """Write to Postgres what changed since the last time; forget trials that are over."""
        await self._take_samples()
        trials = self._trials
        dirty = self._dirty | trials.changed
        await self._look_at(dirty)
        if dirty:
            texts = {trial: msgspec.json.encode(trials.tallies[trial]).decode() for trial in dirty}
            await self._store.save_tallies(self._process, texts)
            self._dirty -= dirty
        saved = list(self._unsaved)
        if saved:
            await self._store.save_samples(saved)
            for _ in saved:
                self._unsaved.popleft()
        for trial in [one for one in trials.tallies if one not in trials.changed | self._dirty]:
            if not self._book.is_current(*trial):
                del trials.tallies[trial]
                self._crossed.pop(trial, None)
                self._looked_s.pop(trial, None)

    async def _look_at(self, changed: set[Trial]) -> None:
        """Find first crossings of trials that have changed here, although nobody asks for a report."""
        names = {(rule.rule_id, rule.trial): rule.name for rule in self._book.rules()}
        differing = (
            one for one in changed & names.keys() - self._crossed.keys() if self._trials.tallies[one].challenger_only
        )
        for trial in sorted(differing, key=lambda one: self._looked_s.get(one, 0.0))[:LOOKS_MAX]:
            self._looked_s[trial] = time.monotonic()
            await self._look(names[trial], trial, (await self._counted(trial))[0])

    async def gather(self, rule: Rule, trial: int) -> Gathered:
        """Return the counts of all processes: the newest of what Redis, Postgres and this process itself have."""
        tally, fresh = await self._counted((rule.rule_id, trial))
        crossed_at = await self._look(rule.name, (rule.rule_id, trial), tally)
        samples = {one.sample_id: one for one in await self._store.samples(rule.rule_id, trial)}
        try:
            for sample in await self._published_samples(rule.rule_id, trial):
                samples[sample.sample_id] = sample
        except _AWAY as error:
            log.warning("a report is without redis", extra={"reason": f"{type(error).__name__}: {error}"})
            fresh = False
        await self._take_samples()
        samples |= {one.sample_id: one for one in self._unsaved if (one.rule_id, one.trial) == (rule.rule_id, trial)}
        return Gathered(tally, _newest(samples), fresh, crossed_at)

    async def _counted(self, trial: Trial) -> tuple[Tally, bool]:
        """Return the counts of a trial, and whether Redis answered."""
        texts: dict[str, str | bytes] = dict(await self._store.tallies(*trial))
        fresh = True
        try:
            for process, text in (await self._published(*trial)).items():
                if process not in texts or _progress(text) >= _progress(texts[process]):
                    texts[process] = text
        except _AWAY as error:
            log.warning("counts are without redis", extra={"reason": f"{type(error).__name__}: {error}"})
            fresh = False
        own = self._trials.tallies.get(trial)
        tallies = [tally_of(text) for process, text in texts.items() if own is None or process != self._process]
        return total_of([*tallies, own] if own is not None else tallies), fresh

    async def _look(self, name: str, trial: Trial, tally: Tally) -> datetime | None:
        """Return when a trial first crossed; keep it, if it does so in these counts."""
        at = self._crossed.get(trial) or await self._store.crossing(*trial)
        if at is None and statement_of(tally).verdict == "differs":
            inputs = decision_inputs(tally)
            details = {"rule": name, "trial": trial[1], "inputs": inputs}
            details |= {"champion": tally.champion, "challenger": tally.challenger}
            await self._store.keep_crossing(*trial, inputs, details)
            at = await self._store.crossing(*trial)
        if at is not None and trial in self._trials.tallies:
            self._crossed[trial] = at
        return at

    async def _published(self, rule_id: int, trial: int) -> dict[str, bytes]:
        async with self._alone:
            if not self._link.is_open:
                await self._link.open()
            flat: list[bytes] = await self._link.command("HGETALL", rule_trial_key(rule_id, trial))
        return {process.decode(): text for process, text in zip(flat[::2], flat[1::2], strict=True)}

    async def _published_samples(self, rule_id: int, trial: int) -> list[Sample]:
        found: list[Sample] = []
        async with self._alone:
            for kind in KINDS[1:]:
                lines: list[bytes] = await self._link.command("LRANGE", rule_samples_key(rule_id, trial, kind), 0, -1)
                for line in lines:
                    sample_id, _, text = line.decode().partition(" ")
                    found.append(Sample(rule_id, trial, kind, sample_id, text))
        return found

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        due_s = time.monotonic() + CHECKPOINT_S
        while True:
            await asyncio.sleep(PUBLISH_S)
            try:
                with contextlib.suppress(*_AWAY):  # a report says that it is not fresh; the next round tries again
                    await self.publish()
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + CHECKPOINT_S
                    await self.checkpoint()
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("rule counts are not kept", extra={"reason": f"{type(error).__name__}: {error}"})
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return


def sample_text(compared: Compared) -> str:
    """Return the JSON of a sample, masked."""
    rule = compared.rule
    masked = MaskedSample(rule.masked, (version.expression.text for version in rule.versions))
    shown_input = masked.input(compared.data)

    def shown(judged: Judged) -> dict[str, Any]:
        if judged.failure is not None:
            return {"failure": judged.failure}
        return {"answer": masked.answer(judged.answer)}

    sample = {
        "at": time_text(compared.at_ms), "fields": compared.difference.fields, "noisy": compared.noisy,
        "input": shown_input, "champion": shown(compared.champion), "challenger": shown(compared.challenger),
    }  # fmt: skip
    text = msgspec.json.encode(sample)
    if len(text) > SAMPLE_BYTES_MAX:
        text = msgspec.json.encode(sample | {"input": "[cut]"})
    return text.decode()


def _progress(text: str | bytes) -> tuple[int, int, int]:
    """Return what only ever rises in the counts of one process: the larger is the newer."""
    tally = tally_of(text)
    return tally.evaluated, tally.compared, tally.dropped


def _newest(samples: dict[str, Sample]) -> list[Sample]:
    """Return the newest samples of each kind, newest first."""
    kept: list[Sample] = []
    counts: dict[str, int] = {}
    for sample_id in sorted(samples, reverse=True):
        sample = samples[sample_id]
        counts[sample.kind] = counts.get(sample.kind, 0) + 1
        if counts[sample.kind] <= SAMPLES_OF_KIND:
            kept.append(sample)
    return kept
