"""The Merkle tree of a shard, as RFC 6962 defines it: node hashes, frontier, proofs and their verification. Pure.

The leaf hashes are the hashes of the entries (`app.audit.entry.entry_hash`), so link of the chain and leaf of the tree
are one value. A node is named by height and number: it covers the leaves number * 2^height to (number + 1) * 2^height.
Hashes of full subtrees never change, so proofs are made from stored ones; see `app.audit.tiles` for how they lie.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from app.audit.entry import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NODE_PREFIX: Final = b"\x01"
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()  # RFC 6962, 2.1: the root of the tree without leaves
TILE_HEIGHT: Final = 8  # levels of the tree that one tile of C2SP tlog-tiles covers
TILE_WIDTH: Final = 1 << TILE_HEIGHT
SIZE_MAX: Final = 2**63 - 1  # a size has to fit into the bigint of PostgreSQL and the int64 of other verifiers


class ProofInvalid(ValueError):
    """The proof does not show what it should; the text says why."""


class Span(NamedTuple):
    """The leaves `low` to before `high`; in a proof the subtree over them stands for one hash."""

    low: int
    high: int


class Node(NamedTuple):
    """A full subtree of 2^height leaves, the one with this number among those of its height."""

    height: int
    number: int


class StoredHash(NamedTuple):
    """A node of a height that tiles store: hash `number` at tile level `level`, which is height / 8."""

    level: int
    number: int
    digest: bytes


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 + left + right), 32 bytes: RFC 6962, 2.1."""
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of the full subtree over 2^n neighbouring nodes of one height."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def full_subtrees(span: Span) -> list[Node]:
    """Return the fewest full subtrees that cover a span, from left to right. At most two for each height."""
    nodes = []
    low, high = span
    while low < high:
        height = (high - low).bit_length() - 1
        if low:
            height = min(height, (low & -low).bit_length() - 1)
        nodes.append(Node(height, low >> height))
        low += 1 << height
    return nodes


def span_hash(span: Span, node: Callable[[Node], bytes]) -> bytes:
    """Return the Merkle tree hash of a span of RFC 6962: one that proofs name, or the whole tree from 0.

    node   gives the hash of a full subtree
    """
    if span.low == span.high:
        return EMPTY_ROOT
    *others, digest = [node(part) for part in full_subtrees(span)]
    for other in reversed(others):
        digest = node_hash(other, digest)
    return digest


