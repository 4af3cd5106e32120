"""Signed notes and their keys: the published vectors, strict parsing, rotation, cosignatures."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit.note import (
    COSIGNATURE,
    ED25519,
    NoteRefused,
    Signature,
    Signer,
    Verifier,
    encode64,
    parse_note,
    sign_note,
    verify,
)

VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
TEXT = "This is an example message.\n"
PAYLOAD = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
NOTE = f"{TEXT}\n\u2014 example.com/foo {PAYLOAD}\n"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SEED = bytes(range(32))


def test_the_published_note_verifies() -> None:
    note = parse_note(NOTE)

    verified = verify(note, [Verifier.from_vkey(VKEY)])

    assert (note.text, [one.verifier.vkey for one in verified], verified[0].time_s) == (TEXT, [VKEY], None)


def test_the_published_note_of_go_verifies() -> None:
    assert verify(parse_note(PETER_NOTE), [Verifier.from_vkey(PETER)])


def test_our_key_has_the_text_of_the_vector() -> None:
    signer = Signer("ledger.example.com/audit/2026", SEED)

    assert signer.verifier.vkey == "ledger.example.com/audit/2026+8f749a59+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
    assert Verifier.from_vkey(signer.verifier.vkey).public == signer.verifier.public
    assert SEED.hex() not in repr(signer)


@pytest.mark.parametrize(
    "vkey",
    [
        "", "example.com/foo", "example.com/foo+530d903a", VKEY[:-1], VKEY + "=", VKEY + "\n", " " + VKEY,
        VKEY.replace("530d903a", "530D903A"), VKEY.replace("530d903a", "530d903b"), VKEY.replace("530d903a", "30d903a"),
        VKEY.replace("example.com/foo", "example.com/bar"), VKEY.replace("example.com/foo", ""), VKEY.replace("AekyeR", "AukyeR"),
        "a b" + VKEY[15:], "example.com/foo+530d903a+",
    ],
)  # fmt: skip
def test_a_wrong_verifier_key_is_refused(vkey: str) -> None:
    with pytest.raises(NoteRefused):
        Verifier.from_vkey(vkey)


P = 2**255 - 19


def inverse(value: int) -> int:
    return pow(value, P - 2, P)


def doubled(point: tuple[int, int]) -> tuple[int, int]:
    """Return twice a point of edwards25519."""
    x, y = point
    d = -121665 * inverse(121666) % P
    product = d * x * x * y * y
    return 2 * x * y * inverse(1 + product) % P, (y * y + x * x) * inverse(1 - product) % P


def point_of(y: int) -> tuple[int, int]:
    """Return a point with this y: RFC 8032, 5.1.3."""
    square = (y * y - 1) * inverse(-121665 * inverse(121666) * y * y + 1) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x, y


SMALL = [
    0, 1, P - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
]  # fmt: skip


@pytest.mark.parametrize("y", SMALL)
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_a_key_of_small_order_is_refused(y: int, sign: int) -> None:
    assert doubled(doubled(doubled(point_of(y)))) == (0, 1), "it is one of the points that this test is about"

    with pytest.raises(NoteRefused, match="small order"):
        Verifier("name", ED25519, (y | sign).to_bytes(32, "little"))


@pytest.mark.parametrize("y", [P, P + 1, 2**255 - 1])
def test_a_key_in_another_form_than_the_canonical_is_refused(y: int) -> None:
    with pytest.raises(NoteRefused, match="canonical"):
        Verifier("name", ED25519, y.to_bytes(32, "little"))


@pytest.mark.parametrize(("kind", "size"), [(2, 32), (5, 32), (6, 1312), (0, 32), (ED25519, 31), (ED25519, 33)])
def test_a_key_of_another_kind_or_length_is_refused(kind: int, size: int) -> None:
    with pytest.raises(NoteRefused):
        Verifier("name", kind, b"\x07" * size)


SIGNATURE_LINE = NOTE.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    "note",
    [
        "", "\n", "\n\n", TEXT, TEXT + "\n", SIGNATURE_LINE, "\n" + SIGNATURE_LINE, "\n\n" + SIGNATURE_LINE,
        NOTE[:-1], NOTE + "\n", NOTE + "x", NOTE.replace("\u2014", "-"), NOTE.replace("\u2014", "\u2013"),
        NOTE.replace("\u2014 ", "\u2014"), NOTE.replace("\u2014 ", "\u2014  "), NOTE.replace(f" {PAYLOAD}", f"  {PAYLOAD}"),
        NOTE.replace("\n", "\r\n"), NOTE.replace("message.\n", "message.\r\n"), NOTE.replace("an example", "an\texample"),
        NOTE.replace("an example", "an\x00example"), NOTE.replace("an example", "an\x7fexample"), NOTE + SIGNATURE_LINE,
        NOTE.replace(PAYLOAD, PAYLOAD[:-1]), NOTE.replace(PAYLOAD, PAYLOAD[:-2] + "N="), NOTE.replace(PAYLOAD, PAYLOAD + "="),
        NOTE.replace(PAYLOAD, "Uw2QOg=="), NOTE.replace(PAYLOAD, ""),
        NOTE.replace("example.com/foo", "example.com+foo"), NOTE.replace("example.com/foo", "a\u00a0b"), NOTE.replace("example.com/foo", ""),
        NOTE.encode() + b"\xff", b"\xff" + NOTE.encode(), NOTE.replace("an", "\ud800"), NOTE + SIGNATURE_LINE * 100, "x" * (1 << 20) + NOTE,
    ],
)  # fmt: skip
def test_a_note_in_any_other_form_is_refused(note: str | bytes) -> None:
    with pytest.raises(NoteRefused):
        verify(parse_note(note), [Verifier.from_vkey(VKEY)])


def test_the_url_safe_alphabet_is_another_spelling() -> None:
    with pytest.raises(NoteRefused, match="base64"):
        parse_note(PETER_NOTE.replace("go/Z", "go_Z"))


def test_the_last_blank_line_separates() -> None:
    signer = Signer("log", SEED)

    note = parse_note(sign_note("a\n\nb\n\n\nc\n", [signer]))

    assert note.text == "a\n\nb\n\n\nc\n"
    assert verify(note, [signer.verifier])


@pytest.mark.parametrize("text", ["", "a", "a\r\n", "a\x01\n"])
def test_a_text_that_no_note_can_have_is_not_signed(text: str) -> None:
    with pytest.raises(NoteRefused):
        sign_note(text, [Signer("log", SEED)])


def test_either_key_verifies_while_keys_are_rotated() -> None:
    old, new, other = (Signer("log", bytes([number]) * 32) for number in range(3))

    note = parse_note(sign_note("text\n", [new, old]))

    assert [one.verifier.key_id for one in verify(note, [old.verifier])] == [old.verifier.key_id]
    assert [one.verifier.key_id for one in verify(note, [new.verifier, other.verifier])] == [new.verifier.key_id]
    assert len(verify(note, [old.verifier, new.verifier])) == 2
    with pytest.raises(NoteRefused, match="no known key"):
        verify(note, [other.verifier])


def test_a_wrong_signature_of_a_known_key_is_not_made_good_by_another() -> None:
    good, bad = Signer("log", SEED), Signer("log", bytes(32))
    wrong = Signature("log", bad.verifier.key_id, bytes(64))
    note = parse_note(sign_note("text\n", [good]) + wrong.line)

    with pytest.raises(NoteRefused, match="is wrong"):
        verify(note, [good.verifier, bad.verifier])
    assert verify(note, [good.verifier])


def test_the_same_key_under_another_name_is_another_key() -> None:
    note = parse_note(sign_note("text\n", [Signer("log/s00", SEED)]))

    with pytest.raises(NoteRefused, match="no known key"):
        verify(note, [Signer("log/s01", SEED).verifier])


def test_a_cosignature_states_its_time() -> None:
    witness = Signer("witness.example/w1", SEED, COSIGNATURE)
    line = witness.cosign("origin\n1\nroot\n", 1_679_315_147)
    message = b"cosignature/v1\ntime 1679315147\norigin\n1\nroot\n"

    verified = verify(parse_note("origin\n1\nroot\n\n" + line.line), [Verifier.from_vkey(witness.verifier.vkey)])

    assert verified[0].time_s == 1_679_315_147
    assert line.payload[:8] == (1_679_315_147).to_bytes(8, "big")
    assert line.key_id == hashlib.sha256(b"witness.example/w1\n\x04" + witness.verifier.public).digest()[:4]
    witness._key.public_key().verify(line.payload[8:], message)


@pytest.mark.parametrize("change", ["time", "text", "short", "negative"])
def test_a_changed_cosignature_is_refused(change: str) -> None:
    witness = Signer("w", SEED, COSIGNATURE)
    name, key_id, payload = witness.cosign("text\n", 100)
    text = "text2\n" if change == "text" else "text\n"
    if change == "time":
        payload = (101).to_bytes(8, "big") + payload[8:]
    elif change == "short":
        payload = payload[:-1]
    elif change == "negative":
        payload = b"\x80" + payload[1:]

    with pytest.raises(NoteRefused):
        verify(parse_note(text + "\n" + Signature(name, key_id, payload).line), [witness.verifier])


def test_a_cosignature_is_not_taken_for_the_signature_of_a_log() -> None:
    cosigner, log = Signer("name", SEED, COSIGNATURE), Signer("name", SEED)

    assert cosigner.verifier.key_id != log.verifier.key_id
    with pytest.raises(NoteRefused, match="no known key"):
        verify(parse_note("text\n\n" + cosigner.cosign("text\n", 1).line), [log.verifier])


@given(st.integers(0, len(NOTE.encode()) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    data = bytearray(NOTE.encode())
    data[bit // 8] ^= 1 << bit % 8

    with pytest.raises(NoteRefused):
        verify(parse_note(bytes(data)), [Verifier.from_vkey(VKEY)])


def test_a_signer_needs_32_bytes() -> None:
    for size in (0, 31, 33, 64):
        with pytest.raises(NoteRefused):
            Signer("log", bytes(size))
    assert encode64(Signer("log", SEED).verifier.public) == "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
