"""The rate limit script against a model in exact fractions, at times that the test chooses, and at the server's own."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.access.bucket import UNITS
from app.db.keys import limit_key
from app.db.lua import load_script

TEXT = load_script("rate_limit").text
# The script as it is, but for its clock, which stands in a key that the test writes. Expiry goes by the server's clock
# all the same, so that keys get a minute more.
TIMED = TEXT.replace("redis.call('TIME')", "redis.call('HMGET', '{limits}clock', 's', 'us')").replace(
    "full_us / 1000) + 1", "full_us / 1000) + 60000"
)
START_US = 1_795_298_401_000_000

rates = st.one_of(st.integers(1, 5_000), st.sampled_from([500, 1_000, 333, 10_000_000, 1_000_000_000]))  # 1/1000 a second
bursts = st.one_of(st.integers(1, 20), st.sampled_from([1_000, 1_000_000]))
steps_us = st.one_of(st.integers(0, 3_000_000), st.integers(0, 300), st.sampled_from([0, 10**9, 10**13, -5_000_000]))


class Model:
    """A bucket as it ought to be: exact fractions of tokens, as of the last time that some were taken."""

    def __init__(self, rate_milli: int, burst: int) -> None:
        self.rate_per_us = Fraction(rate_milli, 1000 * 1_000_000)
        self.burst = burst
        self.tokens = Fraction(burst)
        self.at_us = 0

    def level(self, now_us: int) -> Fraction:
        """Return what is in it; a clock that has stepped back lets nothing flow in."""
        return min(Fraction(self.burst), self.tokens + max(0, now_us - self.at_us) * self.rate_per_us)

    def take(self, tokens: int, now_us: int) -> None:
        self.tokens = self.level(now_us) - tokens
        self.at_us = max(self.at_us, now_us)


class Script:
    """The script on a server, at a time that is given."""

    def __init__(self, connection: redis.Redis) -> None:
        self.connection = connection
        connection.flushdb()

    def ask(self, requests: list[tuple[int, list[tuple[str, int, int]]]], now_us: int | None = None) -> list[list[int]]:
        """`requests`: tokens, and name, rate and burst of each bucket."""
        if now_us is not None:
            self.connection.hset("{limits}clock", mapping={"s": now_us // 1_000_000, "us": now_us % 1_000_000})
        keys = [limit_key("t", name) for _, buckets in requests for name, _, _ in buckets]
        words = [json.dumps([tokens, *(n for _, *pair in buckets for n in pair)]) for tokens, buckets in requests]
        answer: Any = self.connection.eval(TEXT if now_us is None else TIMED, len(keys), *keys, *words)
        return answer

    def now_us(self) -> int:
        seconds, rest = self.connection.time()
        return seconds * 1_000_000 + rest


@pytest.fixture
def script(connection: redis.Redis) -> Script:
    return Script(connection)


@given(
    sizes=st.lists(st.tuples(rates, bursts), min_size=1, max_size=3),
    turns=st.lists(
        st.tuples(steps_us, st.lists(st.tuples(st.integers(1, 20), st.sets(st.integers(0, 2), min_size=1)), min_size=1, max_size=4)),
        min_size=1, max_size=25,
    ),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_that_of_the_model(
    script: Script, sizes: list[tuple[int, int]], turns: list[tuple[int, list[tuple[int, set[int]]]]]
) -> None:
    script.connection.flushdb()
    models = [Model(rate, burst) for rate, burst in sizes]
    now_us = START_US
    for step_us, asked in turns:
        now_us = max(START_US, now_us + step_us)
        requests, expected = [], []
        for tokens, chosen in asked:
            buckets = sorted({number % len(sizes) for number in chosen})
            cost = min(tokens, *(sizes[number][1] for number in buckets))
            requests.append((cost, [(str(number), *sizes[number]) for number in buckets]))
            short = [place for place, number in enumerate(buckets, 1) if models[number].level(now_us) < cost]
            if not short:
                for number in buckets:
                    models[number].take(cost, now_us)
            expected.append([short[0] if short else 0, *(models[number].level(now_us) * UNITS for number in buckets)])

        assert script.ask(requests, now_us) == expected


@pytest.mark.parametrize(("rate_milli", "burst"), [(500, 1), (10_000_000, 100), (250, 3), (1, 1), (8_000, 2)])
def test_a_drained_bucket_gives_exactly_its_rate(script: Script, rate_milli: int, burst: int) -> None:
    """Ask more often than tokens come, for a time in which 40 come: 40 get one, to the microsecond."""
    bucket = ("a", rate_milli, burst)
    script.ask([(burst, [bucket])], START_US)
    span_us = 40 * 1000 * 1_000_000 // rate_milli
    asks = min(400, span_us)

    let_in = 0
    for step in range(1, asks + 1):
        at_us = START_US + span_us * step // asks
        let_in += sum(answer[0] == 0 for answer in script.ask([(1, [bucket])] * 2, at_us))

    assert let_in == 40


def test_a_rate_of_a_token_a_microsecond_is_kept(script: Script) -> None:
    bucket = ("a", 1_000_000_000, 1_000_000)
    script.ask([(1_000_000, [bucket])], START_US)

    let_in = [sum(answer[0] == 0 for answer in script.ask([(1, [bucket])] * 50, START_US + 7 * n)) for n in (1, 2, 2, 5)]

    assert let_in == [7, 7, 0, 21]


def test_a_refused_request_takes_from_none_of_its_buckets(script: Script) -> None:
    rich, poor = ("rich", 1_000, 10), ("poor", 1_000, 1)

    answers = script.ask([(1, [rich, poor]), (1, [rich, poor]), (1, [rich])], START_US)

    assert answers == [[0, 9 * UNITS, 0], [2, 9 * UNITS, 0], [0, 8 * UNITS]]


def test_a_bucket_that_is_full_again_needs_no_memory(script: Script) -> None:
    with script.connection.pipeline(transaction=True) as pipe:  # in one moment of the server, however busy the machine is
        pipe.eval(TEXT, 1, limit_key("t", "a"), json.dumps([1, 1_000, 1]))
        pipe.pttl(limit_key("t", "a"))
        _, ttl_ms = pipe.execute()

    assert 1_000 <= ttl_ms <= 1_001

    script.ask([(1, [("fast", 1_000_000_000, 1)])])
    while script.connection.exists(limit_key("t", "fast")):
        time.sleep(0.001)
    assert script.ask([(1, [("fast", 1_000_000_000, 1)])])[0][0] == 0


def test_a_smaller_burst_holds_at_once(script: Script) -> None:
    script.ask([(1, [("a", 1, 1_000)])], START_US)

    assert script.ask([(1, [("a", 1, 5)])], START_US) == [[0, 4 * UNITS]]


def test_by_the_servers_own_clock_ten_thousand_a_second_are_ten_thousand(script: Script) -> None:
    """The bucket is emptied, then asked until it is empty again: every token that came meanwhile was given, and no other.

    It holds far more than comes in the time of the test, so that none is lost when the machine is busy elsewhere.
    """
    bucket = ("a", 10_000_000, 1_000_000)
    before_us = script.now_us()
    assert script.ask([(1_000_000, [bucket])])[0][0] == 0
    after_us = last_us = script.now_us()

    let_in, empty = 0, False
    while not empty or last_us - after_us < 200_000:
        last_us = script.now_us()
        answers = script.ask([(1, [bucket])] * 1_000)
        let_in += sum(answer[0] == 0 for answer in answers)
        empty = answers[-1][0] != 0
    end_us = script.now_us()

    assert (last_us - after_us) // 100 <= let_in <= (end_us - before_us) // 100 + 1


def test_by_the_servers_own_clock_one_token_comes_every_two_seconds(script: Script) -> None:
    bucket = ("a", 500, 1)
    before_us = script.now_us()
    assert script.ask([(1, [bucket])])[0][0] == 0
    after_us = script.now_us()

    asked_us, refused = after_us, True
    while refused:
        time.sleep(0.005)
        asked_us = script.now_us()
        refused = script.ask([(1, [bucket])])[0][0] != 0
        assert not refused or asked_us < after_us + 2_000_000

    assert script.now_us() >= before_us + 2_000_000
