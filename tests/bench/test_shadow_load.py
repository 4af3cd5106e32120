"""The requests on experiments: well formed, every event once."""

from __future__ import annotations

import json

import pytest

from bench.shadow_load import EXPERIMENTS, AnySpec, Assign, ReportOutcomes, build_any
from bench.workloads import Consume, Origin, Outcome, Workload

ORIGIN = Origin("127.0.0.1", 1, "token", "run")


def requests(workload: Workload, count: int) -> list[tuple[str, dict[str, str], dict]]:
    found = []
    for _ in range(count):
        step = workload.first()
        assert step is not None
        head, _, body = step.request.partition(b"\r\n\r\n")
        line, *rest = head.decode().split("\r\n")
        headers = dict(each.split(": ", 1) for each in rest)
        assert int(headers["Content-Length"]) == len(body)
        assert headers["Authorization"] == "Bearer token"
        found.append((line, headers, json.loads(body)))
    return found


def test_assignments_ask_for_units_of_one_experiment() -> None:
    (line, _, body), *others = requests(build_any(Assign("bench-fixed", 50), ORIGIN, 1), 200)

    assert line == "POST /v1/experiments/bench-fixed/assign HTTP/1.1"
    assert {tuple(one) for _, _, one in others} == {("unit_id",)}
    assert len({one["unit_id"] for _, _, one in others}) > 30
    assert body["unit_id"].startswith("u00000")


def test_outcomes_are_of_units_that_can_be_assigned_and_every_event_has_an_id_of_its_own() -> None:
    batches = requests(build_any(ReportOutcomes("bench-fixed", 100), ORIGIN, 1), 5)

    outcomes = [one for _, _, body in batches for one in body["outcomes"]]
    assert len(outcomes) == len({one["event_id"] for one in outcomes}) == 500
    assert sum(one["success"] for one in outcomes) == 50
    assert all(one["latency_ms"] >= 100 for one in outcomes)


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [(200, b'{"accepted":100,"duplicates":0}', Outcome(100, 0)), (200, b'{"accepted":60,"duplicates":40}', Outcome(60, 40)), (503, b"", Outcome(0, 100))],
)  # fmt: skip
def test_what_a_batch_counts_for_is_what_was_accepted(status: int, answer: bytes, outcome: Outcome) -> None:
    assert build_any(ReportOutcomes("bench-fixed", 100), ORIGIN, 1).outcome(0, status, answer) == outcome


@pytest.mark.parametrize("spec", [Assign("bench-fixed"), ReportOutcomes("bench-fixed", 10), Consume(5)])
def test_the_same_seed_sends_the_same_requests(spec: AnySpec) -> None:
    one, again = (build_any(spec, ORIGIN, 7) for _ in range(2))

    assert [one.first() for _ in range(20)] == [again.first() for _ in range(20)]


def test_experiments_of_both_kinds_are_made_for_the_load() -> None:
    assert sorted(EXPERIMENTS.values()) == ["fixed", "thompson"]
