"""Checkpoints and receipts: published ones, strict parsing, and what a receipt proves."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint, sign_checkpoint
from app.audit.entry import entry_hash
from app.audit.merkle import EMPTY_ROOT, Frontier, inclusion_spans, span_hash
from app.audit.note import COSIGNATURE, NoteRefused, Signer, Verifier, encode64, parse_note
from app.audit.receipt import Receipt, ReceiptRefused, parse_receipt, verify_receipt
from tests.audit.naive_tree import nodes_of

SEED = bytes(range(32))
ORIGIN = "shieldx/8f14e45f/s00"
ROOT = encode64(bytes(range(32)))
TEXT = f"{ORIGIN}\n5\n{ROOT}\n"

# Tessera, testdata/log: fifteen entries, and the checkpoint of that log.
TESSERA_WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eit",
    "nain",
    "ten",
    "ileven",
    "twelf",
    "threeten",
    "fourten",
    "fivten",
]
TESSERA_ROOT = "rKbDipCvhuX1GZ7g5BBe8sA6BbJ7ja/1nk427v383cs="


def test_the_tree_of_a_published_log_has_its_root() -> None:
    frontier = Frontier()
    frontier.extend([entry_hash(word.encode()) for word in TESSERA_WORDS])

    assert encode64(frontier.root()) == TESSERA_ROOT


def test_our_three_entry_vector_has_its_root() -> None:
    """Leaves and root of the vector that Go's tlog and three other programs have agreed on."""
    frontier = Frontier()
    frontier.extend(
        bytes.fromhex(leaf) for leaf in (
            "7865aa4e7085bcfd95702f8567e14ea9030d8e734c1a4c9f802328770072416a",
            "b1dc52c1c11f8f8bb08d0df32311561ae8973f088fc974e43f556ce981577e1b",
            "4d7abb1bf633132c1f8b554d1bec337a9ee4fcc2ce3e3737c8ffb33a3937afd4",
        )
    )  # fmt: skip

    assert frontier.root().hex() == "f517f93214865c8765beb84513f6f491358111c786de74255efd245617d2853d"


def test_a_record_has_the_hash_that_go_gives_it() -> None:
    assert encode64(entry_hash(b"hello world")) == "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0="


def test_a_checkpoint_reads_as_it_is_written() -> None:
    checkpoint = Checkpoint(ORIGIN, 5, bytes(range(32)))

    assert checkpoint.text == TEXT
    assert parse_checkpoint(TEXT) == checkpoint
    assert parse_checkpoint(TEXT + "more\n").extensions == ("more",)


def test_the_empty_log_has_a_checkpoint() -> None:
    signer = Signer(ORIGIN, SEED)

    opened = open_checkpoint(sign_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT), [signer]), [signer.verifier])

    assert opened.checkpoint == Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    with pytest.raises(NoteRefused, match="empty tree"):
        parse_checkpoint(f"{ORIGIN}\n0\n{ROOT}\n")


SIZES = ["+5", "05", " 5", "5 ", "-1", "1_000", "٣", "5.0", "0x5", "1e3", "", "00", str(2**63), "9" * 30, "５"]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_one_spelling(size: str) -> None:
    with pytest.raises(NoteRefused):
        parse_checkpoint(f"{ORIGIN}\n{size}\n{ROOT}\n")


def test_the_largest_size_is_read() -> None:
    assert parse_checkpoint(f"{ORIGIN}\n{2**63 - 1}\n{ROOT}\n").size == 2**63 - 1


@pytest.mark.parametrize(
    "text",
    ["", "\n", f"{ORIGIN}\n", f"{ORIGIN}\n5\n", TEXT[:-1], f"\n5\n{ROOT}\n", f"{ORIGIN}\n5\n\n", TEXT + "\n", TEXT + "a\n\nb\n",
     TEXT.replace(ROOT, ROOT[:-1]), TEXT.replace(ROOT, ROOT[:40]), TEXT.replace(ROOT, encode64(bytes(33))), TEXT.replace("=", "")],
)  # fmt: skip
def test_a_text_in_another_form_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteRefused):
        parse_checkpoint(text)


def test_only_the_log_itself_can_state_its_tree() -> None:
    log, witness = Signer(ORIGIN, SEED), Signer("witness", bytes(32), COSIGNATURE)
    note = TEXT + "\n" + witness.cosign(TEXT, 7).line

    with pytest.raises(NoteRefused, match="of the log"):
        open_checkpoint(note, [log.verifier, witness.verifier])
    with pytest.raises(NoteRefused, match="of the log"):
        open_checkpoint(TEXT + "\n" + Signer("other", SEED).sign(TEXT).line, [Signer("other", SEED).verifier])

    opened = open_checkpoint(
        sign_checkpoint(parse_checkpoint(TEXT), [log]) + witness.cosign(TEXT, 7).line, [log.verifier, witness.verifier]
    )
    assert [one.time_s for one in opened.signatures] == [None, 7]


