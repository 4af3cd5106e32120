"""Tiles and bundles: their paths, which of them a size has, and proofs from the hashes in them."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.entry import entry_bytes
from app.audit.merkle import Frontier, Node, Span, consistency_spans, inclusion_spans, span_hash
from app.audit.tiles import (
    ENTRY_BYTES_MAX,
    Run,
    Tile,
    TileRefused,
    bundle,
    node_in,
    parse_path,
    runs_for,
    split_bundle,
    split_hashes,
    tiles_of_tree,
)
from tests.audit.chain import Book
from tests.audit.naive_tree import path_of, proof_of, root_of

SIZES = [1, 2, 3, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000]
LEAVES = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(max(SIZES))]


def levels_of(size: int) -> list[list[bytes]]:
    """Return the hashes of every tile level of a tree."""
    stored = Frontier().extend(LEAVES[:size])
    levels = [LEAVES[:size]]
    while above := [one.digest for one in stored if one.level == len(levels)]:
        levels.append(above)
    return levels


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(5, 123_456_078, 2), "tile/5/x123/x456/078.p/2"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
        (Tile("entries", 1_000, 255), "tile/entries/x001/000.p/255"),
        (Tile(63, 999), "tile/63/999"),
    ],
)
def test_a_tile_has_one_path(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/00/000", "tile/64/000", "tile/100/000",
        "tile/-1/000", "tile/+1/000", "tile/0/x000/000", "tile/0/x000/x001/000", "tile/0/001/000", "tile/0/x001", "tile/0/000.p/0",
        "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/", "tile/0/000.p", "tile/data/000", "tile/Entries/000", "/tile/0/000",
        "tile/0/000/", "tile/0/000\n", "tile/0/٠٠٠", "tile/0/000.p/٣", "tile/1/x036/x028/x797/x018/x963/968",
    ],
)  # fmt: skip
def test_any_other_path_is_refused(path: str) -> None:
    with pytest.raises(TileRefused):
        parse_path(path)


@given(st.sampled_from([0, 1, 2, 3, "entries"]), st.integers(0, 2**54), st.integers(1, 256))
def test_every_path_leads_back_to_its_tile(level: int, number: int, width: int) -> None:
    tile = Tile(level, number, width)

    assert parse_path(tile.path) == tile


def test_the_right_edge_is_as_the_specification_counts_it() -> None:
    assert tiles_of_tree(0) == []
    assert tiles_of_tree(256) == [Tile(0, 0), Tile("entries", 0), Tile(1, 0, 1)]
    assert tiles_of_tree(70_000) == [Tile(0, 273, 112), Tile("entries", 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_tiles_that_are_wholly_in_it(size: int) -> None:
    for tile in tiles_of_tree(size):
        assert tile.is_in(size)
        if tile.level in {0, "entries"}:
            assert not tile.is_in(size - 1)
        if tile.width < 256:
            assert not tile._replace(width=tile.width + 1).is_in(size)


@pytest.mark.parametrize("size", SIZES)
def test_proofs_come_from_a_few_tiles(size: int) -> None:
    levels = levels_of(size)
    for index in sorted({0, 1, size // 3, size // 2, size - 1} & set(range(size))):
        spans = [*inclusion_spans(index, size), Span(0, size)]

        runs = runs_for(spans)

        tiles = {(run.level, run.low // 256) for run in runs}
        assert len(tiles) == len(runs) <= 2 * len(levels)
        assert sum(run.high - run.low for run in runs) <= 2 * 256 * len(levels)
        lookup = node_in({run: b"".join(levels[run.level][run.low : run.high]) for run in runs})
        *proof, root = (span_hash(span, lookup) for span in spans)
        assert root == root_of(LEAVES[:size])
        assert proof == path_of(index, LEAVES[:size])


@pytest.mark.parametrize("size1", [1, 255, 256, 300, 512, 65_536, 65_537, 69_999, 70_000])
def test_consistency_comes_from_a_few_tiles(size1: int) -> None:
    levels = levels_of(70_000)
    spans = consistency_spans(size1, 70_000)

    runs = runs_for(spans)
    lookup = node_in({run: b"".join(levels[run.level][run.low : run.high]) for run in runs})

    assert [span_hash(span, lookup) for span in spans] == proof_of(size1, LEAVES[:70_000])
    assert len(runs) <= 6


@given(st.sampled_from([5, 257, 700]), st.integers(0, 2**16), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_of_a_tile_gives_another_root(size: int, place: int, bit: int) -> None:
    levels = levels_of(size)
    runs = {run: bytearray(b"".join(levels[run.level][run.low : run.high])) for run in runs_for([Span(0, size)])}
    chosen = list(runs.values())[place % len(runs)]
    chosen[place % len(chosen)] ^= 1 << bit

    lookup = node_in({run: bytes(data) for run, data in runs.items()})

    assert span_hash(Span(0, size), lookup) != root_of(LEAVES[:size])


def test_a_node_that_was_not_read_is_not_made_up() -> None:
    lookup = node_in({Run(0, 4, 8): b"".join(LEAVES[4:8])})

    assert lookup(Node(1, 2)) == root_of(LEAVES[4:6])
    for node in (Node(0, 3), Node(3, 0), Node(8, 0), Node(0, 256)):
        with pytest.raises(LookupError):
            lookup(node)


@given(st.lists(st.binary(max_size=300), max_size=20))
@settings(max_examples=50)
def test_a_bundle_gives_its_entries_back(entries: list[bytes]) -> None:
    assert split_bundle(bundle(entries)) == entries


def test_a_bundle_is_lengths_and_entries() -> None:
    assert bundle([b"", b"ab", b"c" * 256]) == b"\x00\x00\x00\x02ab\x01\x00" + b"c" * 256


def test_an_entry_has_to_fit_into_a_bundle() -> None:
    assert split_bundle(bundle([b"e" * ENTRY_BYTES_MAX])) == [b"e" * ENTRY_BYTES_MAX]
    with pytest.raises(TileRefused):
        bundle([b"e" * (ENTRY_BYTES_MAX + 1)])


def test_the_longest_entry_of_a_consume_fits_into_a_bundle() -> None:
    """The edge takes 4,096 bytes of metadata and 500 characters of description; escaping makes the most of these."""
    metadata = json.dumps({"k": '"' * 2_040})
    assert len(metadata) <= 4_096
    book = Book()
    book.account("t" * 64).details = json.dumps({"settings": json.dumps({"metadata": metadata})})
    book.topup("t" * 64, 1, description="\x01" * 500, metadata=metadata)

    entries = [entry_bytes(event, bytes(32)) for event in book.events]

    assert max(map(len, entries)) < ENTRY_BYTES_MAX / 2
    assert split_bundle(bundle(entries)) == entries


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x02a", b"\x00\x00\x00", b"\xff\xff"])
def test_a_bundle_that_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(TileRefused):
        split_bundle(data)


def test_hashes_are_cut_at_32_bytes() -> None:
    assert split_hashes(b"".join(LEAVES[:3])) == LEAVES[:3]
    with pytest.raises(TileRefused):
        split_hashes(LEAVES[0][:31])
