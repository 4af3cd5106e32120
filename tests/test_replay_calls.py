"""How a replay repeats a call, waits, and gives up: against a server that answers what a list says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main
from app.replay import ReplayOptions, replay
from app.replay_calls import RETRY_MAX_S, Caller, ReplayError, Samples, retry_after_s, retry_delay_s
from tests.credits.ledger_client import fresh
from tests.lag import LOOP_TICK_S
from tests.server import ROOT_KEY, ShieldxServer


@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_retry_delays_double_from_10_ms_to_2_s_with_a_fifth_of_jitter(attempt: int, jitter: float) -> None:
    centre = min(0.010 * 2 ** min(attempt, 30), RETRY_MAX_S)

    assert centre * 0.8 - 1e-9 <= retry_delay_s(attempt, jitter) <= centre * 1.2 + 1e-9


def test_retry_after_is_seconds_and_nothing_else() -> None:
    assert [retry_after_s(text) for text in ("0", "7", "99999", "-1", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT", None)] == [
        0.0, 7.0, 3600.0, None, None, None, None,
    ]  # fmt: skip


def test_percentiles_are_measured_values() -> None:
    samples = Samples()
    assert samples.percentile_ms(0.99) == 0.0
    samples.seconds = [index / 1000 for index in range(100, 0, -1)]

    assert [samples.percentile_ms(share) for share in (0.5, 0.95, 0.99)] == [50.0, 95.0, 99.0]


class Script:
    """A server that gives the answers of a list, one a call, and notes the keys it was sent."""

    def __init__(self) -> None:
        self.answers: list[web.Response | None] = []
        self.keys: list[str] = []
        self.server = TestServer(self._application())

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/{rest:.*}", self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Idempotency-Key"])
        answer = self.answers.pop(0)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return answer


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    script = Script()
    await script.server.start_server()
    yield script
    await script.server.close()


def problem(status: int, code: str, **headers: str) -> web.Response:
    return web.json_response({"code": code}, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_a_call_is_repeated_with_its_key_until_the_server_answers(script: Script) -> None:
    script.answers = [
        problem(503, "unavailable"), None, problem(500, "internal_error"), problem(409, "idempotency_key_in_flight"),
        web.json_response({"amount": 5}, headers={"Idempotent-Replayed": "true"}),
    ]  # fmt: skip

    async with Caller(str(script.server.make_url("")), "key", 1, 30) as caller:
        answer = await caller.post("/v1/x", {}, "the-key")

    assert (answer.status, answer.code, answer.body, answer.replayed) == (200, "", {"amount": 5}, True)
    assert script.keys == ["the-key"] * 5
    assert (caller.calls, caller.retries, caller.replayed) == (5, 4, 1)


async def test_a_rate_limit_is_waited_for_as_the_server_says(script: Script) -> None:
    script.answers = [problem(429, "rate_limited", Retry_After="1"), web.json_response({})]
    started_s = asyncio.get_running_loop().time()

    async with Caller(str(script.server.make_url("")), None, 1, 30) as caller:
        await caller.post("/v1/x", {}, "k")

    assert asyncio.get_running_loop().time() - started_s >= 1.0 - LOOP_TICK_S
    assert caller.refusals == {"rate_limited": 1}


async def test_a_business_refusal_is_an_answer(script: Script) -> None:
    script.answers = [problem(402, "insufficient_credits")]

    async with Caller(str(script.server.make_url("")), None, 1, 30) as caller:
        answer = await caller.post("/v1/x", {}, "k")

    assert (answer.status, answer.code) == (402, "insufficient_credits")
    assert caller.retries == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (problem(401, "unauthorized"), "refuses the key"),
        (problem(403, "forbidden"), "refuses the key"),
        (problem(422, "idempotency_key_reused"), "--run NAME"),
        (web.Response(status=404, text="<html>"), "not a shieldx server"),
    ],
)
async def test_what_no_retry_changes_ends_the_replay_with_advice(script: Script, answer: web.Response, message: str) -> None:
    script.answers = [answer]

    async with Caller(str(script.server.make_url("")), None, 1, 30) as caller:
        with pytest.raises(ReplayError, match=message):
            await caller.post("/v1/x", {}, "k")


async def test_patience_ends() -> None:
    async with Caller("http://127.0.0.1:1", None, 1, 0.3) as caller:
        with pytest.raises(ReplayError, match=r"no answer for 0\.3 s"):
            await caller.post("/v1/x", {}, "k")

    assert caller.calls == caller.retries + 1 >= 2


async def test_a_hold_that_expired_is_taken_again_under_a_key_of_its_own(script: Script, tmp_path: Path) -> None:
    script.answers = [
        problem(409, "account_exists"), web.json_response({}), web.json_response({"reservation_id": "r0"}),
        problem(409, "reservation_expired"), web.json_response({"reservation_id": "r1"}), web.json_response({"amount": 7}),
    ]  # fmt: skip
    path = tmp_path / "x.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4,3\n")
    options = ReplayOptions(file=path, url=str(script.server.make_url("")), tenants=1, run_name="x")

    summary = await replay(options)

    assert (summary.complete, summary.credits_consumed, summary.refusals) == (True, 7, {"reservation_expired": 1})
    assert script.keys[2:] == ["replay/x/1/reserve/0", "replay/x/1/commit/0", "replay/x/1/reserve/1", "replay/x/1/commit/1"]


async def test_the_command_plays_a_file_and_prints_what_it_did(
    server: ShieldxServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4,3\n2023-11-16 18:17:04,0,0\n")
    command = [
        "replay",
        str(path),
        "--url",
        server.url,
        "--key",
        ROOT_KEY,
        "--tenants",
        "2",
        "--run",
        fresh("command"),
        "--json",
    ]

    exit_codes = [await asyncio.to_thread(main, command) for _ in range(2)]

    assert exit_codes == [0, 0]
    first, again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["complete"], first["credits_consumed"], first["aborted"], first["replayed"]) == (True, 7, 1, 0)
    assert (again["complete"], again["credits_consumed"]) == (True, 7)
    assert again["replayed"] == again["calls"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([], "none.csv"),
        (["--url", "ftp://127.0.0.1"], "--url"),
        (["--speed", "nan"], "--speed"),
        (["--connections", "0"], "--conn"),
    ],
)
def test_the_command_says_at_once_what_is_wrong(
    wrong: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code = main(["replay", str(tmp_path / "none.csv"), "--key", ROOT_KEY, *wrong])

    assert exit_code == 2
    assert named in capsys.readouterr().err
