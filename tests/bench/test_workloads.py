"""The requests that workloads make: well formed, unique, in their shares."""

import json
from collections import Counter

import msgspec
import pytest

from bench.workloads import (
    Consume,
    ConsumeBatch,
    CreateAccounts,
    Mixed,
    Origin,
    ReadBalance,
    ReserveCommit,
    Step,
    TopUpBatch,
    Workload,
    WorkloadSpec,
    build,
)

ORIGIN = Origin("127.0.0.1", 1, "token", "run")
RESERVED = b'{"reservation_id":"0193-abc","status":"held"}'


def parse(request: bytes) -> tuple[str, dict[str, str], dict[str, object]]:
    """Request line, headers and JSON body of one request, checked against its Content-Length."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = dict(each.split(": ", 1) for each in rest)
    assert int(headers.get("Content-Length", "0")) == len(body)
    return line, headers, json.loads(body) if body else {}


def first(workload: Workload) -> Step:
    """The next task's first request, which there must be."""
    step = workload.first()
    assert step is not None
    return step


ENDLESS: list[WorkloadSpec] = [Consume(50), ReserveCommit(50), Mixed(50), ConsumeBatch(50, 20)]


@pytest.mark.parametrize("spec", ENDLESS, ids=lambda spec: type(spec).__name__)
def test_every_request_is_well_formed_and_has_a_key_of_its_own(spec: WorkloadSpec) -> None:
    workload = build(spec, ORIGIN, seed=1)
    keys = []

    for _ in range(2_000):
        step: Step | None = first(workload)
        while step is not None:
            line, headers, _ = parse(step.request)
            assert headers["Authorization"] == "Bearer token"
            if line.startswith("POST"):
                keys.append(headers["Idempotency-Key"])
            step = workload.after(step.kind, 200, RESERVED)

    assert len(set(keys)) == len(keys)


def test_consume_spreads_over_all_tenants_and_stays_among_them() -> None:
    workload = build(Consume(20), ORIGIN, seed=1)

    tenants = Counter(str(parse(first(workload).request)[2]["tenant_id"]) for _ in range(4_000))

    assert set(tenants) == {f"t{number:07d}" for number in range(20)}
    assert min(tenants.values()) > 100


def test_hot_consume_names_one_tenant() -> None:
    workload = build(Consume(1), ORIGIN, seed=1)

    assert {parse(first(workload).request)[2]["tenant_id"] for _ in range(100)} == {"t0000000"}


def test_commit_follows_a_reserve_that_succeeded() -> None:
    workload = build(ReserveCommit(5), ORIGIN, seed=1)

    step = workload.after(first(workload).kind, 200, RESERVED)

    assert step is not None
    assert parse(step.request)[0] == "POST /v1/credits/reservations/0193-abc/commit HTTP/1.1"
    assert workload.kinds[step.kind] == "commit"
    assert workload.after(step.kind, 200, b"{}") is None


def test_nothing_follows_a_reserve_that_was_refused() -> None:
    workload = build(ReserveCommit(5), ORIGIN, seed=1)

    assert workload.after(first(workload).kind, 402, b"{}") is None


def test_mixed_keeps_its_shares() -> None:
    workload = build(Mixed(50), ORIGIN, seed=1)

    kinds = Counter(workload.kinds[first(workload).kind] for _ in range(20_000))

    shares = {kind: count / 20_000 for kind, count in kinds.items()}
    assert shares == pytest.approx({"consume": 0.60, "reserve": 0.15, "balance": 0.20, "topup": 0.05}, abs=0.02)


def test_balance_read_has_neither_body_nor_key() -> None:
    line, headers, _ = parse(first(build(ReadBalance(1), ORIGIN, seed=1)).request)

    assert line == "GET /v1/accounts/t0000000 HTTP/1.1"
    assert not {"Idempotency-Key", "Content-Length"} & set(headers)


def test_batch_counts_the_operations_that_its_answer_reports() -> None:
    workload = build(ConsumeBatch(50, 20), ORIGIN, seed=1)
    step = first(workload)

    operations = parse(step.request)[2]["operations"]
    outcome = workload.outcome(step.kind, 200, b'{"results":[{"status":200}],"succeeded":18,"failed":2}')

    assert isinstance(operations, list)
    assert len(operations) == 20
    assert outcome == (18, 2)
    assert workload.outcome(step.kind, 503, b"") == (0, 20)


def test_batch_answer_without_its_counts_is_a_fault() -> None:
    workload = build(ConsumeBatch(50, 20), ORIGIN, seed=1)

    with pytest.raises(msgspec.ValidationError):
        workload.outcome(0, 200, b'{"results":[]}')


def test_accounts_of_a_range_are_created_once_each() -> None:
    workload = build(CreateAccounts(7, 3), ORIGIN, seed=1)

    steps = [workload.first() for _ in range(5)]

    assert [parse(step.request)[2]["tenant_id"] for step in steps if step] == [
        "t0000007",
        "t0000008",
        "t0000009",
    ]
    assert steps[3:] == [None, None]


def test_top_ups_cover_a_range_that_does_not_fill_its_last_batch() -> None:
    workload = build(TopUpBatch(0, 5, 100, 2), ORIGIN, seed=1)
    tenants: list[str] = []

    while (step := workload.first()) is not None:
        operations = msgspec.convert(parse(step.request)[2]["operations"], list[dict[str, str | int]])
        assert {one["amount"] for one in operations} == {100}
        tenants += [str(one["tenant_id"]) for one in operations]

    assert tenants == [f"t{number:07d}" for number in range(5)]
