"""Receipts: C2SP tlog-proof texts by which anybody can prove, offline, that an entry is in the log. Pure.

    c2sp.org/tlog-proof@v1
    extra <base64 of the entry>
    index <seq>
    <base64 hashes of the inclusion proof, a line each>
    <blank line>
    <signed checkpoint>

The entry stands in `extra`, so that one file is enough; the specification has it for that. Nothing in it is believed
before its hash is proved to be in the tree. Source: https://c2sp.org/tlog-proof
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from app.audit.checkpoint import Opened, open_checkpoint, parse_decimal
from app.audit.entry import entry_hash
from app.audit.merkle import ProofInvalid, verify_inclusion
from app.audit.note import NOTE_BYTES_MAX, NoteRefused, decode64, encode64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.audit.note import Verifier

HEADER: Final = "c2sp.org/tlog-proof@v1"
PROOF_HASHES_MAX: Final = 63  # the height of the largest tree


class ReceiptRefused(ValueError):
    """The receipt proves nothing; the text says why."""


class Receipt(NamedTuple):
    """A receipt taken apart: `note` is the signed checkpoint, `entry` the bytes claimed to stand at `seq`."""

    seq: int
    proof: tuple[bytes, ...]
    note: str
    entry: bytes | None = None

    @property
    def text(self) -> str:
        """The receipt as it is handed out; the extension of its file is .tlog-proof."""
        extra = "" if self.entry is None else f"extra {encode64(self.entry)}\n"
        hashes = "".join(f"{encode64(digest)}\n" for digest in self.proof)
        return f"{HEADER}\n{extra}index {self.seq}\n{hashes}\n{self.note}"


def parse_receipt(data: str | bytes) -> Receipt:
    """Take a receipt apart, strictly. Raises ReceiptRefused. Proves nothing: see `verify_receipt`."""
    if len(data) > NOTE_BYTES_MAX:
        raise ReceiptRefused(f"the receipt is longer than {NOTE_BYTES_MAX} bytes")
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        raise ReceiptRefused("the receipt is not UTF-8") from None
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines.pop(0) != HEADER:
        raise ReceiptRefused(f"the receipt does not start with {HEADER}, or has no checkpoint")
    try:
        entry = decode64(lines.pop(0).removeprefix("extra "), "extra") if lines and lines[0].startswith("extra ") else None
        if not lines or not lines[0].startswith("index "):
            raise ReceiptRefused("the receipt has no index where it belongs")
        seq = parse_decimal(lines.pop(0).removeprefix("index "), "the index")
        if len(lines) > PROOF_HASHES_MAX:
            raise ReceiptRefused(f"the proof has more than {PROOF_HASHES_MAX} hashes")
        proof = tuple(decode64(line, "a hash of the proof") for line in lines)
    except NoteRefused as error:
        raise ReceiptRefused(str(error)) from None
    return Receipt(seq, proof, note, entry)


def verify_receipt(
    receipt: Receipt, verifiers: Sequence[Verifier], *, witnesses: Sequence[Verifier] = (), entry: bytes | None = None
) -> Opened:
    """Prove that the entry stands in the log at the receipt's seq, and return the checkpoint that says so.

    verifiers  keys of the log, known from elsewhere; one of them has to have signed
    witnesses  every one of these has to have cosigned
    entry      the bytes of the entry, when the receipt does not hold them; otherwise they have to be the same
    faults     ReceiptRefused
    """
    if receipt.entry is None and entry is None:
        raise ReceiptRefused("the receipt holds no entry: give the entry that it is for")
    if receipt.entry is not None and entry is not None and receipt.entry != entry:
        raise ReceiptRefused("the receipt is for another entry")
    leaf = entry_hash(entry if receipt.entry is None else receipt.entry)  # type: ignore[arg-type]
    try:
        opened = open_checkpoint(receipt.note, [*verifiers, *witnesses])
        signed = {(one.verifier.name, one.verifier.key_id) for one in opened.signatures}
        for witness in witnesses:
            if (witness.name, witness.key_id) not in signed:
                raise ReceiptRefused(f"the witness {witness.name} has not cosigned the checkpoint")
        verify_inclusion(receipt.seq, opened.checkpoint.size, leaf, receipt.proof, opened.checkpoint.root)
    except (NoteRefused, ProofInvalid) as error:
        raise ReceiptRefused(str(error)) from None
    return opened
