"""Tree hashes and proofs: the published vectors of RFC 6962, and any tree against the recursion of the RFC."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.entry import entry_hash
from app.audit.merkle import (
    EMPTY_ROOT,
    SIZE_MAX,
    Frontier,
    Node,
    ProofInvalid,
    Span,
    consistency_spans,
    full_subtrees,
    inclusion_spans,
    node_hash,
    span_hash,
    verify_consistency,
    verify_inclusion,
)
from tests.audit.naive_tree import leaf_hash, nodes_of, path_of, proof_of, root_of

# transparency-dev/merkle, testonly/constants.go: eight leaves, and the roots of the trees of size 0 to 8.
DATA = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in DATA]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7",
    "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658",
    "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
    "46f6ffadd3d06a09ff3c5860d2755c8b9819db7df44251788c7d8e3180de8eb1",
]
FIRST_TWO_PAIRS = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
LAST_PAIR = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
INCLUSION = {
    (0, 1): [],
    (0, 8): [HASHES[1], FIRST_TWO_PAIRS, "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (5, 8): [HASHES[4], LAST_PAIR, ROOTS[4]],
    (2, 3): [ROOTS[2]],
    (1, 5): [HASHES[0], FIRST_TWO_PAIRS, HASHES[4]],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [HASHES[1], FIRST_TWO_PAIRS, "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (2, 5): [FIRST_TWO_PAIRS, HASHES[4]],
    (6, 8): ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", LAST_PAIR, ROOTS[4]],
    (6, 7): ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", HASHES[6], ROOTS[4]],
}


def grown(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier


def inclusion_of(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the proof that is made from stored nodes."""
    return [span_hash(span, nodes_of(leaves)) for span in inclusion_spans(index, len(leaves))]


def consistency_of(size1: int, leaves: list[bytes]) -> list[bytes]:
    return [span_hash(span, nodes_of(leaves)) for span in consistency_spans(size1, len(leaves))]


def test_leaves_and_nodes_have_the_published_hashes() -> None:
    assert [leaf.hex() for leaf in LEAVES] == HASHES
    assert entry_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert node_hash(b"N123", b"N456").hex() == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"


@pytest.mark.parametrize("size", range(9))
def test_a_tree_has_the_published_root(size: int) -> None:
    assert grown(LEAVES[:size]).root().hex() == ROOTS[size]
    assert (EMPTY_ROOT.hex() == ROOTS[size]) is (size == 0)


