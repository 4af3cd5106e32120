"""Verifiers that other people wrote accept what the log shows, as it stands: three programs, two languages.

tlog-scales reads the tiles as files; metamorphic-log is written in Rust; proofbundle checks receipts.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import metamorphic_log
import pytest
from proofbundle.checkpoint import verify_cosignature
from proofbundle.tlogproof import verify_tlog_proof
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import Vkey
from tlog_scales.tlog import Checkpoint, ConsistencyProof, ConsistencyProofInvalid, InclusionProof, InclusionProofInvalid

from app.audit.entry import entry_hash
from app.audit.note import COSIGNATURE, Signer
from app.audit.receipt import Receipt
from app.audit.tiles import Tile, tiles_of_tree
from tests.audit.chain import mixed_events
from tests.audit.log_house import KEY, LOG_ORIGIN, LogHouse

VKEY = KEY.verifier.vkey
WITNESS = Signer("witness.example/w1", bytes(32), COSIGNATURE)
OLDER, SIZE = 300, 700
SEQS = (0, 255, 256, 299, 511, 512, 699)


class Shown(NamedTuple):
    """What the log has shown: a folder laid out as its tiles are served, two checkpoints, receipts, a proof."""

    folder: Path
    older: str
    newer: str
    receipts: dict[int, Receipt]
    consistency: list[bytes]
    leaves: list[bytes]


@pytest.fixture
async def shown(house: LogHouse, tmp_path: Path) -> Shown:
    await house.write(mixed_events(SIZE, 3))
    signer = house.signer()
    house.shard.durable = OLDER - 1
    await signer.round()
    older = (await house.log.checkpoint(0)).note
    house.shard.durable = SIZE - 1
    await signer.round()
    line = WITNESS.cosign((await house.log.checkpoint(0)).note.partition("\n\n")[0] + "\n", 1_800_000_000)
    await house.database.session.execute(
        "INSERT INTO audit_cosignatures (shard, size, witness, key_id, line) VALUES (0, $1, $2, $3, $4)",
        SIZE, line.name, line.key_id, line.line,
    )  # fmt: skip
    newer = (await house.log.checkpoint(0)).note
    (tmp_path / "checkpoint").write_text(newer)
    for tile in [*tiles_of_tree(SIZE), *(Tile(level, n) for level in (0, "entries") for n in range(2))]:
        path = tmp_path / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(await house.log.tile(0, tile))
    receipts = {seq: await house.log.receipt(0, seq) for seq in SEQS}
    consistency = (await house.log.consistency(0, OLDER, SIZE)).hashes
    return Shown(tmp_path, older, newer, receipts, consistency, house.leaves)


async def test_tlog_scales_reads_the_checkpoint_tiles_and_bundles(shown: Shown) -> None:
    reader = TilesReader(LocalBackend(shown.folder))

    checkpoint = reader.get_checkpoint()
    checkpoint.verify(Vkey.from_string(VKEY))
    checkpoint.verify(Vkey.from_string(WITNESS.verifier.vkey))

    assert (checkpoint.origin, checkpoint.size) == (LOG_ORIGIN, SIZE)
    assert reader.calculate_root_hash() == checkpoint.root_hash
    for seq in SEQS:
        entry = reader.get_entry(seq)
        assert entry_hash(entry) == shown.leaves[seq]
        reader.get_inclusion_proof(seq, SIZE).check(entry_hash(entry), checkpoint.root_hash)
        assert tuple(reader.get_inclusion_proof(seq, SIZE).node_hashes) == shown.receipts[seq].proof


async def test_tlog_scales_accepts_our_proofs_and_no_others(shown: Shown) -> None:
    older, newer = Checkpoint.from_text(shown.older), Checkpoint.from_text(shown.newer)

    ConsistencyProof(OLDER, SIZE, shown.consistency).check(older.root_hash, newer.root_hash)
    for seq in SEQS:
        InclusionProof(seq, SIZE, list(shown.receipts[seq].proof)).check(shown.leaves[seq], newer.root_hash)

    with pytest.raises(ConsistencyProofInvalid):
        ConsistencyProof(OLDER, SIZE, shown.consistency[::-1]).check(older.root_hash, newer.root_hash)
    with pytest.raises(InclusionProofInvalid):
        InclusionProof(0, SIZE, list(shown.receipts[255].proof)).check(shown.leaves[0], newer.root_hash)


async def test_the_rust_verifier_accepts_our_checkpoints_and_proofs_and_no_others(shown: Shown) -> None:
    head = metamorphic_log.checkpoint_verify(shown.newer, [VKEY])

    assert (head.origin, head.size) == (LOG_ORIGIN, SIZE)
    metamorphic_log.checkpoint_verify_consistency(shown.older, shown.newer, [VKEY], shown.consistency)
    for seq in SEQS:
        proof = list(shown.receipts[seq].proof)
        metamorphic_log.checkpoint_verify_inclusion(shown.newer, [VKEY], seq, shown.leaves[seq], proof)
    with pytest.raises(metamorphic_log.VerifyError):
        metamorphic_log.checkpoint_verify(shown.newer.replace(f"\n{SIZE}\n", f"\n{SIZE + 1}\n"), [VKEY])
    with pytest.raises(metamorphic_log.VerifyError):
        metamorphic_log.checkpoint_verify_inclusion(shown.newer, [VKEY], 1, shown.leaves[0], list(shown.receipts[0].proof))
    with pytest.raises(metamorphic_log.VerifyError):
        metamorphic_log.checkpoint_verify_consistency(shown.newer, shown.older, [VKEY], shown.consistency)


async def test_proofbundle_accepts_our_receipts_and_no_others(shown: Shown) -> None:
    for seq, receipt in shown.receipts.items():
        assert receipt.entry is not None

        verdict = verify_tlog_proof(
            receipt.text, receipt.entry, VKEY, [WITNESS.verifier.vkey], threshold=1, expected_origin=LOG_ORIGIN
        )

        assert verdict["ok"], verdict
        assert (verdict["index"], verdict["tree_size"], verdict["origin"]) == (seq, SIZE, LOG_ORIGIN)
    first = shown.receipts[0]
    assert first.entry is not None
    assert not verify_tlog_proof(first.text, first.entry + b" ", VKEY)["ok"]
    assert not verify_tlog_proof(first._replace(seq=1).text, first.entry, VKEY)["ok"]
    assert verify_cosignature(shown.newer, WITNESS.verifier.vkey)
