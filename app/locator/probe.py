"""One active check: connect to an address that was judged, and for HTTP read the status of one GET.

Nothing of the answer is kept but whether it was good, no redirect is followed, and no header of ours says more than who
asks; so a check tells its owner one bit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from typing import TYPE_CHECKING, Final

from app.locator.target import CheckRefused, CheckTarget, check_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.locator.target import IPNetwork

TIMEOUT_S: Final = 2.0  # of a whole check; an instance that takes longer to say that it is well is not
HEAD_MAX_BYTES: Final = 4_096  # of which only the first line counts
_good = re.compile(rb"HTTP/1\.[01] 2[0-9][0-9][ \r]")


async def probe(target: CheckTarget, allowed: Sequence[IPNetwork], *, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the target accepts, and for HTTP answers 2xx, within the time. Never raises for what it does."""
    try:
        async with asyncio.timeout(timeout_s):
            address = await _resolve(target.host, target.port, allowed)
            context = ssl.create_default_context() if target.secure else None
            reader, writer = await asyncio.open_connection(
                address, target.port, ssl=context, server_hostname=target.host if target.secure else None,
                limit=HEAD_MAX_BYTES,
            )  # fmt: skip
            try:
                return target.path is None or await _is_good(reader, writer, target)
            finally:
                writer.transport.abort()
    except (CheckRefused, OSError, TimeoutError, ValueError, EOFError, asyncio.LimitOverrunError, UnicodeError):
        return False


async def _resolve(host: str, port: int, allowed: Sequence[IPNetwork]) -> str:
    """Return an address of the host; refuse the host as a whole when one of its addresses is refused."""
    with contextlib.suppress(ValueError):
        check_address(ipaddress.ip_address(host), allowed)
        return host
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(place[4][0]) for place in found]
    for address in addresses:
        check_address(ipaddress.ip_address(address.partition("%")[0]), allowed)
    return addresses[0]


async def _is_good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: CheckTarget) -> bool:
    host = f"[{target.host}]" if ":" in target.host else target.host
    writer.write(
        f"GET {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nUser-Agent: shieldx-check\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    return _good.match(await reader.readline()) is not None
