"""Counts of a trial: they add up, and what they say holds at every look."""

from __future__ import annotations

import random

import msgspec
import pytest

from app.shadow.rules_difference import SAME, Difference, Judged
from app.shadow.rules_tally import FIELDS_MAX, OTHER, Tally, bucket_of_us, percentile_us, tally_of, total_of
from app.shadow.rules_verdict import ALPHA, is_flagged, rate_interval, statement_of

DIFFERS = Difference("value", ("/d",))


def counted(outcomes: list[tuple[bool, bool]], us: int = 10) -> Tally:
    """Return a tally of comparisons: whether the challenger, and whether the control differed."""
    tally = Tally("v1", "v2")
    for differs, noisy in outcomes:
        tally.answered(Judged(1, None, us))
        tally.seen(Judged(1, None, us), DIFFERS if differs else SAME, DIFFERS if noisy else SAME)
    return tally


def test_the_sum_of_processes_is_what_one_process_would_have_counted() -> None:
    pick = random.Random(4)
    outcomes = [(pick.random() < 0.5, pick.random() < 0.3) for _ in range(200)]
    parts = [counted(outcomes[start::3], us=7) for start in range(3)]

    texts = [msgspec.json.encode(part) for part in parts]

    assert total_of(tally_of(text) for text in texts) == counted(outcomes, us=7)


def test_fields_beyond_the_limit_are_counted_together() -> None:
    tally = Tally()
    for number in range(FIELDS_MAX + 20):
        tally.seen(Judged(1, None, 1), Difference("value", (f"/a{number}",)), SAME)

    assert len(tally.fields) == FIELDS_MAX + 1
    assert tally.fields[OTHER] == (20, 0)
    assert total_of([tally, tally]).fields[OTHER] == (40, 0)


@pytest.mark.parametrize("us", [0, 1, 2, 3, 10, 999, 123_456])
def test_a_percentile_is_told_within_a_quarter_of_a_doubling(us: int) -> None:
    told = percentile_us({bucket_of_us(us): 3}, 0.95)

    assert told is not None
    assert max(us, 1) <= told + 0.05 <= max(us, 1) * 1.2 + 0.1
    assert percentile_us({}, 0.5) is None


def test_a_challenger_that_differs_is_found_and_one_that_differs_like_the_champion_itself_is_not() -> None:
    pick = random.Random(1)
    noisy = [(pick.random() < 0.3, pick.random() < 0.3) for _ in range(3_000)]
    changed = [(pick.random() < 0.4, pick.random() < 0.3) for _ in range(3_000)]

    same, other, quiet = (statement_of(counted(one)) for one in (noisy, changed, [(False, False)] * 50))

    assert (same.verdict, other.verdict, quiet.verdict) == ("collecting", "differs", "no_difference_found")
    assert other.e_value >= other.threshold == 1 / ALPHA
    assert other.excess_rate == pytest.approx(0.1, abs=0.03)
    assert same.noise_rate is not None
    assert same.noise_rate.low < 0.3 < same.noise_rate.high


def test_noise_alone_is_hardly_ever_taken_for_a_difference_however_often_one_looks() -> None:
    pick, wrong = random.Random(7), 0
    for _ in range(150):
        tally = Tally()
        for look in range(300):
            if pick.random() < 0.5:
                tally.challenger_only += 1
            else:
                tally.noise_only += 1
            if look % 10 == 9 and statement_of(tally).verdict == "differs":
                wrong += 1
                break

    assert wrong <= 8, "2 % of 150 are 3; more than 8 happens with a probability of 0.004"


@pytest.mark.parametrize(("count", "samples"), [(0, 1), (0, 5_000), (3, 1_000), (500, 1_000), (1_000, 1_000)])
def test_the_interval_of_a_rate_holds_it_and_shrinks(count: int, samples: int) -> None:
    narrow, wide = rate_interval(count, samples), rate_interval(count, samples, alpha=0.001)

    assert narrow is not None
    assert wide is not None
    assert 0 <= wide.low <= narrow.low <= count / samples <= narrow.high <= wide.high <= 1
    more = rate_interval(count * 50, samples * 50)
    assert more is not None
    assert more.high - more.low < narrow.high - narrow.low
    assert rate_interval(0, 0) is None


@pytest.mark.parametrize(
    ("raw", "noise", "compared", "flagged"),
    [(0, 0, 100, False), (5, 5, 100, False), (12, 10, 100, False), (20, 10, 100, True), (5, 20, 100, False),
     (1, 0, 100_000, False), (40, 0, 100_000, True), (1, 0, 0, False)],
)  # fmt: skip
def test_a_field_is_flagged_when_it_differs_beyond_noise(raw: int, noise: int, compared: int, flagged: bool) -> None:
    assert is_flagged(raw, noise, compared) is flagged
