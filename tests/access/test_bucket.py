"""What a decision says in its header fields, and what a request is charged."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.bucket import UNITS, Bucket, bucket_of, charge, decision
from app.access.limits import fields_of, limited_problem
from app.access.scope import Rate

KEY = Bucket("key", "key_a", 10_000, 50)
TENANT = Bucket("tenant", "acme", 500, 1)


@pytest.mark.parametrize(
    ("rate", "burst", "quota", "window"),
    [(0.5, 1, 1, 2), (10_000, 100, 10_000, 1), (10, 50, 50, 5), (100, 6_000, 6_000, 60), (0.001, 1, 1, 1_000), (15, 50, 60, 4)],
)  # fmt: skip
def test_a_policy_tells_its_quota_and_window(rate: float, burst: int, quota: int, window: int) -> None:
    bucket = bucket_of("key", "k", Rate(rate, burst))

    assert (bucket.quota, bucket.window_s) == (quota, window)


def test_the_fields_of_a_request_that_goes_on() -> None:
    made = decision((KEY, TENANT), 1, 0, [49 * UNITS, UNITS // 2])

    assert made.allowed
    assert fields_of(made) == {
        "RateLimit-Policy": '"key";q=50;w=5, "tenant";q=1;w=2',
        "RateLimit": '"key";r=49;t=1, "tenant";r=0;t=1',
    }
    assert made.retry_after_s == 0


def test_the_fields_of_a_request_that_is_refused() -> None:
    made = decision((KEY, TENANT), 1, 2, [49 * UNITS, UNITS // 4])
    problem = limited_problem(made)

    assert (made.refused, made.wait_us) == (TENANT, 1_500_000)
    assert (problem.status, problem.code) == (429, "rate_limited")
    assert problem.headers == {
        "RateLimit-Policy": '"key";q=50;w=5, "tenant";q=1;w=2',
        "RateLimit": '"key";r=49;t=1, "tenant";r=0;t=2',
        "Retry-After": "2",
    }


@given(st.integers(1, 10**9), st.integers(1, 10**6), st.data())
def test_retry_after_is_never_earlier_than_t_and_never_too_early(rate_milli: int, burst: int, data: st.DataObject) -> None:
    bucket = Bucket("key", "k", rate_milli, burst)
    tokens = data.draw(st.integers(1, burst))
    units = data.draw(st.integers(0, tokens * UNITS - 1))

    made = decision((bucket,), tokens, 1, [units])

    seconds = int(re.search(r"t=(\d+)", made.limit_field)[1])  # type: ignore[index]
    assert made.retry_after_s == seconds >= 1
    assert units + made.wait_us * rate_milli >= tokens * UNITS
    assert units + (made.wait_us - 1) * rate_milli < tokens * UNITS


def test_what_is_larger_than_a_bucket_needs_a_full_one() -> None:
    assert charge((KEY, TENANT), 10_000) == 1
    assert charge((KEY,), 10_000) == 50
    assert charge((KEY,), 7) == 7
    assert charge((KEY,), 0) == 1


def test_a_rate_is_kept_to_a_thousandth() -> None:
    assert bucket_of("key", "k", Rate(0.5, 1)).rate_milli == 500
    assert bucket_of("key", "k", Rate(1e-9, 1)).rate_milli == 1
