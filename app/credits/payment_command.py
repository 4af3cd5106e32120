"""`shieldx payment show`: the payment of a top-up in the clear, for whoever owns database and master key.

That it was read, and why, is on its way into the chain before anything is opened: as a pending entry of the database. Salt
and values prove themselves against the commitment in the top-up's entry, so that an auditor can be shown a single one.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec
import orjson

from app.clock import now_ms
from app.credits.operation import IdMask, position_of
from app.credits.records import Records
from app.db.postgres import open_pool
from app.db.retry import TRANSIENT
from app.privacy.cards import mask_text
from app.privacy.envelope import Sealed
from app.privacy.store import NoRecord, PrivateStore

if TYPE_CHECKING:
    from app.privacy.envelope import MasterKeys
    from app.privacy.store import Disclosed

WAIT_S: Final = 5.0  # for a connection
PURPOSE_MAX: Final = 200  # characters; a case number and a few words
EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 2


async def disclose(database_url: str, masters: MasterKeys, transaction_id: str, purpose: str) -> Disclosed:
    """Return the payment of a top-up. Raises NoRecord, Sealed, asyncpg's errors."""
    pool = await open_pool(database_url, 1)

    async def record(kind: str, details: dict[str, Any]) -> None:
        text = orjson.dumps(details).decode()
        await pool.rows(WAIT_S, "INSERT INTO pending_entries (kind, details) VALUES ($1, $2::text::json)", (kind, text))

    try:
        ((ledger_id,),) = await pool.rows(WAIT_S, "SELECT ledger_id FROM ledger", ())
        position = position_of(transaction_id, IdMask.of(ledger_id.bytes))
        events = [] if position is None else await Records(pool).events(*position)
        if not events or events[0].transaction_id != transaction_id or not events[0].idempotency:
            raise NoRecord(f"there is no transaction {transaction_id}")
        store = PrivateStore(pool, masters, record, now_ms)
        return await store.read(events[0].idempotency, actor="console", purpose=mask_text(purpose[:PURPOSE_MAX]))
    finally:
        pool.terminate()


def run_disclosure(database_url: str, masters: MasterKeys, transaction_id: str, purpose: str) -> int:
    """Print the payment of a top-up as one JSON object; return the exit code: 0 done, 2 refused or out of reach."""
    try:
        found = asyncio.run(disclose(database_url, masters, transaction_id, purpose))
    except Sealed:
        reason = "the payment cannot be opened: it was changed, or the master key is another one"
    except NoRecord as error:
        reason = f"{error}; it has no payment, or that was erased"
    except asyncpg.UndefinedTableError:
        reason = "the database has no private data of this release yet: run `shieldx migrate up` on it"
    except (*TRANSIENT, asyncpg.PostgresError) as error:
        reason = f"Postgres: {type(error).__name__}: {error}"
    else:
        shown = {
            "transaction_id": transaction_id, "payment": msgspec.to_builtins(found.payment), "salt": found.salt.hex(),
            "commitment": found.commitment.hex(),
        }  # fmt: skip
        sys.stdout.buffer.write(orjson.dumps(shown) + b"\n")
        sys.stdout.flush()
        return EXIT_DONE
    sys.stderr.write(f"shieldx: {reason}\n")
    return EXIT_REFUSED
