"""The reading side on a real Postgres: proofs, tiles, bundles and receipts, and what is not shown."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.audit.entry import entry_hash
from app.audit.log import Log, NotPublished, TreeDamaged
from app.audit.merkle import Frontier, ProofInvalid, verify_consistency, verify_inclusion
from app.audit.note import COSIGNATURE, Signer
from app.audit.receipt import parse_receipt, verify_receipt
from app.audit.tiles import Tile, split_bundle, split_hashes, tiles_of_tree
from tests.audit.chain import ORIGIN, mixed_events
from tests.audit.log_house import BUSY_TIMEOUT_S, EPOCH, KEY, LogHouse
from tests.audit.naive_tree import path_of, proof_of, root_of

MANY = 700


async def signed(house: LogHouse, *sizes: int) -> None:
    """Write a chain of at least MANY entries and sign it at these sizes."""
    await house.write(mixed_events(MANY, 3))
    signer = house.signer()
    for size in sizes:
        house.shard.durable = size - 1
        await signer.round()


async def test_an_inclusion_proof_is_that_of_the_recursion(house: LogHouse) -> None:
    await signed(house, 650)
    for seq, size in ((0, 1), (0, 650), (255, 256), (256, 257), (300, 513), (649, 650), (511, 650)):
        proof = await house.log.inclusion(0, seq, size)

        assert proof.hashes == path_of(seq, house.leaves[:size])
        assert (proof.leaf_hash, proof.root) == (house.leaves[seq], root_of(house.leaves[:size]))
        verify_inclusion(seq, size, proof.leaf_hash, proof.hashes, proof.root)


async def test_a_consistency_proof_is_that_of_the_recursion(house: LogHouse) -> None:
    await signed(house, 650)
    for size1, size2 in ((1, 1), (1, 650), (255, 257), (256, 650), (300, 513), (512, 650), (649, 650)):
        proof = await house.log.consistency(0, size1, size2)

        assert proof.hashes == proof_of(size1, house.leaves[:size2])
        verify_consistency(size1, size2, proof.hashes, proof.root1, proof.root2)
        assert (proof.root1, proof.root2) == (root_of(house.leaves[:size1]), root_of(house.leaves[:size2]))


@pytest.mark.parametrize(("seq", "size"), [(5, 5), (-1, 5), (0, 0), (0, 2**63)])
async def test_there_is_no_proof_for_what_cannot_be(house: LogHouse, seq: int, size: int) -> None:
    await signed(house, 10)

    with pytest.raises(ProofInvalid):
        await house.log.inclusion(0, seq, size)
    with pytest.raises(ProofInvalid):
        await house.log.consistency(0, 0, 5)


async def test_nothing_is_shown_beyond_the_last_checkpoint(house: LogHouse) -> None:
    await signed(house, 300)

    with pytest.raises(NotPublished):
        await house.log.inclusion(0, 5, 301)
    with pytest.raises(NotPublished):
        await house.log.consistency(0, 5, 301)
    for seq in (300, 2**63 - 1, 2**70):
        with pytest.raises(NotPublished):
            await house.log.receipt(0, seq)
    with pytest.raises(ProofInvalid):
        await house.log.receipt(0, -1)
    for tile in (Tile(0, 1, 45), Tile(0, 1), Tile("entries", 1, 45), Tile(1, 0, 2), Tile(2, 0, 1), Tile(63, 0, 1)):
        with pytest.raises(NotPublished):
            await house.log.tile(0, tile)
    with pytest.raises(NotPublished):
        await house.log.checkpoint(1)


async def test_every_tile_of_a_size_holds_the_hashes_of_the_tree(house: LogHouse) -> None:
    await signed(house, 650)
    entries = [row[0] for row in await house.database.session.fetch("SELECT entry FROM audit_entries ORDER BY seq")]

    for tile in [*tiles_of_tree(650), *tiles_of_tree(300), Tile(0, 0), Tile("entries", 1), Tile(1, 0, 1)]:
        data = await house.log.tile(0, tile)

        if tile.level == "entries":
            assert split_bundle(data) == entries[tile.low : tile.low + tile.width]
        elif tile.level == 0:
            assert split_hashes(data) == house.leaves[tile.low : tile.low + tile.width]
        else:
            assert split_hashes(data) == [root_of(house.leaves[n * 256 : (n + 1) * 256]) for n in range(tile.width)]


async def test_a_receipt_proves_an_entry_offline(house: LogHouse) -> None:
    await signed(house, 200, 650)

    for seq in (0, 199, 649):
        receipt = parse_receipt((await house.log.receipt(0, seq)).text)

        assert verify_receipt(receipt, [KEY.verifier]).checkpoint.size == 650
        assert receipt.entry is not None
        assert entry_hash(receipt.entry) == house.leaves[seq]


async def test_a_receipt_is_under_the_newest_cosigned_checkpoint(house: LogHouse) -> None:
    witness = Signer("witness.example/w1", bytes(32), COSIGNATURE)
    await signed(house, 200, 300, 650)
    note = (await house.log.checkpoint(0, 300)).note
    text = (await house.database.session.fetchval("SELECT note FROM audit_checkpoints WHERE size = 300")).partition("\n\n")[
        0
    ] + "\n"
    line = witness.cosign(text, 1_800_000_000)
    await house.database.session.execute(
        "INSERT INTO audit_cosignatures (shard, size, witness, key_id, line) VALUES (0, 300, $1, $2, $3)",
        line.name, line.key_id, line.line,
    )  # fmt: skip

    under, beyond = await house.log.receipt(0, 250), await house.log.receipt(0, 400)

    assert verify_receipt(under, [KEY.verifier], witnesses=[witness.verifier]).checkpoint.size == 300
    assert verify_receipt(beyond, [KEY.verifier]).checkpoint.size == 650
    assert "650" in note
    assert (await house.log.checkpoint(0)).size == 650


async def test_hashes_that_are_missing_are_named(house: LogHouse) -> None:
    await signed(house, 650)
    await house.database.session.execute("DELETE FROM audit_entries WHERE seq = 3; DELETE FROM audit_leaf_tiles")

    with pytest.raises(TreeDamaged, match="255 hashes of level 0 from 0 to before 256"):
        await house.log.tile(0, Tile(0, 0))
    with pytest.raises(TreeDamaged, match="entries of tile"):
        await house.log.tile(0, Tile("entries", 0))


async def test_a_full_tile_is_packed_by_the_checkpoint_that_completes_it(house: LogHouse) -> None:
    await signed(house, 255, 300, 650)
    session = house.database.session
    packed = await session.fetch("SELECT number, hashes FROM audit_leaf_tiles WHERE shard = 0 ORDER BY number")

    assert [number for number, _ in packed] == [0, 1]
    assert b"".join(hashes for _, hashes in packed) == b"".join(house.leaves[:512])
    await session.execute("UPDATE audit_entries SET hash = sha256(hash) WHERE seq < 512")
    proof = await house.log.inclusion(0, 300, 650)
    assert (proof.leaf_hash, proof.root) == (house.leaves[300], root_of(house.leaves[:650]))


async def test_tiles_of_entries_that_were_signed_before_there_was_packing_can_be_packed(house: LogHouse) -> None:
    await signed(house, 650)
    session = house.database.session
    await session.execute("DELETE FROM audit_leaf_tiles")

    proof = await house.log.inclusion(0, 300, 650)
    await session.execute("SELECT pack_leaf_tiles(0::smallint, 0, 650)")

    assert await session.fetchval("SELECT count(*) FROM audit_leaf_tiles") == 2
    assert await Log(house.pool, ORIGIN).inclusion(0, 300, 650) == proof


async def test_proofs_go_on_when_old_entries_are_archived_with_their_hashes_kept(house: LogHouse) -> None:
    await signed(house, 300)
    session = house.database.session
    async with session.transaction():
        await session.execute("INSERT INTO audit_tree SELECT shard, 0, seq, hash FROM audit_entries WHERE seq < 280")
        await session.execute("DELETE FROM audit_entries WHERE seq < 280")
    house.shard.durable = 649
    await house.signer().round()

    for seq in (0, 279, 280, 500):
        proof = await house.log.inclusion(0, seq, 650)
        verify_inclusion(seq, 650, house.leaves[seq], proof.hashes, root_of(house.leaves[:650]))
    assert split_hashes(await house.log.tile(0, Tile(0, 1))) == house.leaves[256:512]
    assert (await house.log.consistency(0, 250, 650)).hashes == proof_of(250, house.leaves[:650])
    with pytest.raises(TreeDamaged):
        await house.log.receipt(0, 5)


ENTRIES = 10_000_000
LAST_TILE, LAST_WIDTH = divmod(ENTRIES, 256)


KEPT_ROWS_MAX = 10  # of the checkpoints
ROWS_MAX = 1_200  # two tiles for each of three levels, of which the last is not full, and a checkpoint
READ = "SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE relname ~ '^audit_'"


def digest_of(kind: str, number: int) -> bytes:
    return hashlib.sha256(f"{kind} {number}".encode()).digest()


async def fill(house: LogHouse, seqs: Iterable[int]) -> None:
    """Insert entries of which only the hash matters."""
    await house.database.session.execute(
        "INSERT INTO audit_entries SELECT 0, u.seq, now(), gen_random_uuid(), 't', 'topup', 1, 1, 0, 1, '\\x00', u.hash, u.hash, "
        "u.hash, 'k' FROM unnest($1::bigint[], $2::bytea[]) AS u (seq, hash)",
        list(seqs), [digest_of("leaf", seq) for seq in seqs],
    )  # fmt: skip


async def test_a_proof_in_ten_million_entries_reads_few_rows(house: LogHouse) -> None:
    seq = 6_543_210
    tile = seq // 256
    session = house.database.session
    await session.execute("SELECT ensure_partitions(now(), now(), 1)")
    await fill(house, range(tile * 256, tile * 256 + 256))
    await fill(house, range(LAST_TILE * 256, ENTRIES))
    roots = [digest_of("tile", number) for number in range(LAST_TILE)]
    roots[tile] = root_of([digest_of("leaf", number) for number in range(tile * 256, tile * 256 + 256)])
    above = Frontier()
    level2 = [root_of(roots[low : low + 256]) for low in range(0, LAST_TILE - 255, 256)]
    above.extend([*roots, root_of([digest_of("leaf", number) for number in range(LAST_TILE * 256, ENTRIES)])])
    await session.copy_records_to_table(
        "audit_tree",
        records=[(0, level, number, one) for level, row in ((1, roots), (2, level2)) for number, one in enumerate(row)],
    )
    await session.execute(
        "INSERT INTO audit_checkpoints (shard, size, root, note, signers, epoch) VALUES (0, $1, $2, '', '', $3)",
        ENTRIES, above.root(), EPOCH,
    )  # fmt: skip
    await session.execute("ANALYZE audit_entries, audit_tree")
    for _ in range(30):
        log = Log(house.pool, ORIGIN, read_timeout_s=BUSY_TIMEOUT_S)
        proof = await log.inclusion(0, seq, ENTRIES)

    assert (proof.root, len(proof.hashes)) == (above.root(), 24)
    verify_inclusion(seq, ENTRIES, proof.leaf_hash, proof.hashes, above.root())
    read = await rows_read(house)
    assert 256 < read / 30 < ROWS_MAX
    for _ in range(30):
        assert await log.inclusion(0, seq, ENTRIES) == proof
    assert await rows_read(house) - read < 30 * KEPT_ROWS_MAX


async def rows_read(house: LogHouse) -> int:
    await house.log.rows("SELECT pg_stat_force_next_flush()")
    return int(await house.database.session.fetchval(READ))


FORGED_TILE = (
    "UPDATE audit_leaf_tiles SET hashes = set_byte(hashes, 44 * 32, 255 - get_byte(hashes, 44 * 32)) WHERE number = 1"
)


async def forge(house: LogHouse, statement: str, *values: object) -> None:
    assert await house.database.session.execute(statement, *values) != "UPDATE 0"


@pytest.mark.parametrize(
    "statement",
    [
        FORGED_TILE,
        "UPDATE audit_tree SET hash = sha256(hash) WHERE number = 1",
        "UPDATE audit_tree SET hash = sha256(hash) WHERE number = 0",
        "UPDATE audit_entries SET hash = sha256(hash) WHERE seq = 640",
    ],
)
async def test_no_proof_is_made_of_hashes_that_do_not_lead_to_the_signed_root(house: LogHouse, statement: str) -> None:
    await signed(house, 650)
    await forge(house, statement)

    with pytest.raises(TreeDamaged, match=r"hash to hash|does not have the root"):
        await house.log.inclusion(0, 300, 650)
    with pytest.raises(TreeDamaged, match=r"hash to hash|does not have the root"):
        await house.log.consistency(0, 300, 650)


async def test_a_leaf_that_was_changed_is_found_in_a_tree_without_a_checkpoint_of_its_own(house: LogHouse) -> None:
    await signed(house, 650)
    await house.log.inclusion(0, 5, 600)
    await forge(house, FORGED_TILE)

    with pytest.raises(TreeDamaged, match="256 hashes of level 0 from 256 do not hash to hash 1 of level 1"):
        await house.log.inclusion(0, 300, 600)


async def write_other_history(house: LogHouse) -> list[bytes]:
    """Put another tree of 650 entries into the place of the one that is there; returns its leaves."""
    leaves = [digest_of("leaf", seq) for seq in range(650)]
    session = house.database.session
    await session.execute("SELECT ensure_partitions(now(), now(), 1)")
    await session.execute("DELETE FROM audit_entries; DELETE FROM audit_leaf_tiles")
    await fill(house, range(650))
    tree = Frontier()
    for stored in tree.extend(leaves):
        await session.execute("UPDATE audit_tree SET hash = $3 WHERE level = $1 AND number = $2", *stored)
    await session.execute("UPDATE audit_checkpoints SET root = $1", tree.root())
    return leaves


async def test_a_signed_root_decides_between_what_is_stored_and_what_is_remembered(house: LogHouse) -> None:
    await signed(house, 650)
    await house.log.inclusion(0, 300, 650)
    other = await write_other_history(house)

    proof = await house.log.inclusion(0, 300, 650)

    assert proof.root == root_of(other)
    verify_inclusion(300, 650, other[300], proof.hashes, proof.root)


async def test_nothing_is_remembered_of_the_database_that_stood_there_before_a_restore(house: LogHouse) -> None:
    await signed(house, 650)
    await house.log.inclusion(0, 300, 600)
    other = await write_other_history(house)
    await put_copy_in_place(house)

    proof = await house.log.inclusion(0, 300, 600)

    assert proof.root == root_of(other[:600])
    verify_inclusion(300, 600, other[300], proof.hashes, proof.root)


async def test_of_proofs_that_are_made_at_once_none_is_of_the_database_before_a_restore(house: LogHouse) -> None:
    await signed(house, 650)
    await house.log.inclusion(0, 300, 600)
    other = await write_other_history(house)
    await put_copy_in_place(house)

    proofs = await asyncio.gather(*(house.log.inclusion(0, 300, 600) for _ in range(3)))

    assert {proof.root for proof in proofs} == {root_of(other[:600])}


async def put_copy_in_place(house: LogHouse) -> None:
    """Do what a restore does at its end: a new database gets the name of the one in use."""
    url = urlsplit(house.database.url)
    name = url.path.removeprefix("/")
    admin = await asyncpg.connect(urlunsplit(url._replace(path="/postgres")))
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    await admin.execute(f'ALTER DATABASE "{name}" RENAME TO "{name}_before"')
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{name}_before"')
    await admin.execute(f'DROP DATABASE "{name}_before"')
    await admin.close()


async def test_proofs_of_a_log_that_grows_are_those_of_the_recursion(house: LogHouse) -> None:
    await signed(house, 1)
    picked = random.Random(1)
    signer = house.signer()
    for grown in (200, 255, 256, 257, 400, 512, 513, 650):
        house.shard.durable = grown - 1
        await signer.round()
        for _ in range(5):
            size = picked.randint(1, grown)
            seq = picked.randrange(size)

            assert (await house.log.inclusion(0, seq, size)).hashes == path_of(seq, house.leaves[:size])
            assert (await house.log.consistency(0, seq + 1, size)).hashes == proof_of(seq + 1, house.leaves[:size])
