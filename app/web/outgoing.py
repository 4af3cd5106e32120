"""Requests that this server makes itself: bounded in time and size, no redirects, no proxies from the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import aiohttp

if TYPE_CHECKING:
    from types import TracebackType

CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 10.0  # the whole exchange
ANSWER_BYTES_MAX: Final = 65_536  # a witness answers a few hundred bytes


class Outgoing:
    """An HTTP client that posts small texts. Open it as a context in the running event loop."""

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Make the connection pool."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, url: str, body: bytes) -> tuple[int, str, bytes]:
        """Send a POST with a text body and return status, media type and body of the answer.

        Raises ConnectionError for whatever kept the answer from coming whole and in time.
        """
        assert self._session is not None, "the client is not open"
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                received = await answer.content.read(ANSWER_BYTES_MAX + 1)
                while len(received) <= ANSWER_BYTES_MAX and (more := await answer.content.read(ANSWER_BYTES_MAX + 1)):
                    received += more
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ConnectionError(f"no answer from {url} ({type(error).__name__})") from None
        if len(received) > ANSWER_BYTES_MAX:
            raise ConnectionError(f"the answer of {url} is longer than {ANSWER_BYTES_MAX} bytes")
        return answer.status, answer.content_type, received
