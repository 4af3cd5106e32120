"""Denied attempts become entries, but no faster than the chain can bear: whoever is denied must not fill it.

Each source (a known key, else the network of an address) has a small bucket of its own, and all share one. What finds
a bucket empty is only counted, and the count goes into the next entry.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final

from app.access.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

SOURCE_BURST: Final = 5  # entries of one source at once: enough to see what it tried
SOURCE_INTERVAL_S: Final = 60.0  # seconds until a source may have one more
TOTAL_BURST: Final = 100  # entries of all sources at once
TOTAL_INTERVAL_S: Final = 1.0  # seconds until all together may have one more: 86,400 a day at the most
SOURCES_MAX: Final = 4_096  # sources that are told apart; the one unseen for longest is forgotten first
QUEUE_MAX: Final = 256  # entries that wait for the chain; beyond it they are only counted
SUMMARY_INTERVAL_S: Final = 60.0  # how often what was only counted is told, if nothing else told it
V4_PREFIX: Final = 24  # bits of an address that are kept: a network, not a person
V6_PREFIX: Final = 48


class _Bucket:
    """Entries that a source may still have; they grow back one by one."""

    __slots__ = ("_burst", "_interval_s", "_seen_s", "_tokens")

    def __init__(self, burst: int, interval_s: float, now_s: float) -> None:
        self._burst = burst
        self._interval_s = interval_s
        self._tokens = float(burst)
        self._seen_s = now_s

    def has_one(self, now_s: float) -> bool:
        self._tokens = min(self._burst, self._tokens + max(0.0, now_s - self._seen_s) / self._interval_s)
        self._seen_s = now_s
        return self._tokens >= 1

    def take(self) -> None:
        self._tokens -= 1


def network_of(address: str | None) -> str:
    """Return the network of an IP address, /24 or /48, as text; `unknown` for anything else."""
    try:
        ip = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    prefix = V4_PREFIX if ip.version == 4 else V6_PREFIX
    return str(ipaddress.ip_network((ip, prefix), strict=False))


class DenialLog(Recorder):
    """Makes entries of some denials, and counts the others."""

    def __init__(
        self,
        record: Callable[[str, dict[str, Any]], Awaitable[Any]],
        *,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`record` puts one entry into the chain; when it fails, the denial is counted as left out."""
        super().__init__("denials", record, interval_s=SUMMARY_INTERVAL_S, elapsed_s=elapsed_s)
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()
        self._total = _Bucket(TOTAL_BURST, TOTAL_INTERVAL_S, elapsed_s())
        self._queue: deque[dict[str, Any]] = deque()
        self.left_out = 0  # denials since the last entry that have none of their own
        self.denied: Final = Counter[str]()  # denials since the start, by reason

    def note(self, reason: str, method: str, route: str, *, key_id: str | None = None, address: str | None = None) -> None:
        """Take one denial: `reason` and `route` are words and templates of ours, never what the client sent."""
        self.denied[reason] += 1
        network = network_of(address)
        if not self._may_record(key_id or network):
            self.left_out += 1
            return
        details = {"reason": reason, "method": method, "route": route, "key_id": key_id, "network": network}
        self._queue.append(details)
        self._woken.set()

    def _may_record(self, source: str) -> bool:
        now_s = self._elapsed_s()
        bucket = self._sources.pop(source, None)
        if bucket is None:
            bucket = _Bucket(SOURCE_BURST, SOURCE_INTERVAL_S, now_s)
            if len(self._sources) >= SOURCES_MAX:
                self._sources.popitem(last=False)
        self._sources[source] = bucket
        if len(self._queue) >= QUEUE_MAX or not (bucket.has_one(now_s) and self._total.has_one(now_s)):
            return False
        bucket.take()
        self._total.take()
        return True

    async def flush(self, *, summary: bool = True) -> None:
        """Record what waits; then, with `summary`, how many denials have no entry, if any."""
        while self._queue:
            await self._tell("access.denied", self._queue.popleft())
        if summary and self.left_out:
            await self._tell("access.denied_many", {})

    async def _tell(self, kind: str, details: dict[str, Any]) -> None:
        left_out, self.left_out = self.left_out, 0
        try:
            await self._record(kind, details | {"left_out": left_out})
        except asyncio.CancelledError:
            self.left_out += left_out + (kind == "access.denied")
            raise
        except Exception as error:  # noqa: BLE001 - whatever the chain says, a denial must not stop the server
            self.left_out += left_out + (kind == "access.denied")
            log.warning("denial not recorded", extra={"reason": type(error).__name__, "left_out": self.left_out})

    async def _round(self, *, woken: bool) -> None:
        await self.flush(summary=not woken)

    async def _finish(self) -> None:
        await self.flush()
