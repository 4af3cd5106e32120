"""Witnesses: others who see every checkpoint, check that it extends the last one they saw, and cosign it.

A log that shows two different trees cannot have both of them cosigned. Source: https://c2sp.org/tlog-witness
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from app.audit.checkpoint import parse_decimal
from app.audit.log import NotPublished, Published, TreeDamaged
from app.audit.note import COSIGNATURE, NoteRefused, Signature, Verifier, encode64, parse_note, parse_signatures
from app.db.retry import TRANSIENT
from app.turns import end_task, pause

if TYPE_CHECKING:
    from app.audit.log import Log
    from app.audit.shard import Shard
    from app.audit.signer import ShardSigner

log = logging.getLogger(__name__)

SUBMIT_INTERVAL_S: Final = 5.0  # between two checkpoints shown to one witness; it need not see them all
FAILED_INTERVAL_S: Final = 30.0  # after a failure: a witness that is down is left alone for a while
SIZE_TYPE: Final = "text/x.tlog.size"
_KNOWN: Final = "SELECT max(size) FROM audit_cosignatures WHERE shard = $1 AND witness = $2 AND key_id = $3"
_KEEP: Final = (
    "INSERT INTO audit_cosignatures (shard, size, witness, key_id, line) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
)


class WitnessRefused(Exception):
    """The witness did not cosign; the text has its status, or says what is wrong with its answer."""


class Reply(NamedTuple):
    """An HTTP answer: status, media type without parameters, and body."""

    status: int
    media_type: str
    body: bytes


Post = Callable[[str, bytes], Awaitable[tuple[int, str, bytes]]]  # URL and body to status, media type and body


class Witness(NamedTuple):
    """Where a witness is asked (the submission prefix of its URL), and the key that it cosigns with."""

    verifier: Verifier
    url: str


def parse_witnesses(text: str) -> list[Witness]:
    """Return the witnesses of a setting: verifier key, space, URL; several are separated by commas.

    Raises NoteRefused for a key that is not one of a witness, or a URL that is not http or https.
    """
    witnesses = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        vkey, _, url = part.partition(" ")
        verifier = Verifier.from_vkey(vkey)
        if verifier.kind != COSIGNATURE:
            raise NoteRefused(f"the key of {verifier.name} is not that of a witness, which has type 0x04")
        if not url.strip().startswith(("https://", "http://")):
            raise NoteRefused(f"the witness {verifier.name} has no URL")
        witnesses.append(Witness(verifier, url.strip().rstrip("/")))
    return witnesses


class WitnessFeed:
    """Shows the checkpoints of one shard to one witness and keeps its cosignatures, as one task."""

    def __init__(
        self, shard: Shard, log_: Log, signer: ShardSigner, witness: Witness,
        post: Post,
    ) -> None:  # fmt: skip
        """`post` sends a body to a URL within a time limit, and raises a transient error when it cannot."""
        self._shard = shard
        self._log = log_
        self._signer = signer
        self._witness = witness
        self._post = post
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.cosigned_size = -1
        self.failures = 0
        self.reason = ""

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Start the task; an error that it does not know is a crash."""
        name = f"witness s{self._shard.number:02d} {self._witness.verifier.name}"
        self._task = asyncio.create_task(self._run(on_crash), name=name)

    async def stop(self) -> None:
        """End, without waiting for an answer that is under way."""
        self._stopping.set()
        if self._task is not None:
            await end_task(self._task)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while not self._stopping.is_set():
            pause_s = SUBMIT_INTERVAL_S
            try:
                if self._shard.leading:
                    await self.submit()
                self.reason = ""
            except NotPublished:
                pause_s = SUBMIT_INTERVAL_S
            except (WitnessRefused, NoteRefused, TreeDamaged, asyncpg.PostgresError, *TRANSIENT) as error:
                self.failures += 1
                self.reason = f"{type(error).__name__}: {error}"
                log.warning("witness did not cosign", extra={
                    "shard": self._shard.number, "witness": self._witness.verifier.name, "reason": self.reason,
                })  # fmt: skip
                pause_s = FAILED_INTERVAL_S
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
            await pause(self._stopping, pause_s)
            await self._signer.wait_published(SUBMIT_INTERVAL_S)

    async def submit(self) -> None:
        """Show the newest checkpoint to the witness, unless it has cosigned that one, and keep what it answers.

        Raises NotPublished, WitnessRefused, NoteRefused, and what the network and Postgres raise.
        """
        shard, verifier = self._shard.number, self._witness.verifier
        if self.cosigned_size < 0:
            rows = await self._log.rows(_KNOWN, shard, verifier.name, verifier.key_id)
            self.cosigned_size = rows[0][0] or 0
        published = await self._log.checkpoint(shard)
        if published.size == self.cosigned_size:
            return
        reply = await self._ask(published)
        if reply.status == 409 and reply.media_type == SIZE_TYPE:
            # The witness has seen another size than is known here: an answer of it was lost, or Postgres is older.
            self.cosigned_size = parse_decimal(
                reply.body.decode("ascii", "replace").removesuffix("\n"), "the witness's size"
            )
            if self.cosigned_size > published.size:
                raise WitnessRefused(f"it has cosigned {self.cosigned_size} entries, the log has {published.size}")
            reply = await self._ask(published)
        if reply.status != 200:
            raise WitnessRefused(f"status {reply.status}")
        line = self._own_line(published, reply.body)
        await self._log.write(_KEEP, shard, published.size, verifier.name, verifier.key_id, line)
        self.cosigned_size = published.size

    async def _ask(self, published: Published) -> Reply:
        """Send one add-checkpoint request: the size it has seen, the proof from there, the checkpoint."""
        old = self.cosigned_size
        hashes: list[bytes] = []
        if 0 < old < published.size:
            hashes = (await self._log.consistency(self._shard.number, old, published.size)).hashes
        proof = "".join(f"{encode64(digest)}\n" for digest in hashes)
        body = f"old {old}\n{proof}\n{published.note}"
        return Reply(*await self._post(f"{self._witness.url}/add-checkpoint", body.encode()))

    def _own_line(self, published: Published, body: bytes) -> str:
        """Return the line of this witness's key among the answered ones, if its cosignature holds."""
        verifier = self._witness.verifier
        try:
            signatures = parse_signatures(body.decode())
        except UnicodeDecodeError:
            raise WitnessRefused("its answer is not UTF-8") from None
        mine: list[Signature] = [one for one in signatures if (one.name, one.key_id) == (verifier.name, verifier.key_id)]
        if not mine:
            raise WitnessRefused("its answer has no signature of its key")
        verifier.check(parse_note(published.note).text, mine[0].payload)
        return mine[0].line
