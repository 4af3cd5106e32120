"""Answers that cost little.

aiohttp builds the header section of every `web.Response` in a multidict and serialises it field by field,
about 20 microseconds. `Answer` is a `web.Response` that knows its few header fields and writes them, and the
body, as one bytes object through the public writer.
"""

import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import cached_property
from http import HTTPStatus
from time import time
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from app.web.problems import Problem, problem_body

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
NO_STORE: Final = "no-store"
EMPTY_STATUSES: Final = frozenset({204, 304})  # RFC 9110: these answers have no content and no length.
# RFC 9110 5.5: no control characters in a field.
SAFE_FIELD: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")

_heads: dict[tuple[int, str, str], str] = {}
# one per status, media type and cache rule in use; a bound, should a route vary them.
_HEADS_MAX: Final = 512


class _Date:
    """The Date field, made once a second."""

    __slots__ = ("second", "text")

    def __init__(self) -> None:
        self.second = 0
        self.text = ""

    def now(self) -> str:
        second = int(time())
        if second != self.second:
            self.second = second
            self.text = formatdate(second, usegmt=True)
        return self.text


_date = _Date()


def _head(status: int, content_type: str, cache: str) -> str:
    """Status line and the fields that depend only on the arguments, cached."""
    key = (status, content_type, cache)
    head = _heads.get(key)
    if head is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {status} {phrase}"]
        if content_type and status not in EMPTY_STATUSES:
            lines.append(f"Content-Type: {content_type}")
        lines.append("X-Content-Type-Options: nosniff")
        if cache:
            lines.append(f"Cache-Control: {cache}")
        head = "\r\n".join(lines) + "\r\n"
        if SAFE_FIELD.match(head.replace("\r\n", "")) is None:
            message = "control character in a header field"
            raise ValueError(message)
        if len(_heads) < _HEADS_MAX:
            _heads[key] = head
    return head


class Answer(web.StreamResponse):
    """A whole answer in one write.

    body          the content; sent with its length
    content_type  media type, with parameters
    cache         Cache-Control; "" sends none
    fields        further header lines, each ended by CRLF, made by this package from checked values
    request_id    set by the edge

    Fields that a route sets through `headers` are sent too. `on_response_prepare` signals, cookies and
    compression of aiohttp do not apply.
    """

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = JSON,
        cache: str = NO_STORE,
        fields: str = "",
    ) -> None:
        """Take the content; nothing is encoded before it is sent.

        aiohttp's own constructor is left out on purpose: it makes a multidict and a mapping that hardly any answer
        uses. `headers` and the mapping are made when somebody asks for them.
        """
        self._status = status
        self.body = body
        self.answer_head = _head(status, content_type, cache)
        self.fields = fields
        self.request_id = ""
        self.answered: BaseRequest | None = None

    @cached_property
    def _headers(self) -> CIMultiDict[str]:  # type: ignore[override]
        return CIMultiDict()

    @cached_property
    def _state(self) -> dict[str | web.ResponseKey[Any], Any]:  # type: ignore[override]
        return {}

    @property
    def reason(self) -> str:
        """The reason phrase of the status line."""
        return self.answer_head.partition("\r")[0].partition(" ")[2].partition(" ")[2]

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open: as the client asked, unless the answer forces it shut."""
        forced = self._keep_alive
        if forced is None and self.answered is not None:
            return self.answered.keep_alive
        return forced

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter:
        """Remember the request; the bytes are written by `write_eof`."""
        self.answered = request
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - aiohttp's signature.
        """Write head and body with one call, then wait if the client reads slower than we write."""
        request = self.answered
        if request is None:
            message = "write_eof before prepare"
            raise RuntimeError(message)
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left before its answer")
        encoded = self.encoded(
            close=not self.keep_alive, old=request.version == HttpVersion10, head_only=request.method == "HEAD"
        )
        transport.write(encoded)
        request.writer.output_size += len(encoded)
        if request.protocol.writing_paused:
            await request.writer.drain()

    @property
    def closes(self) -> bool:
        """Whether the answer itself forces the connection shut."""
        return self._keep_alive is False

    def encoded(self, *, close: bool, old: bool = False, head_only: bool = False) -> bytes:
        """The bytes of the answer.

        The version is always HTTP/1.1, the highest we conform to (RFC 9110 2.5).

        close      say that the connection ends after it
        old        say to an HTTP/1.0 client that it does not
        head_only  leave out the content, for HEAD
        """
        empty = self._status in EMPTY_STATUSES
        content = b"" if empty else self.body
        lines = self.fields
        if "_headers" in self.__dict__:
            lines += own_fields(self._headers.items())
        if close:
            lines += "Connection: close\r\n"
        elif old:
            lines += "Connection: keep-alive\r\n"
        if not empty:
            lines += f"Content-Length: {len(content)}\r\n"
        head = (f"{self.answer_head}Date: {_date.now()}\r\nX-Request-ID: {self.request_id}\r\n{lines}\r\n").encode("latin-1")
        return head if head_only else head + content


def own_fields(items: Iterable[tuple[str, str]]) -> str:
    """Header lines of (name, value) pairs; ValueError for a control character in either."""
    lines = []
    for name, value in items:
        line = f"{name}: {value}"
        if SAFE_FIELD.match(line) is None:
            message = "control character in a header field"
            raise ValueError(message)
        lines.append(line + "\r\n")
    return "".join(lines)


def json_answer(body: bytes, *, status: int = 200, etag: int | None = None, replayed: bool = False) -> Answer:
    """An answer of encoded JSON.

    body      JSON text, UTF-8; from status 400 on it is a problem
    etag      version for the ETag field
    replayed  adds `Idempotent-Replayed: true`
    """
    fields = ""
    if etag is not None:
        fields = f'ETag: "{etag:d}"\r\n'
    if replayed:
        fields += "Idempotent-Replayed: true\r\n"
    return Answer(body, status=status, content_type=JSON if status < 400 else PROBLEM_JSON, fields=fields)


def problem_answer(problem: Problem, request_id: str) -> Answer:
    """A problem as an answer."""
    answer = Answer(
        problem_body(problem, request_id),
        status=problem.status,
        content_type=PROBLEM_JSON,
        fields=own_fields(problem.headers.items()) if problem.headers else "",
    )
    answer.request_id = request_id
    if problem.close:
        answer.force_close()
    return answer