ENTRIES = [f"entry {number}".encode() for number in range(11)]
LEAVES = [entry_hash(entry) for entry in ENTRIES]
LOG = Signer(ORIGIN, SEED)
WITNESS = Signer("witness.example/w1", bytes(32), COSIGNATURE)


def receipt_of(seq: int, size: int = 11) -> Receipt:
    frontier = Frontier()
    frontier.extend(LEAVES[:size])
    checkpoint = Checkpoint(ORIGIN, size, frontier.root())
    proof = tuple(span_hash(span, nodes_of(LEAVES[:size])) for span in inclusion_spans(seq, size))
    note = sign_checkpoint(checkpoint, [LOG]) + WITNESS.cosign(checkpoint.text, 1_800_000_000).line
    return Receipt(seq, proof, note, ENTRIES[seq])


@pytest.mark.parametrize(("seq", "size"), [(0, 1), (0, 11), (5, 11), (10, 11), (7, 8), (8, 9)])
def test_a_receipt_proves_its_entry(seq: int, size: int) -> None:
    text = receipt_of(seq, size).text

    opened = verify_receipt(parse_receipt(text.encode()), [LOG.verifier], witnesses=[WITNESS.verifier])

    assert (opened.checkpoint.origin, opened.checkpoint.size) == (ORIGIN, size)
    assert parse_receipt(text).text == text
    assert text.startswith("c2sp.org/tlog-proof@v1\nextra ")


def test_a_receipt_may_leave_the_entry_to_its_holder() -> None:
    bare = parse_receipt(receipt_of(3)._replace(entry=None).text)

    verify_receipt(bare, [LOG.verifier], entry=ENTRIES[3])

    with pytest.raises(ReceiptRefused, match="holds no entry"):
        verify_receipt(bare, [LOG.verifier])
    with pytest.raises(ReceiptRefused):
        verify_receipt(bare, [LOG.verifier], entry=ENTRIES[4])
    with pytest.raises(ReceiptRefused, match="another entry"):
        verify_receipt(receipt_of(3), [LOG.verifier], entry=ENTRIES[4])


def test_a_receipt_without_a_demanded_witness_is_refused() -> None:
    other = Signer("witness.example/w2", bytes(32), COSIGNATURE)

    with pytest.raises(ReceiptRefused, match="w2 has not cosigned"):
        verify_receipt(receipt_of(3), [LOG.verifier], witnesses=[WITNESS.verifier, other.verifier])


def wrong_receipts() -> list[str]:
    good = receipt_of(5)
    text = good.text
    first = encode64(good.proof[0])
    return [
        good._replace(seq=4).text, good._replace(seq=11).text, good._replace(seq=2**62).text,
        good._replace(entry=ENTRIES[4]).text, good._replace(entry=b"").text, good._replace(proof=good.proof[:-1]).text,
        good._replace(proof=(*good.proof, good.proof[0])).text, good._replace(proof=good.proof[::-1]).text,
        good._replace(note=receipt_of(5, 10).note).text, good._replace(note=good.note.replace("\n11\n", "\n12\n")).text,
        text.replace("@v1", "@v2"), "\n" + text, text.replace("index 5", "index 05"), text.replace("index 5", "index +5"),
        text.replace("index 5", "index 5 "), text.replace("index 5", "index"), text.replace("index 5\n", ""),
        text.replace("index 5", "index ٥"), text.replace("extra ", "extra  "), text.replace(first, first[:-1]),
        text.replace(first, ""), text.replace(first, encode64(good.proof[0][:31])), text.replace("\n", "\r\n"), text[:-1], text + "\n",
        text.replace(f"{first}\n", f"{first}\n" * 64), text.partition("\n\n")[0], text.encode().replace(b"index", b"\xffindex"),
        "", "c2sp.org/tlog-proof@v1\n\n", "c2sp.org/tlog-proof@v1\nextra AA==\n\n", "x" * (1 << 20) + text,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(wrong_receipts())))
def test_a_wrong_receipt_is_refused(number: int) -> None:
    with pytest.raises(ReceiptRefused):
        verify_receipt(parse_receipt(wrong_receipts()[number]), [LOG.verifier])


def test_a_receipt_of_another_key_is_refused() -> None:
    with pytest.raises(ReceiptRefused, match="no known key"):
        verify_receipt(receipt_of(5), [Signer(ORIGIN, bytes(32)).verifier])


@given(st.integers(0, len(receipt_of(5).text.encode()) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_of_a_receipt_goes_unnoticed_but_in_what_nobody_checks(bit: int) -> None:
    data = bytearray(receipt_of(5).text.encode())
    data[bit // 8] ^= 1 << bit % 8
    known = [LOG.verifier, Verifier.from_vkey(WITNESS.verifier.vkey)]

    try:
        opened = verify_receipt(parse_receipt(bytes(data)), known)
    except ReceiptRefused:
        return
    # A changed name or key id makes the cosignature one of a stranger, which a verifier has to ignore.
    assert len(opened.signatures) == 1
    assert parse_note(receipt_of(5).note).text == opened.checkpoint.text
    assert base64.b64decode(TESSERA_ROOT)
