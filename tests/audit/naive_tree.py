"""The Merkle tree as RFC 6962, section 2.1, writes it down: by recursion over all leaves. The tests' yardstick."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from app.audit.merkle import Node


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def leaf_hash(data: bytes) -> bytes:
    return sha(b"\x00" + data)


def half(count: int) -> int:
    """Return the largest power of two smaller than `count`."""
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH over leaf hashes."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = half(len(leaves))
    return sha(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:]))


def path_of(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(leaves) == 1:
        return []
    k = half(len(leaves))
    if m < k:
        return [*path_of(m, leaves[:k]), root_of(leaves[k:])]
    return [*path_of(m - k, leaves[k:]), root_of(leaves[:k])]


def proof_of(m: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    """PROOF(m, D[n]) and SUBPROOF."""
    if m == len(leaves):
        return [] if whole else [root_of(leaves)]
    k = half(len(leaves))
    if m <= k:
        return [*proof_of(m, leaves[:k], whole=whole), root_of(leaves[k:])]
    return [*proof_of(m - k, leaves[k:], whole=False), root_of(leaves[:k])]


def nodes_of(leaves: Sequence[bytes]) -> Callable[[Node], bytes]:
    """Return a lookup of the full subtrees over these leaves."""
    return lambda node: root_of(leaves[node.number << node.height : (node.number + 1) << node.height])
