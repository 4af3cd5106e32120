"""What a route sees of a request, whichever way it came: from aiohttp, or whole from the wire (`app.web.fastpath`)."""

from __future__ import annotations

import asyncio
import re
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol, cast
from urllib.parse import parse_qsl

from multidict import MultiDict, MultiMapping

from app.privacy.guard import holds_card
from app.web.request_ids import ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

REQUEST_ID_MAX: Final = 128  # characters; a trace id with its span fits twice.

_request_id = re.compile(rf"[A-Za-z0-9._:-]{{1,{REQUEST_ID_MAX}}}\Z")


class Principal(Protocol):
    """Whoever a key stands for."""

    @property
    def key_id(self) -> str:
        """Id of the key; never the key."""

    @property
    def role(self) -> str:
        """Role of the key."""


class Connection(Protocol):
    """What a request needs of its connection."""

    def departure(self) -> asyncio.Future[None]:
        """Return what ends once the client sends no more."""


class Request:
    """One request.

    headers      field names in lower case to values, the first one where a field stands several times
    repeated     names of fields that stand several times
    match_info   path parameters
    query_text   what stands after the `?`, as it was sent
    body         the whole body, or None when it has to be read from `source`
    source       aiohttp's request, or None when it did not come through aiohttp
    header_bytes size of all names and values
    request_id   the client's X-Request-ID if it is well formed and holds no card number, else a new one
    template     path template of the route; set by the edge
    principal    who calls; set by the edge, None on an open route
    """

    __slots__ = (
        "_query", "app", "body", "header_bytes", "headers", "match_info", "method", "path", "principal", "query_text",
        "repeated", "request_id", "source", "template", "transport",
    )  # fmt: skip

    def __init__(
        self,
        app: web.Application,
        method: str,
        path: str,
        match_info: Mapping[str, str],
        query_text: str,
        headers: dict[str, str],
        body: bytes | None,
        transport: asyncio.Transport | None,
    ) -> None:
        """Take a request apart that was parsed already."""
        self.app = app
        self.method = method
        self.path = path
        self.match_info = match_info
        self.query_text = query_text
        self.headers = headers
        self.body = body
        self.transport = transport
        self._query: MultiMapping[str] | None = None
        self.repeated: frozenset[str] = frozenset()
        self.source: web.Request | None = None
        self.header_bytes = 0
        self.template = ""
        self.principal: Principal | None = None
        given = headers.get("x-request-id")
        fine = given is not None and _request_id.match(given) is not None and not holds_card(given)
        self.request_id = given if given is not None and fine else ids.next()

    @classmethod
    def of(cls, source: web.Request) -> Request:
        """Take over from aiohttp; the body stays where it is until somebody reads it."""
        headers: dict[str, str] = {}
        repeated: set[str] = set()
        for name, value in source.headers.items():
            lower = name.lower()
            if lower in headers:
                repeated.add(lower)
            else:
                headers[lower] = value
        request = cls(
            source.app, source.method, source.path, source.match_info, source.rel_url.raw_query_string, headers, None,
            source.transport,
        )  # fmt: skip
        request.source = source
        request.header_bytes = len(b"".join(chain.from_iterable(source.raw_headers)))
        request.repeated = frozenset(repeated)
        return request

    @property
    def query(self) -> MultiMapping[str]:
        """The query parameters, decoded."""
        if self.source is not None:
            return self.source.query
        if self._query is None:
            self._query = MultiDict(parse_qsl(self.query_text, keep_blank_values=True))
        return self._query

    def address(self) -> str | None:
        """The client's IP address, None on a unix socket or once it has left."""
        transport = self.transport if self.source is None else self.source.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else None

    def departure(self) -> asyncio.Future[None]:
        """Return what ends once the client sends no more, or has gone: waiting for news on its behalf is over then."""
        transport = self.transport if self.source is None else self.source.transport
        if transport is None or transport.is_closing():
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            over.set_result(None)
            return over
        return cast("Connection", transport.get_protocol()).departure()

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        transport = self.transport if self.source is None else self.source.transport
        return transport is None or transport.is_closing()
