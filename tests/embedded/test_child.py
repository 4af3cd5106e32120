"""Restart delays, and logs that stay small."""

import itertools
from pathlib import Path

import pytest

from app.embedded.child import BACKOFF_MAX_S, BACKOFF_MIN_S, backoff_s, log_size, set_log_aside


def test_restart_delay_doubles_up_to_its_maximum() -> None:
    delays = [backoff_s(deaths) for deaths in range(12)]

    assert delays[0] == BACKOFF_MIN_S
    assert delays[-1] == BACKOFF_MAX_S
    for shorter, longer in itertools.pairwise(delays):
        assert longer == pytest.approx(min(2 * shorter, BACKOFF_MAX_S))


def test_restart_delay_stays_finite_for_a_server_that_never_comes_back() -> None:
    assert backoff_s(1_000_000) == BACKOFF_MAX_S


def test_log_set_aside_keeps_its_text_and_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "redis.log"
    with log.open("a", buffering=1) as writer:
        writer.write("old\n")

        set_log_aside(log)

        assert log_size(log) == 0
        writer.write("new\n")

    assert log.read_text() == "new\n"
    assert (tmp_path / "redis.log.1").read_text() == "old\n"
