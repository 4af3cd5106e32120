"""Plays a trace of metered requests against a running server, as the gateway in front of a model would.

Each row reserves what it may cost at most, and commits what it did cost when it ends. Keys follow from run name and
row (`app.replay_plan`), so the same command again, after a kill -9 of either side, finishes the run and changes
nothing that was done.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from app.progress import Progress
from app.replay_calls import Answer, Caller, ReplayError, Samples
from app.replay_plan import (
    TOP_UP_CREDITS,
    TraceError,
    account_key,
    make_plan,
    name_run,
    read_trace,
    step_key,
    top_up_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from app.replay_plan import Plan, Request, Step

DEFAULT_URL: Final = "http://127.0.0.1:5004"
RESERVATION_TTL_S: Final = 3_600  # seconds; a run that was killed can be continued within the hour without new holds
ATTEMPTS_MAX: Final = 20  # per request, with a top-up or a new hold between two; more means that somebody else spends
# How long a request runs: a model reads its context fast and writes its answer token by token.
SECONDS_PER_CONTEXT_TOKEN: Final = 0.000_2
SECONDS_PER_GENERATED_TOKEN: Final = 0.02
ACCOUNT_EXISTS: Final = "account_exists"  # another run made it; that is as good
EXIT_DONE: Final = 0
EXIT_INCOMPLETE: Final = 1
EXIT_FAILED: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells expect


class ReplayOptions(msgspec.Struct, frozen=True):
    """What to play, and how. `speed` is a multiple of real time, 0 as fast as `connections` allow."""

    file: Path
    url: str = DEFAULT_URL
    key: str | None = None
    speed: float = 0.0
    tenants: int = 10
    connections: int = 32
    run_name: str | None = None
    patience_seconds: float = 60.0
    json: bool = False


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from sending to the answer that stood, retries included."""

    p50: float
    p95: float
    p99: float


class Summary(msgspec.Struct, frozen=True):
    """What a replay did. Credits and counts are those of the whole run, also where an earlier one had done them.

    credits_expected  what the file costs; complete is True when exactly that was consumed
    replayed          answers that the server gave again, because an earlier run had them already
    refusals          by code; those that were overcome by a top-up or a new hold are among them
    """

    run: str
    complete: bool
    requests: int
    committed: int
    aborted: int
    refused: int
    credits_consumed: int
    credits_expected: int
    top_ups: int
    credits_topped_up: int
    replayed: int
    refusals: dict[str, int]
    retries: int
    calls: int
    reserve_ms: Latency
    commit_ms: Latency
    seconds: float
    requests_per_second: float


def duration_s(request: Request) -> float:
    """Return how long the request would have run, in seconds of real time."""
    return request.context_tokens * SECONDS_PER_CONTEXT_TOKEN + request.generated_tokens * SECONDS_PER_GENERATED_TOKEN


