"""Verification of one receipt file, without any database or server: `shieldx audit verify --receipt FILE --key VKEY`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from app.audit.checkpoint import Opened
from app.audit.entry import ENTRY_PREFIX, entry_hash
from app.audit.note import COSIGNATURE, encode64
from app.audit.receipt import Receipt, ReceiptRefused, parse_receipt, verify_receipt
from app.audit.report import EXIT_INTACT, EXIT_TAMPERED, EXIT_UNCHECKED
from app.audit.trust import TrustRefused, read_keys
from app.clock import time_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Cosigned(msgspec.Struct):
    """A known witness that has seen the checkpoint, and when."""

    witness: str
    at: str


class ReceiptReport(msgspec.Struct, omit_defaults=True):
    """What a receipt proves: the entry, and its place in which log; or, when `ok` is false, why it proves nothing."""

    ok: bool
    reason: str = ""
    origin: str = ""
    seq: int = -1
    size: int = -1
    root: str = ""
    leaf_hash: str = ""
    cosigned: list[Cosigned] = []
    record: dict[str, Any] | None = None


def check_receipt(
    data: bytes, vkeys: Sequence[str], witness_vkeys: Sequence[str] = (), *, entry: bytes | None = None
) -> ReceiptReport:
    """Verify a receipt by keys that are known from elsewhere. Every witness that is named has to have cosigned.

    Raises TrustRefused for a key that is none.
    """
    keys, witnesses = read_keys(vkeys), read_keys(witness_vkeys)
    try:
        receipt = parse_receipt(data)
        opened = verify_receipt(receipt, keys, witnesses=witnesses, entry=entry)
        return _report(receipt, opened, receipt.entry if receipt.entry is not None else entry or b"")
    except ReceiptRefused as error:
        return ReceiptReport(ok=False, reason=str(error))


def _report(receipt: Receipt, opened: Opened, entry: bytes) -> ReceiptReport:
    checkpoint = opened.checkpoint
    record = _record(entry)
    if record is not None and record.get("seq") != receipt.seq:
        raise ReceiptRefused(f"the entry says that it is seq {record.get('seq')}, the log has it at {receipt.seq}")
    return ReceiptReport(
        ok=True, origin=checkpoint.origin, seq=receipt.seq, size=checkpoint.size, root=encode64(checkpoint.root),
        leaf_hash=entry_hash(entry).hex(), record=record,
        cosigned=[Cosigned(one.verifier.name, time_text((one.time_s or 0) * 1000)) for one in opened.signatures
                  if one.verifier.kind == COSIGNATURE],
    )  # fmt: skip


def _record(entry: bytes) -> dict[str, Any] | None:
    """Return the record in an entry of this program; None for bytes of any other kind."""
    if not entry.startswith(ENTRY_PREFIX):
        return None
    try:
        return msgspec.json.decode(entry.removeprefix(ENTRY_PREFIX), type=dict[str, Any])
    except msgspec.MsgspecError:
        return None


def run_receipt(
    path: Path, vkeys: Sequence[str], witness_vkeys: Sequence[str], entry_path: Path | None, *, as_json: bool
) -> int:
    """Verify a receipt file, print what it proves, and return the exit code: 0 proved, 1 not, 2 could not check."""
    if not vkeys:
        sys.stderr.write("could not check: give --key, the verifier key of the log, from somebody you trust\n")
        return EXIT_UNCHECKED
    try:
        entry = None if entry_path is None else entry_path.read_bytes()
        report = check_receipt(path.read_bytes(), vkeys, witness_vkeys, entry=entry)
    except (OSError, TrustRefused) as error:
        sys.stderr.write(f"could not check: {error}\n")
        return EXIT_UNCHECKED
    text = msgspec.json.encode(report).decode() if as_json else receipt_text(report)
    sys.stdout.write(text + "\n")
    return EXIT_INTACT if report.ok else EXIT_TAMPERED


def receipt_text(report: ReceiptReport) -> str:
    """Return a report as lines for people."""
    if not report.ok:
        return f"NOT PROVED: {report.reason}"
    lines = [f"proved: entry {report.seq} is in the log {report.origin}, under its checkpoint of {report.size} entries"]
    lines += [f"cosigned by {one.witness} at {one.at}" for one in report.cosigned]
    if report.record is not None:
        names = ("type", "tenant_id", "amount", "at", "transaction_id")
        lines.append(", ".join(f"{name} {report.record.get(name)}" for name in names))
    return "\n".join(lines)