@pytest.mark.parametrize("place", INCLUSION)
def test_an_inclusion_proof_is_the_published_one(place: tuple[int, int]) -> None:
    index, size = place

    proof = inclusion_of(index, LEAVES[:size])

    assert [digest.hex() for digest in proof] == INCLUSION[place]
    verify_inclusion(index, size, LEAVES[index], proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize("sizes", CONSISTENCY)
def test_a_consistency_proof_is_the_published_one(sizes: tuple[int, int]) -> None:
    size1, size2 = sizes

    proof = consistency_of(size1, LEAVES[:size2])

    assert [digest.hex() for digest in proof] == CONSISTENCY[sizes]
    verify_consistency(size1, size2, proof, bytes.fromhex(ROOTS[size1]), bytes.fromhex(ROOTS[size2]))


def test_all_subtrees_and_their_proofs_up_to_130_leaves_add_up_to_the_published_digests() -> None:
    """draft-ietf-plants-merkle-tree-certs, "Subtree Test Vectors": leaves are the single bytes 00 to 81."""
    leaves = [leaf_hash(bytes([number])) for number in range(130)]
    nodes = {
        Node(height, number): root_of(leaves[number << height : (number + 1) << height])
        for height in range(8) for number in range(130 >> height)
    }  # fmt: skip
    subtrees, proofs = hashlib.sha256(), hashlib.sha256()
    for high in range(1, 131):
        for low in range(high):
            if low % (1 << (high - low - 1).bit_length()):
                continue
            subtrees.update(f"[{low}, {high}) {span_hash(Span(low, high), nodes.__getitem__).hex()}\n".encode())
            for index in range(low, high):
                spans = [Span(low + one.low, low + one.high) for one in inclusion_spans(index - low, high - low)]
                proof = "".join(f" {span_hash(span, nodes.__getitem__).hex()}" for span in spans)
                proofs.update(f"{index} [{low}, {high}){proof}\n".encode())

    assert subtrees.hexdigest() == "94a95384a8c69acea9b50d035a58285b3a777cb7a724005faa5e1f1e1190007f"
    assert proofs.hexdigest() == "ac2a8f989e44d99e399db448050ff5f19757df53cfb716aa81015d3955d8163f"


class Probe(NamedTuple):
    """What a verifier is shown: two numbers, two hashes, a proof; and whether it has to accept it."""

    name: str
    first: int
    second: int
    one: bytes
    other: bytes
    proof: list[bytes]


def corrupted(probe: Probe, limit: int) -> Iterator[Probe]:
    """Yield the wrong variants that the probes of transparency-dev/merkle (testdata) are made of."""
    name, first, second, one, other, proof = probe
    for number in {first - 1, first + 1, first ^ 2}:
        yield Probe(f"{name} first {number}", number, second, one, other, proof)
    for number in {second * 2, second // 2}:
        yield Probe(f"{name} second {number}", first, number, one, other, proof)
    for digest in (b"", EMPTY_ROOT, hashlib.sha256(b"random").digest()):
        yield Probe(f"{name} wrong one", first, second, digest, other, proof)
        yield Probe(f"{name} wrong other", first, second, one, digest, proof)
    for garbage in (b"", b"\x00", hashlib.sha256(b"random").digest(), one, other):
        yield Probe(f"{name} trailing", first, second, one, other, [*proof, garbage])
        yield Probe(f"{name} preceding", first, second, one, other, [garbage, *proof])
    if proof:
        yield Probe(f"{name} truncated", first, second, one, other, proof[:-1])
        yield Probe(f"{name} beheaded", first, second, one, other, proof[1:])
        yield Probe(f"{name} inserted", first, second, one, other, [proof[0], proof[0], *proof[1:]])
    for place, digest in enumerate(proof):
        for bit in range(limit):
            flipped = bytearray(digest)
            flipped[bit * 5 % 32] ^= 1 << bit % 8
            yield Probe(f"{name} bit", first, second, one, other, [*proof[:place], bytes(flipped), *proof[place + 1 :]])


def refused(check: Callable[..., None], *shown: Any) -> bool:
    """Whether a verifier does not accept what it is shown."""
    try:
        check(*shown)
    except ProofInvalid:
        return True
    return False


@pytest.mark.parametrize(("index", "size"), [(0, 1), (0, 8), (5, 8), (2, 3), (1, 5), (7, 8), (4, 5)])
def test_no_corrupted_inclusion_proof_is_accepted(index: int, size: int) -> None:
    root = bytes.fromhex(ROOTS[size])
    good = Probe("", index, size, LEAVES[index], root, inclusion_of(index, LEAVES[:size]))
    verify_inclusion(good.first, good.second, good.one, good.proof, good.other)

    accepted = [
        probe.name for probe in corrupted(good, 16)
        if not refused(verify_inclusion, probe.first, probe.second, probe.one, probe.proof, probe.other)
    ]  # fmt: skip

    assert accepted == []


@pytest.mark.parametrize(("size1", "size2"), [(1, 1), (1, 8), (2, 5), (6, 8), (6, 7), (4, 8), (7, 8), (8, 8)])
def test_no_corrupted_consistency_proof_is_accepted(size1: int, size2: int) -> None:
    roots = bytes.fromhex(ROOTS[size1]), bytes.fromhex(ROOTS[size2])
    good = Probe("", size1, size2, *roots, consistency_of(size1, LEAVES[:size2]))
    verify_consistency(size1, size2, good.proof, *roots)

    swapped = [] if size1 == size2 else [Probe("swapped", size1, size2, roots[1], roots[0], good.proof)]
    accepted = [
        probe.name for probe in [*corrupted(good, 16), *swapped]
        if not refused(verify_consistency, probe.first, probe.second, probe.proof, probe.one, probe.other)
    ]  # fmt: skip

    assert accepted == []


def test_nothing_is_consistent_with_the_empty_tree_by_proof() -> None:
    root = bytes.fromhex(ROOTS[3])

    for size2 in (0, 3):
        with pytest.raises(ProofInvalid, match="no consistency proof from size 0"):
            verify_consistency(0, size2, [], EMPTY_ROOT, root if size2 else EMPTY_ROOT)
        with pytest.raises(ProofInvalid):
            consistency_spans(0, size2)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 5), (5, 5), (0, SIZE_MAX + 1)])