class Player:
    """One replay: sends the steps of a plan and adds up the answers."""

    def __init__(self, plan: Plan, caller: Caller, speed: float, on_row: Callable[[], None]) -> None:
        """`on_row` is called after every request that has ended."""
        self.committed = 0
        self.aborted = 0
        self.refused = 0
        self.credits_consumed = 0
        self.top_ups = 0
        self.credits_topped_up = 0
        self.reserve = Samples()
        self.commit = Samples()
        self._plan = plan
        self._caller = caller
        self._speed = speed
        self._on_row = on_row
        self._funded: dict[str, asyncio.Task[None]] = {}

    async def play(self, connections: int) -> None:
        """Create the tenants, then play all steps. Raises ReplayError; the first fault stops everything."""
        tenant_ids, steps = iter(self._plan.tenant_ids), iter(self._plan.steps)
        try:
            await _all(self._open_accounts(tenant_ids) for _ in range(connections))
            if self._speed > 0:
                await _all(iter([self._play_timed()]))
            else:
                await _all(self._play_fast(steps) for _ in range(connections))
        finally:
            for top_up in self._funded.values():
                top_up.cancel()
            await asyncio.gather(*self._funded.values(), return_exceptions=True)

    async def _open_accounts(self, tenant_ids: Iterator[str]) -> None:
        for tenant_id in tenant_ids:
            key = account_key(self._plan.run, tenant_id)
            answer = await self._caller.post("/v1/accounts", {"tenant_id": tenant_id}, key)
            if answer.code not in {"", ACCOUNT_EXISTS}:
                raise _unexpected(f"creating account {tenant_id}", answer)

    async def _play_fast(self, steps: Iterator[Step]) -> None:
        for step in steps:
            self._fund(step)
            await self._play_step(step, 0.0)

    async def _play_timed(self) -> None:
        """Start every request at its time, whatever the others do: an open loop."""
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for step in sorted(self._plan.steps, key=lambda step: step.request.start_s):
                wait_s = started_s + step.request.start_s / self._speed - time.monotonic()
                await asyncio.sleep(max(wait_s, 0))
                self._fund(step)
                group.create_task(self._play_step(step, duration_s(step.request) / self._speed))

    def _fund(self, step: Step) -> None:
        """Begin the step's planned top-up. Every later request of the tenant waits for it."""
        if step.top_up is not None:
            counter, amount = step.top_up
            key = top_up_key(self._plan.run, step.tenant_id, counter)
            self._funded[step.tenant_id] = asyncio.create_task(self._top_up(step.tenant_id, amount, key))

    async def _top_up(self, tenant_id: str, amount: int, key: str) -> None:
        answer = await self._caller.post("/v1/credits/topup", {"tenant_id": tenant_id, "amount": amount}, key)
        if answer.code:
            raise _unexpected(f"the top-up of {tenant_id}", answer)
        self.top_ups += 1
        self.credits_topped_up += amount

    async def _play_step(self, step: Step, hold_s: float) -> None:
        await asyncio.shield(self._funded[step.tenant_id])
        for attempt in range(ATTEMPTS_MAX):
            answer = await self._reserve(step, attempt)
            if answer.code == "insufficient_credits":
                amount = max(TOP_UP_CREDITS, step.request.held)
                key = step_key(self._plan.run, step.request.number, "topup", attempt)
                await self._top_up(step.tenant_id, amount, key)
                continue
            if answer.code:
                break
            if hold_s:
                await asyncio.sleep(hold_s)
            if await self._finish(step, attempt, answer):
                self._on_row()
                return
        self.refused += 1
        self._on_row()

    async def _reserve(self, step: Step, attempt: int) -> Answer:
        body = {
            "tenant_id": step.tenant_id, "amount": step.request.held, "ttl_seconds": RESERVATION_TTL_S,
            "description": f"replay {self._plan.run} row {step.request.number}",
        }  # fmt: skip
        key = step_key(self._plan.run, step.request.number, "reserve", attempt)
        return await self._caller.post("/v1/credits/reserve", body, key, self.reserve)

    async def _finish(self, step: Step, attempt: int, held: Answer) -> bool:
        """Commit what was used, or abort when that is nothing. False when the hold was gone: it takes a new one."""
        used = step.request.used
        verb = "commit" if used else "abort"
        reservation_id = held.body.get("reservation_id")
        if not isinstance(reservation_id, str):
            raise _unexpected(f"the reserve of row {step.request.number}", held)
        key = step_key(self._plan.run, step.request.number, verb, attempt)
        answer = await self._caller.post(
            f"/v1/credits/reservations/{reservation_id}/{verb}", {"amount": used} if used else {}, key, self.commit
        )
        if answer.code == "reservation_expired":
            return False
        if answer.code:
            raise _unexpected(f"the {verb} of row {step.request.number}", answer)
        if used:
            self.committed += 1
            self.credits_consumed += int(answer.body.get("amount", 0))
        else:
            self.aborted += 1
        return True


