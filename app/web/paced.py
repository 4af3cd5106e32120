"""Answers in parts, written no faster than they are read: what a client does not read is not made, and not held for it.

Of all of them one part is written in a turn of the event loop: hundreds of watchers woken at once delay nobody else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app.web.answers import JSON
from app.web.edge import LINE, stamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping

    from app.web.request import Request

WRITE_TIMEOUT_S: Final = 10.0  # a client that has not read for so long is dropped
PART_BYTES: Final = 32 * 1024  # of what is written at once: half of what a transport holds before the writer waits


async def begin_parts(request: Request, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send the head of an answer that comes in parts. Routes that do so say `streams`."""
    source = request.source
    if source is None:
        raise AssertionError("a route that streams has aiohttp's request")
    response = web.StreamResponse(headers=headers)
    stamp(response, request.request_id)
    await response.prepare(source)
    return response


def is_head(request: Request) -> bool:
    """Whether only the head of the answer is wanted: content would be read as the next answer (RFC 9110 9.3.2)."""
    return request.method == "HEAD"


async def write_parts(request: Request, response: web.StreamResponse, parts: AsyncIterable[bytes]) -> None:
    """Write parts as the client reads them: for a slow one no more than one is made. Raises what `write` raises."""
    async for part in parts:
        await write(request, response, part)


async def write(request: Request, response: web.StreamResponse, part: bytes) -> None:
    """Write a part no faster than it is read. Raises TimeoutError when nothing can be written for WRITE_TIMEOUT_S."""
    for start in range(0, len(part), PART_BYTES):
        await request.app[LINE].wait()
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(part[start : start + PART_BYTES])


async def send_json(request: Request, parts: AsyncIterable[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with the JSON that the parts make together; HEAD gets none. Drops a client that does not read."""
    response = await begin_parts(request, {"Content-Type": JSON, **headers})
    try:
        if not is_head(request):
            await write_parts(request, response, parts)
        await response.write_eof()
    except TimeoutError:
        drop(request)
    return response


def drop(request: Request) -> None:
    """Cut the connection of a client that does not read; what was to be written to it is forgotten."""
    if request.source is not None and request.source.transport is not None:
        request.source.transport.abort()
    raise ConnectionResetError("the client reads nothing")
