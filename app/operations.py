"""Operations over HTTP: health, readiness, metrics, the API's description."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from app.credits.api import CREDITS
from app.locator.api import LOCATOR
from app.metrics import Metrics
from app.shadow.api import SHADOW
from app.web.fastpath import PATHS
from app.web.routes import Answer, Handled, Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.credits.opening import Credits
    from app.locator.opening import Locator
    from app.web.request import Request

METRICS: Final = web.AppKey("metrics", Metrics)
CHECK_TIMEOUT_S: Final = 1.0  # a probe that takes longer is a failed one


async def health(_request: Request) -> Handled:
    """GET /health: the event loop runs. Touches nothing."""
    return Answer(b'{"status":"ok"}')


async def _check(work: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            found = await work()
    except Exception as error:  # noqa: BLE001 - whatever it is, this check has failed, and says with what
        return {"state": "failed", "ms": _ms(started), "reason": type(error).__name__}
    return {"state": "ok", "ms": _ms(started)} | (found or {})


def _ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


async def readiness(app: web.Application) -> dict[str, Any]:
    """Return every check with state and ms, within CHECK_TIMEOUT_S: Redis, Postgres, shards, chain, and the services."""
    credits_ = app[CREDITS]
    book = credits_.book
    shadow = app.get(SHADOW)
    probes: dict[str, Callable[[], Awaitable[Any]]] = {} if shadow is None else {"shadow": shadow.check}
    if book is not None:
        records = book.records

        async def postgres() -> None:
            await records.rows("SELECT 1")

        probes |= {"redis": credits_.ping, "postgres": postgres, "chain": records.check_heads}
    found = dict(zip(probes, await asyncio.gather(*map(_check, probes.values())), strict=True))
    if book is None:
        checks: dict[str, Any] = {"postgres": {"state": "waiting", "ms": 0.0, "reason": credits_.waiting_for}}
    else:
        checks = {
            "redis": found["redis"],
            "postgres": found["postgres"],
            "shard": _shards(credits_),
            "chain": found["chain"],
        }
    if shadow is not None:
        checks["shadow"] = found["shadow"]
    if LOCATOR in app:
        checks["locator"] = _locator(app[LOCATOR])
    if app[PATHS].leaving:
        checks["process"] = {"state": "stopping", "ms": 0.0}
    return checks


def _waiting(checks: dict[str, Any]) -> list[str]:
    return [name for name, check in checks.items() if check["state"] != "ok"]


async def ready(request: Request) -> Handled:
    """GET /ready: Redis, Postgres, shards and chain, each with state and ms; 503 names what is waited for."""
    checks = await readiness(request.app)
    waiting = _waiting(checks)
    status = 503 if waiting else 200
    body = {"status": "ready" if status == 200 else "waiting", "waiting_for": waiting, "checks": checks}
    fields = "Retry-After: 1\r\n" if status == 503 else ""
    return Answer(orjson.dumps(body), status=status, fields=fields)


def _shards(credits_: Credits) -> dict[str, Any]:
    started = time.perf_counter()
    shards = [
        {"shard": shard.number, "state": shard.state, "leading": shard.leading, "generation": shard.generation,
         "durable_seq": shard.durable, "log": {"state": signer.state, "size": signer.size, "reason": signer.reason}}
        | ({"reason": shard.reason} if shard.reason else {})
        for shard, signer in zip(credits_.shards, credits_.signers, strict=True)
    ]  # fmt: skip
    state = "ok" if all(shard["state"] == "open" for shard in shards) else "waiting"
    return {"state": state, "ms": _ms(started), "shards": shards}


def _locator(locator: Locator) -> dict[str, Any]:
    """The registry answers from memory once it has been read, so it is ready while Redis is away, too."""
    state = "ok" if locator.warm else "waiting"
    return {"state": state, "ms": 0.0, "following": locator.following, "instances": locator.directory.instances}


async def metrics(request: Request) -> Handled:
    """GET /metrics: all series in the Prometheus text format; `shieldx_ready` is what /ready would say now."""
    request.app[METRICS].ready = not _waiting(await readiness(request.app))
    return Answer(request.app[METRICS].text(), content_type="text/plain; version=0.0.4; charset=utf-8")


OPERATION_ROUTES: Final = (
    Route("GET", "/health", health, summary="Alive", tag="operations", open=True, answers={200: dict[str, Any]}),
    Route("GET", "/ready", ready, summary="Ready to serve", tag="operations", open=True,
          answers={200: dict[str, Any], 503: dict[str, Any]}),
    Route("GET", "/metrics", metrics, summary="Prometheus metrics", tag="operations", answers={200: None},
          media_type="text/plain"),
)  # fmt: skip