async def _all(work: Iterator[Coroutine[object, object, None]]) -> None:
    """Run everything at once; the first fault stops the rest and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as faults:
        fault: BaseException = faults
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        raise fault from None


def _unexpected(what: str, answer: Answer) -> ReplayError:
    return ReplayError(
        f"{what} was answered with {answer.status} {answer.code or 'and no reservation_id'}; "
        "the server is no shieldx of this version, or somebody else changes this run's accounts"
    )


async def replay(options: ReplayOptions) -> Summary:
    """Play the file and return what was done.

    Raises TraceError when the file or an option is wrong, ReplayError when the server does not let it finish.
    """
    if options.connections < 1 or not options.speed >= 0 or not options.patience_seconds >= 0:  # NaN is neither
        raise TraceError("--connections must be at least 1, --speed and --patience-seconds at least 0")
    if not options.url.startswith(("http://", "https://")):
        raise TraceError("--url must begin with http:// or https://")
    requests = read_trace(options.file)
    plan = make_plan(name_run(options.file, options.run_name), requests, options.tenants)
    bar = Progress(len(plan.steps), "replay")
    started_s = time.monotonic()
    try:
        async with Caller(options.url, options.key, options.connections, options.patience_seconds) as caller:
            player = Player(plan, caller, options.speed, bar.advance)
            await player.play(options.connections)
    finally:
        bar.close()
    return _summary(plan, caller, player, time.monotonic() - started_s)


def _summary(plan: Plan, caller: Caller, player: Player, seconds: float) -> Summary:
    return Summary(
        run=plan.run,
        complete=player.credits_consumed == plan.credits_used and player.refused == 0,
        requests=len(plan.steps),
        committed=player.committed,
        aborted=player.aborted,
        refused=player.refused,
        credits_consumed=player.credits_consumed,
        credits_expected=plan.credits_used,
        top_ups=player.top_ups,
        credits_topped_up=player.credits_topped_up,
        replayed=caller.replayed,
        refusals={code: count for code, count in sorted(caller.refusals.items()) if code != ACCOUNT_EXISTS},
        retries=caller.retries,
        calls=caller.calls,
        reserve_ms=_latency(player.reserve),
        commit_ms=_latency(player.commit),
        seconds=round(seconds, 3),
        requests_per_second=round(len(plan.steps) / seconds, 1),
    )


def _latency(samples: Samples) -> Latency:
    return Latency(samples.percentile_ms(0.50), samples.percentile_ms(0.95), samples.percentile_ms(0.99))


def summary_text(summary: Summary) -> str:
    """Return the summary as lines for people."""
    s = summary
    refusals = ", ".join(f"{code} {count}" for code, count in s.refusals.items()) or "none"
    spent = f"{s.credits_consumed:,} of {s.credits_expected:,} credits in {s.committed:,} commits"
    lines = [
        f"run {s.run}: {s.requests:,} requests in {s.seconds:.1f} s, {s.requests_per_second:,.0f}/s",
        f"consumed  {spent}; {s.aborted:,} aborted, {s.refused:,} refused",
        f"top-ups   {s.top_ups:,} with {s.credits_topped_up:,} credits",
        f"refusals  {refusals}; {s.retries:,} retries; {s.replayed:,} of {s.calls:,} answers were replayed",
        f"reserve   p50 {s.reserve_ms.p50:.1f} ms, p95 {s.reserve_ms.p95:.1f} ms, p99 {s.reserve_ms.p99:.1f} ms",
        f"commit    p50 {s.commit_ms.p50:.1f} ms, p95 {s.commit_ms.p95:.1f} ms, p99 {s.commit_ms.p99:.1f} ms",
    ]
    return "\n".join(lines)


def run_replay(options: ReplayOptions) -> int:
    """Play, print the summary on stdout, and return the exit code.

    0 everything was consumed, 1 the run ended and some requests were refused, 2 it could not be played to its end.
    """
    try:
        summary = uvloop.run(replay(options))
    except (TraceError, ReplayError) as error:
        sys.stderr.write(f"replay: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("replay: interrupted; the same command again goes on where it stopped\n")
        return EXIT_INTERRUPTED
    sys.stdout.write((msgspec.json.encode(summary).decode() if options.json else summary_text(summary)) + "\n")
    return EXIT_DONE if summary.complete else EXIT_INCOMPLETE
