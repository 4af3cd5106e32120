"""Verification in a process of its own, so that the event loop of a server goes on.

The process imports this module to begin with: it must not lead to the parts of the server that serve HTTP.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

from app.audit.entry import RowSeal
from app.audit.increment import verify_since
from app.audit.trust import Trust
from app.audit.verify import NO_TRUST, verify_ledger

if TYPE_CHECKING:
    from app.audit.checkpoint import Checkpoint
    from app.audit.report import Report


async def verify_apart(database_url: str, key: bytes, trusted: Checkpoint | None) -> Report:
    """Verify the ledger, or what came after a checkpoint; `key` is that of the seals.

    faults  CannotCheckError: a checkpoint of another ledger
    """
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, _verify, database_url, key, trusted)
    finally:
        # To wait here would hold up the event loop, for the whole verification when it is cancelled while the server stops.
        pool.shutdown(wait=False, cancel_futures=True)


def _verify(database_url: str, key: bytes, trusted: Checkpoint | None) -> Report:
    seal = RowSeal(key)
    seals = {seal.key_id: seal}
    if trusted is None:
        return asyncio.run(verify_ledger(database_url, seals=seals, progress=lambda *_: None, trust=NO_TRUST))
    trust = Trust(checkpoints={trusted.origin: trusted})
    return asyncio.run(verify_since(database_url, seals=seals, progress=lambda *_: None, trust=trust))