def _split(count: int) -> int:
    """Return the largest power of two below `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Return what the proof that leaf `index` is in the tree of `size` consists of: RFC 6962, 2.1.1.

    Raises ProofInvalid when there is no such leaf.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ProofInvalid(f"there is no leaf {index} in a tree of size {size}")
    low, high, spans = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            spans.append(Span(middle, high))
            high = middle
        else:
            spans.append(Span(low, middle))
            low = middle
    return spans[::-1]


def consistency_spans(size1: int, size2: int) -> list[Span]:
    """Return what the proof that the tree of `size2` extends that of `size1` consists of: RFC 6962, 2.1.2.

    Raises ProofInvalid for sizes between which nothing can be proved; size 0 is one, because any tree extends it.
    """
    if not 1 <= size1 <= size2 <= SIZE_MAX:
        raise ProofInvalid(f"there is no consistency proof from size {size1} to {size2}")
    low, high, spans, whole = 0, size2, [], True
    while high != size1:
        middle = low + _split(high - low)
        if size1 <= middle:
            spans.append(Span(middle, high))
            high = middle
        else:
            spans.append(Span(low, middle))
            low, whole = middle, False
    if not whole:
        spans.append(Span(low, high))
    return spans[::-1]


class Frontier:
    """The roots of the full subtrees at the right edge of a tree: what is needed to append to it, and to know its root."""

    def __init__(self, size: int = 0, node: Callable[[Node], bytes] | None = None) -> None:
        """Start at a size; `node` gives the hash of a full subtree, and is not needed for the empty tree."""
        self.size = size
        self._peaks: dict[int, bytes] = {}
        for peak in full_subtrees(Span(0, size)):
            assert node is not None, "a tree that is not empty has nodes"
            self._peaks[peak.height] = node(peak)

    def extend(self, leaves: Iterable[bytes]) -> list[StoredHash]:
        """Append leaf hashes, and return the nodes that became full and that tiles above level 0 store."""
        stored: list[StoredHash] = []
        nodes = list(leaves)
        index, height = self.size, 0
        self.size += len(nodes)
        while nodes:
            if index & 1:
                nodes.insert(0, self._peaks.pop(height))
                index -= 1
            if len(nodes) & 1:
                self._peaks[height] = nodes[-1]
            sha256, prefix = hashlib.sha256, NODE_PREFIX
            pairs = zip(nodes[::2], nodes[1::2], strict=False)
            nodes = [sha256(prefix + left + right).digest() for left, right in pairs]
            index, height = index >> 1, height + 1
            if height % TILE_HEIGHT == 0:
                level = height // TILE_HEIGHT
                stored += [StoredHash(level, number, digest) for number, digest in enumerate(nodes, index)]
        return stored

    def root(self) -> bytes:
        """Return the root of the tree as it is now."""
        return span_hash(Span(0, self.size), lambda node: self._peaks[node.height])


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash stands at `index` in the tree of `size` with `root`: RFC 9162, 2.1.3.2.

    Raises ProofInvalid. The length of the proof has to be exact.
    """
    _check_lengths((root,))
    if root_of_inclusion(index, size, leaf, proof) != root:
        raise ProofInvalid("the inclusion proof leads to another root")


def root_of_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to. Raises ProofInvalid when it has not the right form."""
    if not 0 <= index < size <= SIZE_MAX:
        raise ProofInvalid(f"there is no leaf {index} in a tree of size {size}")
    _check_lengths((leaf, *proof))
    return _climb(index, size - 1, leaf, proof)[1]


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Check that the tree of `size2` with `root2` extends that of `size1` with `root1`: RFC 9162, 2.1.4.2.

    Raises ProofInvalid. The length of the proof has to be exact; nothing can be proved from size 0.
    """
    if not 1 <= size1 <= size2 <= SIZE_MAX:
        raise ProofInvalid(f"there is no consistency proof from size {size1} to {size2}")
    _check_lengths((root1, root2, *proof))
    if size1 == size2:
        if proof or root1 != root2:
            raise ProofInvalid("there are two roots for one size, or a proof where there is nothing to prove")
        return
    if not proof:
        raise ProofInvalid("the consistency proof is empty")
    start, *path = proof if size1 & (size1 - 1) else (root1, *proof)
    # Up to the first full subtree that ends at size1, both trees are the same.
    shared = (size1 & -size1).bit_length() - 1
    digest1, digest2 = _climb((size1 - 1) >> shared, (size2 - 1) >> shared, start, path)
    if digest1 != root1:
        raise ProofInvalid("the consistency proof leads to another first root")
    if digest2 != root2:
        raise ProofInvalid("the consistency proof leads to another second root")


def _climb(number: int, last: int, start: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Hash the way from node `number` of a height to the root, `last` being the rightmost node of that height.

    Returns two hashes: of the tree that ends with the node `start`, and of the whole tree. Raises ProofInvalid for a
    path that is not exactly as long as the way.
    """
    ended = whole = start
    for other in path:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        if number & 1 or number == last:
            ended, whole = node_hash(other, ended), node_hash(other, whole)
            # A node without a sibling is its own parent.
            while number and not number & 1:
                number, last = number >> 1, last >> 1
        else:
            whole = node_hash(whole, other)
        number, last = number >> 1, last >> 1
    if last:
        raise ProofInvalid("the proof is too short")
    return ended, whole


def _check_lengths(hashes: Sequence[bytes]) -> None:
    if any(len(digest) != HASH_BYTES for digest in hashes):
        raise ProofInvalid(f"a hash is not {HASH_BYTES} bytes long")
