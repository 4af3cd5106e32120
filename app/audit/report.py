"""What a verification found, as values, as JSON and as text for people."""

from __future__ import annotations

from typing import Final

import msgspec

EXIT_INTACT: Final = 0
EXIT_TAMPERED: Final = 1
EXIT_UNCHECKED: Final = 2


class Bad(msgspec.Struct, frozen=True):
    """Why a chain is not intact. `seq` is None when the fault has no entry, such as an account that no entry names."""

    seq: int | None
    reason: str


class Finding(msgspec.Struct, frozen=True):
    """The first fault of the whole ledger; `shard` is None when it belongs to none."""

    shard: int | None
    seq: int | None
    reason: str


class ShardReport(msgspec.Struct):
    """One chain: how many entries were checked, where its head should be, and the first fault.

    signed_size  entries under the newest signed checkpoint that agrees with the chain; -1 when there is none
    """

    shard: int
    entries: int
    head_seq: int
    first_bad: Bad | None
    signed_size: int = -1


class PrivateReport(msgspec.Struct):
    """How many entries speak of a private record, by what became of it.

    verified  it is there, under the commitment and the key that the entry names
    erased    it is not, and a tombstone says so, which is in the chain or will be in a moment
    missing   neither: somebody has tampered
    """

    verified: int = 0
    erased: int = 0
    missing: int = 0


class Report(msgspec.Struct):
    """The outcome of one verification. `checked_at` is RFC 3339 UTC: the state as of that time was checked.

    signatures_unchecked  entries sealed with a key that the verifier was not given; not a fault
    accounts              tenants whose folded state was compared with credit_accounts
    private               what became of the private records that the checked entries name
    trial_balance         sum over all system and tenant accounts, 0 when sound; None when a chain is broken
    """

    ok: bool
    checked_at: str
    shards: list[ShardReport]
    signatures_unchecked: int
    accounts: int
    seconds: float
    first_bad: Finding | None
    trial_balance: int | None
    private: PrivateReport = msgspec.field(default_factory=PrivateReport)


def report_json(report: Report) -> str:
    """Return the report as one JSON object, without a newline."""
    return msgspec.json.encode(report).decode()


def report_text(report: Report) -> str:
    """Return the report as lines for people: the shards, then one sentence with the result."""
    lines = [
        f"shard {shard.shard}: {shard.entries} entries, head {shard.head_seq}: {_verdict(shard)}" for shard in report.shards
    ]
    if report.signatures_unchecked:
        lines.append(f"{report.signatures_unchecked} signatures were not checked: their key is not known here")
    private = report.private
    if private != PrivateReport():
        lines.append(
            f"private records: {private.verified} verified, {private.erased} erased with a tombstone, "
            f"{private.missing} missing"
        )
    entries = sum(shard.entries for shard in report.shards)
    if report.first_bad is None:
        balance = "" if report.trial_balance is None else f" trial balance {report.trial_balance},"
        lines.append(f"intact: {entries} entries and {report.accounts} accounts agree,{balance} {report.seconds:.1f} s")
    else:
        bad = report.first_bad
        where = "ledger" if bad.shard is None else f"shard {bad.shard} {_place(bad.seq)}"
        lines.append(f"TAMPERED: {where}: {bad.reason}")
    return "\n".join(lines)


def _verdict(shard: ShardReport) -> str:
    if shard.first_bad is not None:
        return f"TAMPERED {_place(shard.first_bad.seq)}: {shard.first_bad.reason}"
    return "intact, no checkpoint" if shard.signed_size < 0 else f"intact, signed up to {shard.signed_size} entries"


def _place(seq: int | None) -> str:
    return "outside the chain" if seq is None else f"at seq {seq}"
