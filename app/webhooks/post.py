"""Sends one message to one URL, and nothing else: no redirect, no proxy, no cookie, and the answer's body is not read.

Every address is checked where the socket is made, which is the one place that every connection passes; the resolver
refuses a name as a whole when one of its addresses is refused, so that no luck is left to the order of answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from app import __version__
from app.clock import now_ms
from app.webhooks.target import TargetRefused, TargetRules, check_address, check_url

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_TIMEOUT_S: Final = 20.0  # for the whole attempt; the specification asks for 15 to 30 s
CONNECT_TIMEOUT_S: Final = 5.0  # of the 20 s, for name, connection and TLS
RETRY_AFTER_MAX_S: Final = 86_400  # a longer pause would outlive the schedule
THROTTLED: Final = frozenset({429, 502, 503, 504})  # statuses by which an endpoint asks for a pause


class Outcome(NamedTuple):
    """What became of an attempt.

    status         HTTP status, None if there was no answer
    error          a word of ours, None for 2xx: `timeout`, `tls`, `connection`, `address`, `redirect`, `status`
    retry_after_s  how long the endpoint asked to be left alone, None if it did not
    """

    status: int | None
    error: str | None
    retry_after_s: float | None = None


class _CheckedResolver(AbstractResolver):
    """The system's resolver; a name with one forbidden address is refused as a whole."""

    def __init__(self, rules: TargetRules) -> None:
        self._rules = rules
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            check_address(ipaddress.ip_address(result["host"]), self._rules)
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Post:
    """One HTTP client for all endpoints. Make it in a running event loop, and close it."""

    def __init__(self, rules: TargetRules, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """`rules` say where messages may go."""
        self._rules = rules
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(rules), socket_factory=self._socket, use_dns_cache=False, force_close=True,
            limit=0,
        )  # fmt: skip
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": f"shieldx-webhooks/{__version__}"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(self, url: str, fields: Mapping[str, str], body: bytes) -> Outcome:
        """POST a JSON body and return what became of it. Never raises for what the endpoint does."""
        try:
            check_url(url, self._rules)
            async with self._session.post(
                url, data=body, headers={"Content-Type": "application/json", **fields}, allow_redirects=False
            ) as response:
                status = response.status
                pause_s = retry_after_s(response.headers.get("Retry-After")) if status in THROTTLED else None
                response.close()
        except TargetRefused:
            return Outcome(None, "address")
        except TimeoutError:
            return Outcome(None, "timeout")
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError):
            return Outcome(None, "tls")
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            return Outcome(None, "address" if _is_refused(error) else "connection")
        if 200 <= status < 300:
            return Outcome(status, None)
        return Outcome(status, "redirect" if 300 <= status < 400 else "status", pause_s)

    def _socket(self, info: Any) -> socket.socket:
        """Make the socket of one address, once more checked: addresses in URLs do not pass the resolver."""
        family, kind, protocol, _, place = info
        check_address(ipaddress.ip_address(place[0]), self._rules)
        made = socket.socket(family, kind, protocol)
        made.settimeout(0)
        return made


def _is_refused(error: BaseException | None) -> bool:
    """Whether a refused address is behind an error of the client library."""
    while error is not None:
        if isinstance(error, TargetRefused):
            return True
        error = error.__cause__ or error.__context__
    return False


def retry_after_s(text: str | None) -> float | None:
    """Return a Retry-After value, seconds or an HTTP date, as seconds from now, at most RETRY_AFTER_MAX_S."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), RETRY_AFTER_MAX_S))
    try:
        at = parsedate_to_datetime(text)
        seconds = at.timestamp() - now_ms() / 1000
    except (ValueError, OverflowError, TypeError):
        return None
    return min(max(seconds, 0.0), float(RETRY_AFTER_MAX_S))
