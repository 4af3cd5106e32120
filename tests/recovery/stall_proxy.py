"""A proxy that stands before a store on TCP, and can stop forwarding, in either direction or both.

It runs in a thread of its own, with its own event loop, so that houses of any test may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Final, Literal

CHUNK_BYTES: Final = 64 * 1024
STOP_TIMEOUT_S: Final = 5.0

Direction = Literal["to_store", "from_store", "both"]
End = Literal["goes_on", "drops", "forgets"]


class StallProxy:
    """Forwards TCP connections on a free port of 127.0.0.1 to a unix socket."""

    def __init__(self, socket: Path) -> None:
        """`socket` is the store's; it may come and go."""
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {socket.name}", daemon=True)
        self._links: set[_Link] = set()
        self._stalled: frozenset[str] = frozenset()
        self._delay_s = 0.0
        self._server: asyncio.Server | None = None
        self.port = 0

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def stop(self) -> None:
        """Close everything."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STOP_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()

    def stall(self, direction: Direction) -> None:
        """Forward nothing more in this direction; new connections are accepted and stalled as well."""
        stalled = frozenset({"to_store", "from_store"} if direction == "both" else {direction})
        self._loop.call_soon_threadsafe(self._set, stalled)

    def slow_down(self, delay_s: float) -> None:
        """Hold back everything for so long, in both directions; 0 ends it."""
        self._loop.call_soon_threadsafe(setattr, self, "_delay_s", delay_s)

    def release(self, end: End) -> None:
        """End the stall.

        goes_on  what was held back is forwarded
        drops    the connections are reset; new ones work
        forgets  the connections stay as they are, dead without a word; new ones work
        """
        self._loop.call_soon_threadsafe(self._release, end)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.reset()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=STOP_TIMEOUT_S)

    def _set(self, stalled: frozenset[str]) -> None:
        self._stalled = stalled
        for link in self._links:
            link.set(stalled)

    def _release(self, end: End) -> None:
        if end == "goes_on":
            self._set(frozenset())
            return
        self._stalled = frozenset()
        for link in list(self._links):
            if end == "drops":
                link.reset()
            else:
                link.set(frozenset({"to_store", "from_store"}))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            store_reader, store_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, store_writer)
        link.set(self._stalled)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._forward(link.open["to_store"], reader, store_writer),
                self._forward(link.open["from_store"], store_reader, writer),
            )
        finally:
            self._links.discard(link)
            link.reset()

    async def _forward(self, gate: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, while the gate of this direction is open."""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await gate.wait()
                writer.write(chunk)
                await writer.drain()
        await gate.wait()
        with contextlib.suppress(RuntimeError):
            writer.close()


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, store: asyncio.StreamWriter) -> None:
        self._writers = (client, store)
        self.open = {"to_store": asyncio.Event(), "from_store": asyncio.Event()}

    def set(self, stalled: frozenset[str]) -> None:
        """Stall these directions and let the others flow."""
        for direction, gate in self.open.items():
            if direction in stalled:
                gate.clear()
            else:
                gate.set()

    def reset(self) -> None:
        """Drop both ends at once."""
        for writer in self._writers:
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()
        self.set(frozenset())
