"""How a replay calls the server: every call with its key, repeated until there is an answer or patience ends."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import aiohttp
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

CALL_TIMEOUT_S: Final = 10.0  # twice what the server waits for its database; a later answer is asked for again
CONNECT_TIMEOUT_S: Final = 5.0  # a server on the same network answers within milliseconds or not at all
RETRY_FIRST_S: Final = 0.010  # about three commits of an idle server
RETRY_MAX_S: Final = 2.0  # a server that restarts is found again within this time
RETRY_JITTER: Final = 0.2  # share up or down, so that many connections do not come back in step
RETRY_AFTER_MAX_S: Final = 3_600  # a longer wait than an hour is a misconfigured limit, not load
RETRY_STATUSES: Final = frozenset({408, 500, 502, 503, 504})  # nothing was decided, or the same key tells what was
TOO_MANY: Final = 429
CONFLICT: Final = 409
IN_FLIGHT: Final = "idempotency_key_in_flight"


class ReplayError(Exception):
    """The replay cannot go on. The message says why, and what to do."""


class Answer(NamedTuple):
    """The server's answer to one call: `code` is empty when it was done, and names the refusal otherwise."""

    status: int
    code: str
    body: dict[str, Any]
    replayed: bool


def retry_delay_s(attempt: int, jitter: float) -> float:
    """Return the wait before retry `attempt` (from 0), with `jitter` from -1 to 1."""
    return min(RETRY_FIRST_S * 2.0 ** min(attempt, 32), RETRY_MAX_S) * (1 + RETRY_JITTER * jitter)


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, None when it is not a whole number (RFC 9110, 10.2.3)."""
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return float(min(int(value), RETRY_AFTER_MAX_S))


class Samples:
    """Durations of one kind of call, in seconds."""

    def __init__(self) -> None:
        """Begin without any."""
        self.seconds: list[float] = []

    def percentile_ms(self, share: float) -> float:
        """Return the nearest-rank percentile in milliseconds: a value that was measured; 0 when there is none."""
        if not self.seconds:
            return 0.0
        ordered = sorted(self.seconds)
        rank = math.ceil(round(share * len(ordered), 6))
        return round(ordered[max(rank, 1) - 1] * 1000, 3)


class Caller:
    """Posts JSON with an idempotency key, and counts what it meets."""

    def __init__(self, url: str, key: str | None, connections: int, patience_s: float) -> None:
        """`url` is the server's, without a path; `patience_s` bounds the retries of one call from its first failure."""
        self.calls = 0
        self.retries = 0
        self.replayed = 0
        self.refusals: Counter[str] = Counter()
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._connections = connections
        self._patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=CALL_TIMEOUT_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: Mapping[str, object], key: str, samples: Samples | None = None) -> Answer:
        """Call until there is an answer that stands. The duration, retries included, goes into `samples`.

        Raises ReplayError when patience is over, the server does not know the key's right, or is not shieldx.
        """
        data = orjson.dumps(body)
        started_s = time.monotonic()
        failed_s: float | None = None
        attempt = 0
        while True:
            self.calls += 1
            failure, wait_s, answer = await self._try(path, data, key)
            if answer is not None:
                break
            now_s = time.monotonic()
            failed_s = now_s if failed_s is None else failed_s
            delay_s = retry_delay_s(attempt, random.uniform(-1, 1)) if wait_s is None else wait_s  # noqa: S311 - spreads load
            if now_s + delay_s - failed_s > self._patience_s:
                raise ReplayError(
                    f"no answer for {self._patience_s:g} s ({failure}). Nothing is lost: run the same command again "
                    "when the server is up, and it goes on where it stopped"
                )
            await asyncio.sleep(delay_s)
            attempt += 1
            self.retries += 1
        if samples is not None:
            samples.seconds.append(time.monotonic() - started_s)
        self._count(answer)
        return answer

    async def _try(self, path: str, data: bytes, key: str) -> tuple[str, float | None, Answer | None]:
        """Call once: an answer that stands, or what failed and how long the server asks to wait."""
        if self._session is None:
            raise AssertionError("open the caller first: async with")
        headers = {**self._headers, "Idempotency-Key": key}
        try:
            async with self._session.post(self._url + path, data=data, headers=headers) as response:
                content = await response.read()
        except aiohttp.InvalidURL:
            raise ReplayError(f"{self._url} is not a URL such as http://127.0.0.1:5004") from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}", None, None
        status = response.status
        if status in RETRY_STATUSES:
            return f"status {status}", None, None
        if status == TOO_MANY:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            self.refusals[str(_object(content).get("code", TOO_MANY))] += 1
            return f"status {status}", wait_s, None
        body = _object(content)
        code = "" if status < 400 else str(body.get("code", status))
        if status == CONFLICT and code == IN_FLIGHT:
            return code, None, None
        _refuse_setup_faults(status, code, self._url)
        return "", None, Answer(status, code, body, response.headers.get("Idempotent-Replayed") == "true")

    def _count(self, answer: Answer) -> None:
        self.replayed += answer.replayed
        if answer.code:
            self.refusals[answer.code] += 1


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _refuse_setup_faults(status: int, code: str, url: str) -> None:
    """Raise for answers that no retry and no other amount will change."""
    if status in {401, 403}:
        raise ReplayError(f"the server refuses the key ({status} {code}); `shieldx key` prints the right one for --key")
    if code == "idempotency_key_reused":
        raise ReplayError(
            "this run was made with other options (another number of tenants, or another file under the same name); "
            "repeat them, or start a new run with --run NAME"
        )
    if code.isdigit() and status >= 400:
        raise ReplayError(f"{url} answers {status} without a code, so it is not a shieldx server; check --url")