def test_there_is_no_proof_for_a_leaf_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(ProofInvalid):
        inclusion_spans(index, size)
    with pytest.raises(ProofInvalid):
        verify_inclusion(index, size, LEAVES[0], [], LEAVES[0])


def test_a_proof_in_the_largest_tree_has_63_hashes() -> None:
    assert len(inclusion_spans(0, SIZE_MAX)) == 63
    assert sum(len(full_subtrees(span)) for span in inclusion_spans(0, SIZE_MAX)) < 63 * 64
    assert len(consistency_spans(2**62 + 1, SIZE_MAX)) <= 64


@given(st.lists(st.integers(0, 40), max_size=8), st.data())
@settings(deadline=None, max_examples=60)
def test_any_growth_gives_the_tree_of_the_recursion(steps: list[int], data: st.DataObject) -> None:
    leaves: list[bytes] = []
    frontier = Frontier()

    for step in steps:
        added = [hashlib.sha256(bytes([len(leaves) + number & 255, step])).digest() for number in range(step)]
        assert frontier.extend(added) == []
        leaves += added
        assert (frontier.size, frontier.root()) == (len(leaves), root_of(leaves))

    if leaves:
        size = len(leaves)
        index, size1 = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
        inclusion, consistency = inclusion_of(index, leaves), consistency_of(size1, leaves)
        assert inclusion == path_of(index, leaves)
        assert consistency == proof_of(size1, leaves)
        verify_inclusion(index, size, leaves[index], inclusion, frontier.root())
        verify_consistency(size1, size, consistency, root_of(leaves[:size1]), frontier.root())
        again = Frontier(size1, nodes_of(leaves))
        again.extend(leaves[size1:])
        assert again.root() == frontier.root()


@given(st.integers(0, 2**63 - 1), st.integers(1, 2**20))
def test_full_subtrees_are_aligned_and_cover_a_span_exactly(low: int, count: int) -> None:
    nodes = full_subtrees(Span(low, low + count))

    edges = [(node.number << node.height, (node.number + 1) << node.height) for node in nodes]
    assert edges[0][0] == low
    assert edges[-1][1] == low + count
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert len(nodes) <= 2 * count.bit_length()


def test_nodes_of_every_eighth_height_are_stored_once_when_they_are_full() -> None:
    leaves = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(70_000)]
    frontier = Frontier()

    stored = []
    for low in range(0, len(leaves), 997):
        stored += frontier.extend(leaves[low : low + 997])

    lookup = nodes_of(leaves)
    assert sorted((one.level, one.number) for one in stored) == [*((1, number) for number in range(273)), (2, 0)]
    assert all(one.digest == lookup(Node(8, one.number)) for one in stored if one.level == 1 and one.number % 50 == 0)
    assert stored[[one.level for one in stored].index(2)].digest == lookup(Node(16, 0))
    assert frontier.root() == root_of(leaves)
