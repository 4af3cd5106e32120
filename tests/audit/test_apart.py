"""Verification in a process of its own, which nobody waits for when its caller leaves."""

from __future__ import annotations

import asyncio
import time

import pytest

from app.audit.apart import verify_apart
from app.audit.verify import CONNECT_TIMEOUT_S


async def test_a_verification_whose_caller_leaves_does_not_hold_up_the_event_loop() -> None:
    connected = asyncio.Event()
    closing = asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await closing.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1") as silent:
        port = silent.sockets[0].getsockname()[1]
        verifying = asyncio.create_task(verify_apart(f"postgresql://nobody@127.0.0.1:{port}/ledger", bytes(32), None))
        async with asyncio.timeout(60):
            await connected.wait()
        before_s = time.monotonic()
        verifying.cancel()

        with pytest.raises(asyncio.CancelledError):
            await verifying

        assert time.monotonic() - before_s < CONNECT_TIMEOUT_S / 2
        closing.set()
