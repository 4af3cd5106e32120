"""Finds card numbers in text, in whatever notation: where they start and end, and their last four digits. Pure.

A text is seen as groups of decimal digits between separators. Every window of 13 to 19 digits that starts and ends at
the edge of a group is tested: issuer prefix (ISO/IEC 7812-1), then check digit (Luhn). Time is linear in the length
of the text: no expression here can match one text in two ways.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from typing import Final, NamedTuple

DIGITS_MIN: Final = 13  # the shortest card numbers in use (Visa)
DIGITS_MAX: Final = 19  # the longest that ISO/IEC 7812-1 allows
GAP_MAX: Final = 8  # separators between two groups of one number; more is another column or paragraph
GLUED_MIN: Final = 18  # a number of 15 digits and a code of 3, written together
UUID_SHAPE: Final = b"hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh"  # RFC 9562; most keys and ids are one
LAST_DIGITS: Final = 4  # what PCI DSS 3.4.1 and the API show of a number

# Issuer prefixes of four digits, inclusive. Only American Express and Mastercard numbers have one length.
_PREFIXES_15: Final = ((3400, 3499), (3700, 3799))
_PREFIXES_16: Final = ((5100, 5599), (2221, 2720))
_PREFIXES_ANY: Final = (
    (4000, 4999),  # Visa
    (3000, 3059), (3095, 3095), (3600, 3699), (3800, 3999),  # Diners Club
    (3528, 3589),  # JCB
    (6011, 6011), (6440, 6599),  # Discover
    (6200, 6299), (8100, 8299),  # UnionPay, RuPay
    (5000, 5099), (5600, 5899), (6304, 6304), (6360, 6369), (6390, 6390), (6700, 6799),  # Maestro, Elo, Verve
    (6000, 6099),  # RuPay, Hipercard
    (2200, 2204),  # Mir
    (9792, 9792),  # Troy
)  # fmt: skip
_SEPARATORS: Final = "-./_+=|:,*#~\u2212\u00b7\u2022"
_SEPARATING: Final = frozenset({"Cc", "Cf", "Me", "Mn", "Pd", "Zs"})  # categories; marks stand on the digit before them


class Card(NamedTuple):
    """A card number from `start` to before `end` of a text; `last` are its last four digits."""

    start: int
    end: int
    last: str


def _lengths_by_prefix() -> dict[str, range]:
    table: dict[str, range] = {}
    for ranges, lengths in (
        (_PREFIXES_ANY, range(DIGITS_MIN, DIGITS_MAX + 1)), (_PREFIXES_15, range(15, 16)), (_PREFIXES_16, range(16, 17)),
    ):  # fmt: skip
        for low, high in ranges:
            table.update(dict.fromkeys((f"{prefix:04d}" for prefix in range(low, high + 1)), lengths))
    return table


_LENGTHS: Final = _lengths_by_prefix()
_ASCII_DIGITS: Final = b"0123456789"
_HEX_SHAPE: Final = bytes.maketrans(b"0123456789abcdefABCDEF", b"h" * 22)
# For bytes.translate: the value of an ASCII digit as it is, and doubled as the check of ISO/IEC 7812-1 wants it.
_SINGLE: Final = bytes(code - 48 if code in _ASCII_DIGITS else 0 for code in range(256))
_DOUBLED: Final = bytes((code - 48) * 2 - (9 if code > 52 else 0) if code in _ASCII_DIGITS else 0 for code in range(256))


class _Classes(dict[int, str]):
    """Code point to what it is in a number: an ASCII digit, a space for a separator, an x for all else."""

    def __missing__(self, code: int) -> str:
        found = self[code] = _class_of(chr(code))
        return found


def _class_of(char: str) -> str:
    plain = unicodedata.normalize("NFKC", char)
    if len(plain) == 1 and plain.isdecimal():
        return str(unicodedata.decimal(plain))
    if char in _SEPARATORS or char.isspace() or unicodedata.category(char) in _SEPARATING:
        return " "
    return "x"


_classes: Final = _Classes()
_ASCII: Final = "".join(map(_class_of, map(chr, range(128)))).encode().ljust(256, b"x")  # a table for bytes.translate
# What looks like a number of 13 digits but is none: UUIDs and times. They also end a group.
_other = re.compile(
    r"(?<![^\W_])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![^\W_])"
    r"|(?<!\d)(?:19|20|21)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])[T ](?:[01][0-9]|2[0-3])"
    r":[0-5][0-9](?::[0-6][0-9](?:[.,][0-9]{1,9})?)?(?:[+-](?:0[0-9]|1[0-4]):?[0-5][0-9])?(?!\d)"
)
_long_run = re.compile(rf"[0-9 ]{{{DIGITS_MIN}}}")
_thirteen = re.compile(rf"[0-9](?: {{0,{GAP_MAX}}}[0-9]){{{DIGITS_MIN - 1}}}")
_group = re.compile(r"[0-9]+")
# ISO/IEC 7813: track 1 holds the number, the name and more; track 2 the number, the expiry and more.
_track = re.compile(r"[%;]?[A-Z]?(?<!\d)([0-9]{13,19})(?:\^[^\^?\r\n]{0,40}\^[^?\s]{0,120}|[=D][0-9]{4,60})\??")


def skeleton(text: str) -> str:
    """Return a text of the same length in which only digits (as ASCII) and separators (as spaces) are told apart."""
    # Log lines are ASCII as a rule: their bytes are translated ten times faster than text.
    return text.encode().translate(_ASCII).decode() if text.isascii() else text.translate(_classes)


def passes_luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    data = digits.encode()
    return (sum(data[::-2].translate(_SINGLE)) + sum(data[-2::-2].translate(_DOUBLED))) % 10 == 0


def is_card(digits: str) -> bool:
    """Return whether ASCII digits are a card number: length, issuer prefix and check digit."""
    lengths = _LENGTHS.get(digits[:4])
    return lengths is not None and len(digits) in lengths and passes_luhn(digits)


def may_hold_card(text: str) -> bool:
    """Return False for a text that has too few digits for a card number, or is a UUID: most end here, in under 1 us.

    Also for a text that is still encoded: each code of a digit that `app.privacy.notation` knows has an ASCII digit in it.
    """
    length = len(text)
    if length < DIGITS_MIN:
        return False
    if not text.isascii():
        return True
    data = text.encode()
    if length - len(data.translate(None, _ASCII_DIGITS)) < DIGITS_MIN:
        return False
    return length != len(UUID_SHAPE) or data.translate(_HEX_SHAPE) != UUID_SHAPE


def find_cards(text: str) -> list[Card]:
    """Return all card numbers of a text, from left to right, none overlapping another.

    A magnetic track is found as one card with everything in it. Digits glued to a number belong to it.
    """
    if not may_hold_card(text):
        return []
    outline = skeleton(text)
    # The first search is cheap, and all that most texts of letters and digits need.
    if _long_run.search(outline) is None or _thirteen.search(outline) is None:
        return []
    tracks = []
    if "=" in text or "^" in text or "D" in text:
        tracks = [
            Card(found.start(), found.end(), found[1][-LAST_DIGITS:]) for found in _track.finditer(text) if is_card(found[1])
        ]
        text = _track.sub(lambda found: _blank(found) if is_card(found[1]) else found[0], text) if tracks else text
    if tracks or "-" in text:
        outline = skeleton(_other.sub(_blank, text))
        if _thirteen.search(outline) is None:
            return tracks
    cards = [card for run in _runs(outline) for card in _cards_of(outline, run)]
    return sorted(cards + tracks)


def _blank(found: re.Match[str]) -> str:
    return "x" * len(found[0])


def _runs(outline: str) -> list[list[tuple[int, int]]]:
    """Return the groups of digits, as (start, end), in runs: no two groups of a run are further apart than GAP_MAX."""
    runs: list[list[tuple[int, int]]] = []
    before = -GAP_MAX - 1
    for found in _group.finditer(outline):
        start, end = found.span()
        if runs and start - before <= GAP_MAX and outline[before:start].isspace():
            runs[-1].append((start, end))
        else:
            runs.append([(start, end)])
        before = end
    return [run for run in runs if sum(end - start for start, end in run) >= DIGITS_MIN]


def _cards_of(outline: str, run: list[tuple[int, int]]) -> list[Card]:
    """Return the cards of one run.

    What is shown of a card, its last four digits, stands beside what follows: so they are tried as the first group
    of the next number, and then both are one card. That makes masking idempotent.
    """
    digits = [*"".join(outline[start:end] for start, end in run)]
    starts, ends, total = [], [], 0
    for start, end in run:
        starts.append(total)
        total += end - start
        ends.append(total)
    edges = frozenset(ends)
    cards: list[Card] = []
    at, shown = 0, False
    while total - at >= DIGITS_MIN:
        first = bisect_left(starts, at)
        size = 0 if shown else ends[first] - at
        length = _window(digits, at, edges, size)
        if length == 0:
            first = bisect_left(starts, at + (LAST_DIGITS if shown else 1))
            if first == len(starts):
                break
            at, shown = starts[first], False
            continue
        last = "".join(digits[at + length - LAST_DIGITS : at + length])
        end = at + max(length, size)
        span_start = cards.pop().start if shown else run[first][0]
        cards.append(Card(span_start, run[bisect_left(ends, end)][1], last))
        digits[end - LAST_DIGITS : end] = last
        at, shown = end - LAST_DIGITS, True
    return cards


def _window(digits: list[str], at: int, edges: frozenset[int], size: int) -> int:
    """Return the length of the longest card that starts at digit `at`, 0 if there is none.

    size  digits of the group that starts there: of a long group the card may be only the first part
    """
    lengths = _LENGTHS.get("".join(digits[at : at + 4]))
    if lengths is None:
        return 0
    text = "".join(digits[at : at + DIGITS_MAX])
    for length in reversed(lengths):
        glued = size > DIGITS_MAX or (size >= GLUED_MIN and length in {15, 16})
        if length <= len(text) and (glued or at + length in edges) and passes_luhn(text[:length]):
            return length
    return 0
