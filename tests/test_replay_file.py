"""Replay: what a file plans, which files are refused, and whole runs on a real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.replay import ReplayOptions, Summary, duration_s, replay, run_replay
from app.replay_calls import ReplayError
from app.replay_plan import (
    GENERATED_TOKENS_MAX,
    TOP_UP_CREDITS,
    Request,
    TraceError,
    account_key,
    make_plan,
    name_run,
    read_trace,
    step_key,
    top_up_key,
)
from tests.credits.ledger_house import LedgerHouse
from tests.server import ROOT_KEY, ShieldxServer

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(path: Path, rows: list[tuple[int, int]], *, step_s: float = 0.01) -> Path:
    lines = [f"2023-11-16 18:17:{3 + index * step_s:010.7f},{a},{b}" for index, (a, b) in enumerate(rows)]
    path.write_bytes((HEADER + "\n".join(lines)).replace("\n", "\r\n").encode())
    return path


# Reading


def test_a_file_with_crlf_and_no_last_newline_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8"
    )

    requests = read_trace(path)

    assert [(r.number, r.context_tokens, r.generated_tokens) for r in requests] == [(1, 4808, 10), (2, 3180, 8)]
    assert [r.start_s for r in requests] == [0.0, 0.052]


def test_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\ufeff" + HEADER + "\n2023-11-16T18:17:03Z,1,2\n\n", encoding="utf-8")

    assert read_trace(path) == [Request(1, 0.0, 1, 2)]


def test_times_count_from_the_earliest_row_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2023-11-16 18:17:09,1,1\n2023-11-16 18:17:03,1,1\n")

    assert [request.start_s for request in read_trace(path)] == [6.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "has no request"),
        ("time,a,b\n", "line 1: the columns must be TIMESTAMP,ContextTokens,GeneratedTokens"),
        (HEADER + "2023-11-16 18:17:03,1,2\n2023-11-16 18:17:04,1\n", "line 3: 2 columns where 3 belong"),
        (HEADER + "yesterday,1,2\n", "line 2: TIMESTAMP is no time"),
        (HEADER + "2023-11-16 18:17:03,-1,2\n", "line 2: ContextTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03,1,2.5\n", "line 2: GeneratedTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03,1,1e3\n", "line 2: GeneratedTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03,1,\n", "line 2: GeneratedTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03,\u0663,1\n", "line 2: ContextTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03," + "9" * 11 + ",1\n", "line 2: ContextTokens is no whole number"),
        (HEADER + "2023-11-16 18:17:03,1,1\n2023-11-16 18:17:03Z,1,1\n", "with and without a zone"),
        (HEADER + '"2023-11-16 18:17:03,1,1\n', "line 2: "),
    ],
)
def test_a_bad_file_is_refused_with_line_and_advice(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(TraceError) as refused:
        read_trace(path)

    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(tmp_path / "binary")
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "missing")


# Planning


_rows = st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 9_000)), min_size=1, max_size=200)


def requests_of(rows: list[tuple[int, int]]) -> list[Request]:
    return [Request(number, 0.0, context, generated) for number, (context, generated) in enumerate(rows, 1)]


@given(_rows, st.integers(1, 20))
def test_a_hold_never_falls_below_what_is_used_and_a_gateway_could_know_it(
    rows: list[tuple[int, int]], tenants: int
) -> None:
    for step in make_plan("r", requests_of(rows), tenants).steps:
        request = step.request
        assert request.held >= max(request.used, 1)
        if request.generated_tokens <= GENERATED_TOKENS_MAX:
            assert request.held == request.context_tokens + GENERATED_TOKENS_MAX


@given(_rows, st.integers(1, 20))
def test_planned_top_ups_cover_every_hold_of_requests_in_turn(rows: list[tuple[int, int]], tenants: int) -> None:
    plan = make_plan("r", requests_of(rows), tenants)

    available: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    for step in plan.steps:
        if step.top_up is not None:
            assert step.top_up[0] == counters[step.tenant_id]
            counters[step.tenant_id] += 1
            available[step.tenant_id] += step.top_up[1]
        assert available[step.tenant_id] >= step.request.held
        available[step.tenant_id] -= step.request.used
    assert plan.credits_used == sum(a + b for a, b in rows)


def test_requests_go_round_the_tenants_by_row_number() -> None:
    plan = make_plan("r", requests_of([(1, 1)] * 5), 2)

    assert [step.tenant_id for step in plan.steps] == ["replay-0000", "replay-0001"] * 2 + ["replay-0000"]
    assert [step.top_up for step in plan.steps] == [(0, TOP_UP_CREDITS)] * 2 + [None] * 3


@pytest.mark.parametrize("tenants", [0, -1, 10_001])
def test_a_senseless_number_of_tenants_is_refused(tenants: int) -> None:
    with pytest.raises(TraceError, match="1 to 10000"):
        make_plan("r", requests_of([(1, 1)]), tenants)


def test_keys_name_run_row_step_and_attempt_and_never_collide() -> None:
    keys = [
        account_key("r", "replay-0001"), top_up_key("r", "replay-0001", 0), top_up_key("r", "replay-0001", 1),
        *(step_key(run, row, step, attempt)
          for run in ("r", "s") for row in (1, 11) for step in ("reserve", "commit", "topup") for attempt in (0, 1)),
    ]  # fmt: skip

    assert step_key("r", 7, "commit", 0) == "replay/r/7/commit/0"
    assert len(set(keys)) == len(keys)
    assert all(len(key) <= 255 and key.isascii() and key.isprintable() for key in keys)


def test_the_run_is_named_by_the_content_of_the_file(tmp_path: Path) -> None:
    first = trace(tmp_path / "a.csv", [(1, 1)])
    same = trace(tmp_path / "b.csv", [(1, 1)])
    other = trace(tmp_path / "c.csv", [(1, 2)])

    assert name_run(first, None) == name_run(same, None) != name_run(other, None)
    assert name_run(first, "nightly.1") == "nightly.1"


@pytest.mark.parametrize("name", ["", "with space", "a/b", "x" * 65, "-x"])
def test_a_run_name_that_no_key_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="run name"):
        name_run(tmp_path, name)


def test_a_longer_answer_takes_longer() -> None:
    assert duration_s(Request(1, 0, 1_000, 100)) == pytest.approx(0.2 + 2.0)


# Whole runs


async def _play(server: ShieldxServer, path: Path, **options: object) -> Summary:
    return await replay(ReplayOptions(file=path, url=server.url, key=ROOT_KEY, **options))  # type: ignore[arg-type]


def answered(summary: Summary) -> int:
    """Return how many calls got an answer that stands: a busy server may tell a caller to come again."""
    return summary.calls - summary.retries


async def test_the_same_run_again_changes_nothing_and_gives_the_same_totals(server: ShieldxServer, tmp_path: Path) -> None:
    rows = [(1_000 + index, index % 7) for index in range(60)] + [(0, 0), (10, 5_000)]
    path = trace(tmp_path / "a.csv", rows)
    used = sum(a + b for a, b in rows)

    first = await _play(server, path, tenants=4)
    again = await _play(server, path, tenants=4)

    assert (first.complete, first.credits_consumed, first.committed, first.aborted, first.refused) == (True, used, 61, 1, 0)
    assert (again.credits_consumed, again.committed, again.top_ups) == (used, 61, first.top_ups)
    assert first.replayed <= first.retries
    assert again.replayed == answered(again)


async def test_holds_that_overlap_are_overcome_by_top_ups_and_that_can_be_repeated(
    server: ShieldxServer, tmp_path: Path
) -> None:
    # One top-up covers 48 of these holds; 120 of them come at once.
    path = trace(tmp_path / "b.csv", [(10, 1)] * 120)

    first = await _play(server, path, tenants=1, connections=120, run_name="overlap")
    again = await _play(server, path, tenants=1, connections=120, run_name="overlap")

    assert (first.complete, first.credits_consumed) == (True, 120 * 11)
    assert (again.complete, again.replayed, again.top_ups, again.refusals) == (
        True,
        answered(again),
        first.top_ups,
        first.refusals,
    )


async def test_timestamps_set_the_pace(server: ShieldxServer, tmp_path: Path) -> None:
    path = trace(tmp_path / "c.csv", [(10, 5)] * 11, step_s=1.0)

    summary = await _play(server, path, speed=10.0, tenants=2)

    assert summary.complete
    assert 1.0 <= summary.seconds < 10.0


async def _wait_spent(server: ShieldxServer, tenant_id: str, credits_min: int) -> None:
    """Wait until a tenant of a running replay has spent this much."""
    headers = {"Authorization": f"Bearer {ROOT_KEY}"}
    deadline_s = time.monotonic() + 20
    async with aiohttp.ClientSession(headers=headers) as session:
        while True:
            async with session.get(f"{server.url}/v1/accounts/{tenant_id}") as answer:
                account = await answer.json()
            if answer.status == 200 and 0 < account["balance"] <= TOP_UP_CREDITS - credits_min:
                return
            assert time.monotonic() < deadline_s, f"{tenant_id} spends nothing: {account}"
            await asyncio.sleep(0.005)


async def test_a_client_that_was_stopped_finishes_its_run_at_the_next_start(server: ShieldxServer, tmp_path: Path) -> None:
    path = trace(tmp_path / "d.csv", [(20, 3)] * 300)
    task = asyncio.create_task(_play(server, path, connections=4, tenants=9, run_name="stopped"))
    await _wait_spent(server, "replay-0008", 3 * 23)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    summary = await _play(server, path, connections=4, tenants=9, run_name="stopped")

    assert (summary.complete, summary.credits_consumed) == (True, 300 * 23)
    assert 0 < summary.replayed < summary.calls


async def test_a_server_that_is_killed_and_comes_back_loses_and_doubles_nothing(house: LedgerHouse, tmp_path: Path) -> None:
    path = trace(tmp_path / "e.csv", [(50, 7)] * 400)
    server = house.server_on(await house.make_ledger(), "replayed")
    await server.start()
    task = asyncio.create_task(_play(server, path, connections=8, tenants=3))
    await _wait_spent(server, "replay-0002", 20 * 57)
    server.kill()
    await server.start()
    summary = await task
    again = await _play(server, path, connections=8, tenants=3)
    verified = await asyncio.to_thread(server.run_command, "audit", "verify", "--json")
    server.kill()

    assert (summary.complete, summary.credits_consumed) == (True, 400 * 57)
    assert summary.retries > 0
    assert (again.complete, again.replayed) == (True, answered(again))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["signatures_unchecked"] == 0


async def test_a_run_with_other_options_under_the_same_name_is_refused(server: ShieldxServer, tmp_path: Path) -> None:
    path = trace(tmp_path / "f.csv", [(9, 9)] * 4)
    await _play(server, path, tenants=2, run_name="taken")

    with pytest.raises(ReplayError, match="other options"):
        await _play(server, path, tenants=3, run_name="taken")


async def test_the_command_prints_a_summary_and_exits_0(
    server: ShieldxServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path / "g.csv", [(5, 5)] * 3)
    options = ReplayOptions(file=path, url=server.url, key=ROOT_KEY, json=True)

    assert await asyncio.to_thread(run_replay, options) == 0

    summary = json.loads(capsys.readouterr().out)
    assert (summary["credits_consumed"], summary["requests"], summary["complete"]) == (30, 3, True)
    assert set(summary["reserve_ms"]) == {"p50", "p95", "p99"}


def test_the_command_exits_2_for_a_bad_file_and_for_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace(tmp_path / "h.csv", [(5, 5)])

    assert run_replay(ReplayOptions(file=tmp_path / "missing")) == 2
    assert run_replay(ReplayOptions(file=path, url="http://127.0.0.1:1", patience_seconds=0.1)) == 2

    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("replay: ") for line in errors)
