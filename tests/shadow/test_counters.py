"""The scripts of an experiment's counters: what is remembered for how long, and what is refused before anything is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest

from app.clock import now_ms
from app.db.keys import SHADOW_CLOCK, experiment_key
from app.db.retry import TRANSIENT
from app.db.topology import make_topology
from app.shadow import steady
from app.shadow.counters import Counters, EventsFull, Forgot, Known, Work
from app.shadow.journal import event_number, got, numbers, pack, pairs, ungot
from app.shadow.steady import CommonClock, SteadyClock
from tests.credits.ledger_client import fresh
from tests.shadow.conftest import Replicas, until

ONE = [["", "n0", 1]]


class Place:
    """The counters of one experiment, open and empty."""

    def __init__(self, counters: Counters, name: str, known: Known) -> None:
        """`known` is what a merge must name."""
        self.counters = counters
        self.name = name
        self.known = known

    async def merge(self, *events: str, saved: int = 0, odd: str | None = None) -> list[int]:
        """Merge events and return which were repetitions."""
        listed = [part for event in events for part in (event_number(event), 1, 0, "")]
        work = Work(listed, ONE, [[]], [""], [odd] if odd else [])
        return sorted((await self.counters.merge(self.name, saved, self.known, work, totals=False)).repeated)

    async def enrol(self, *units: tuple[str, int, int], saved: int = 0) -> list[tuple[int, int]]:
        """Enrol units, each with a version and a variant, and return what they have."""
        flat = [part for unit, version, variant in units for part in (unit, got(version, variant), variant)]
        return [ungot(one) for one in (await self.counters.enrol(self.name, saved, self.known, flat)).given]


@pytest.fixture
async def place(replicas: Replicas) -> AsyncIterator[Place]:
    counters = Counters(make_topology(replicas.ledger.redis_url))
    name = fresh("counted")
    await counters.open(name, 0, await counters.begin(name, 0) or "", {}, {}, {})
    found = (await counters.places([name]))[0]
    assert found is not None
    yield Place(counters, name, Known(await counters.connect(name), found.born))
    await counters.close()


async def test_an_event_is_remembered_for_the_day_and_the_day_after(place: Place, replicas: Replicas) -> None:
    state = experiment_key(place.name, "state")

    first = await place.merge("e1", "e2", "e1")
    await replicas.redis("HINCRBY", state, "window", "1")
    next_day = await place.merge("e1", "e3")
    await replicas.redis("HINCRBY", state, "window", "2")
    much_later = await place.merge("e1")

    assert (first, next_day, much_later) == ([2], [0], [])
    assert (await place.counters.read(place.name))[0] == {"n0": 4, "duplicates": 2}


async def test_nothing_is_done_when_more_events_came_than_are_remembered(place: Place, replicas: Replicas) -> None:
    state = experiment_key(place.name, "state")
    await place.merge("e1")
    await replicas.redis("HSET", state, "events", "20000000")

    with pytest.raises(EventsFull):
        await place.merge("e2")

    assert (await place.counters.read(place.name))[0]["n0"] == 1


async def test_counters_that_are_gone_behind_or_of_another_birth_are_not_touched(place: Place, replicas: Replicas) -> None:
    await place.merge("e1")

    for known, saved in ((place.known, 2), (place.known._replace(born="1.1"), 0), (place.known._replace(run_id="x"), 0)):
        with pytest.raises(Forgot):
            await Place(place.counters, place.name, known).merge("e2", saved=saved)
        with pytest.raises(Forgot):
            await Place(place.counters, place.name, known).enrol(("7", 0, 0), saved=saved)
    await replicas.redis("DEL", experiment_key(place.name, "state"))
    for work in (place.merge("e2"), place.enrol(("7", 0, 0))):
        with pytest.raises(Forgot):
            await work

    assert await replicas.redis("HGETALL", experiment_key(place.name, "totals")) == {b"n0": b"1", b"duplicates": b"0"}
    assert await replicas.redis("HLEN", experiment_key(place.name, "units:7")) == 0


async def test_a_unit_is_enrolled_once_and_the_journal_tells_all(place: Place) -> None:
    await place.merge("e1", odd="-5")
    first = await place.enrol(("77", 3, 1))
    await place.merge("e2", odd="-5")
    second = await place.enrol(("77", 4, 0), ("78", 4, 0), ("78", 4, 1))
    before = (await place.counters.snapshot(place.name)).seq
    again = await place.enrol(("77", 4, 0))

    snapshot = await place.counters.snapshot(place.name)
    await place.counters.saved(place.name, snapshot)

    assert (first, second, again) == ([(3, 1)], [(3, 1), (4, 0), (4, 0)], [(3, 1)])
    assert snapshot.seq == before, "a call that enrols nobody changes nothing that is to be saved"
    assert (snapshot.totals["a0"], snapshot.totals["a1"]) == (1, 1)
    assert [None if one is None else ungot(one) for one in await place.counters.units(place.name, ["77", "78", "79"])] == [
        (3, 1), (4, 0), None,
    ]  # fmt: skip
    assert numbers(snapshot.journal.events) == [event_number("e1"), event_number("e2")]
    assert pairs(snapshot.journal.units) == ["77", got(3, 1), "78", got(4, 0)]
    assert numbers(snapshot.journal.odd) == ["-5"]
    assert (await place.counters.snapshot(place.name)).journal == pack([])


async def test_the_first_to_make_a_version_of_the_weights_makes_it(place: Place) -> None:
    made = await asyncio.gather(*(place.counters.weigh(place.name, 1, text) for text in ("[0.5]", "[0.6]")))

    ahead = await place.counters.weigh(place.name, 3, "[0.7]")

    assert made[0] == made[1]
    assert ahead == ""
    assert await place.counters.all_weights(place.name) == {1: made[0]}


def test_setting_the_clock_does_not_move_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before_ms = clock.now_ms()

    monkeypatch.setattr(steady, "now_ms", lambda: 0)

    assert 0 <= clock.now_ms() - before_ms < 60_000
    assert SteadyClock().now_ms() < 60_000


async def test_the_common_clock_is_that_of_the_replicas_whatever_wall_clock_a_process_starts_with(
    place: Place, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = place.counters.clock
    await clock.begin(0)

    async def off_ms(day: int, least_ms: int, *, forgets: bool) -> int:
        """Return how far the clock of a process is off that starts with a wall clock off by a day."""
        monkeypatch.setattr(steady, "now_ms", lambda: now_ms() + day * 86_400_000)
        if forgets:
            await replicas.redis("DEL", SHADOW_CLOCK)
        other = CommonClock(place.counters._keep_clock)
        await other.begin(least_ms)
        return abs(other.ms() - clock.ms())

    assert max([await off_ms(day, 0, forgets=False) for day in (1, -1)]) < 10_000
    assert max([await off_ms(day, clock.ms(), forgets=True) for day in (1, -1)]) < 10_000
    await replicas.redis("DEL", SHADOW_CLOCK)
    await clock.agree()
    assert await off_ms(1, 0, forgets=False) < 10_000
    stayed = CommonClock(place.counters._keep_clock)
    stayed._offset_ms -= 172_800_000  # a machine that slept for a day
    await stayed.agree()
    assert abs(stayed.ms() - clock.ms()) < 10_000


async def test_a_redis_that_is_emptied_while_it_is_laid_is_not_opened_with_half_of_a_journal(
    place: Place, replicas: Replicas
) -> None:
    name = fresh("halved")
    counters = place.counters
    first, second = (pack([b"e" + event_number(event).encode()]).events for event in ("e1", "e2"))
    token = await counters.begin(name, 5) or ""
    assert await counters.begin(name, 5) == token
    assert await counters.lay(name, 5, token, "event", first)

    for key in await replicas.redis("KEYS", f"{{x:{name}}}:*"):
        await replicas.redis("DEL", key)
    other = await counters.begin(name, 5) or ""
    with pytest.raises(Forgot):
        await counters.lay(name, 5, token, "event", second)
    with pytest.raises(Forgot):
        await counters.open(name, 5, token, {}, {}, {})

    assert await counters.places([name]) == [None]
    await counters.open(name, 5, other, {}, {}, {})
    assert await counters.begin(name, 5) is None


async def test_what_was_saved_of_a_redis_that_was_emptied_cuts_no_journal_of_the_next(
    place: Place, replicas: Replicas
) -> None:
    await place.merge("e1")
    before = await place.counters.snapshot(place.name)
    for key in await replicas.redis("KEYS", f"{{x:{place.name}}}:*"):
        await replicas.redis("DEL", key)
    await place.counters.open(place.name, 1, await place.counters.begin(place.name, 1) or "", {"n0": 1}, {}, {})
    born = (await place.counters.places([place.name]))[0]
    assert born is not None
    await Place(place.counters, place.name, Known(place.known.run_id, born.born)).merge("e2")

    with pytest.raises(Forgot):
        await place.counters.saved(place.name, before)

    assert numbers((await place.counters.snapshot(place.name)).journal.events) == [event_number("e2")]


class Master:
    """An address of the session's Redis: a relay to it, which counts the connections that are open."""

    def __init__(self, socket: str) -> None:
        """Nothing listens yet."""
        self.socket = socket
        self.open = 0
        self.port = 0

    async def listen(self, stack: contextlib.AsyncExitStack) -> None:
        """Listen until the stack ends."""
        relay = await stack.enter_async_context(await asyncio.start_server(self._relay, "127.0.0.1", 0))
        self.port = relay.sockets[0].getsockname()[1]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        from_redis, to_redis = await asyncio.open_unix_connection(self.socket)
        answers = asyncio.create_task(_copy(from_redis, writer))
        await _copy(reader, to_redis)
        to_redis.close()
        await answers
        self.open -= 1


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while some := await reader.read(65_536):
            writer.write(some)
    writer.close()


async def _begun(counters: Counters, name: str) -> str | None:
    """Begin to lay an experiment, again when a machine that stood still made it too late."""
    while True:
        with contextlib.suppress(*TRANSIENT):
            return await counters.begin(name, 5)


async def test_masters_that_moved_away_leave_no_connections_behind(replicas: Replicas) -> None:
    parts = urlsplit(replicas.ledger.redis_url)
    masters = [Master(parts.path) for _ in range(4)]
    named: list[Master] = []  # the last one is the master

    async def sentinel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while first := await reader.readline():
            words = [(await reader.readline(), await reader.readline())[1] for _ in range(int(first[1:]))]
            address = b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n%05d\r\n" % named[-1].port
            writer.write(address if words[0] == b"SENTINEL\r\n" else b"+OK\r\n")
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        for master in masters:
            await master.listen(stack)
        asked = await stack.enter_async_context(await asyncio.start_server(sentinel, "127.0.0.1", 0))
        database = parse_qs(parts.query)["db"][0]
        topology = make_topology(f"redis+sentinel://127.0.0.1:{asked.sockets[0].getsockname()[1]}/money/{database}")
        counters = Counters(topology)
        name = fresh("moved")
        calls = []
        for master in masters:
            named.append(master)
            topology.outdate()
            calls += [asyncio.create_task(_begun(counters, name)) for _ in range(6)]
            await calls[-6]  # the others run, or wait for a connection, while the master moves
        assert len(set(await asyncio.gather(*calls))) == 1

        await until(lambda: [bool(master.open) for master in masters] == [False, False, False, True], "closed")
        assert len(counters._servers) == 1
        await counters.close()
        await until(lambda: not masters[-1].open, "closed")
