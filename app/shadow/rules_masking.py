"""What a sample shows of an input and of answers: the shape of it all, and nothing private. Pure.

A sample is read by whoever compares two versions of a rule, and stays for weeks. So a value is shown only if neither its
field's name nor its own look says that it may be private; numbers as long as those of cards are never shown, under
whatever name, in whatever notation of digits.
"""

from __future__ import annotations

import re
from typing import Any, Final

from app.shadow.rules_difference import pointer_part

MASKED: Final = "[masked]"
CUT: Final = "[cut]"
TEXT_MAX: Final = 200  # characters of one text
MEMBERS_MAX: Final = 50  # of one list or object
DEPTH_MAX: Final = 8

# Parts of names under which people, their money and their secrets stand.
_private: Final = re.compile(
    r"name|mail|phone|mobile|street|address|city|zip|postal|birth|dob|age\b|gender|ssn|social|passport|licen[cs]e|tax|iban|bic"
    r"|account|card|pan\b|cv[cdnvx2]|ccv|csc\b|cav|security.?code|cid\b|expir|track|pin\b|passw|secret|token|key|auth"
    r"|cookie|session|signature"
    r"|cert|credential|\bip\b|ip_|_ip|latitude|longitude|location|user|customer|person|holder|note|comment|message|text",
    re.IGNORECASE,
)
_mail: Final = re.compile(r"[^\s@]+@[^\s@]+")
# Twelve digits or more, whatever stands between them but letters: card numbers have 12 to 19.
_long_number: Final = re.compile(r"\d(?:[^\w\n]{0,3}\d){11,}")
_secret: Final = re.compile(r"(?=[A-Za-z0-9_+/=.-]*\d)(?=[A-Za-z0-9_+/=.-]*[A-Za-z])[A-Za-z0-9_+/=.-]{24,}")
WHOLE_MAX: Final = 10**11  # a larger number has twelve digits


def mask(value: Any, names: frozenset[str] = frozenset(), depth: int = 0) -> Any:
    """Return a value as a sample may show it; the value itself stays as it is.

    names  further fields to mask, as the rule's settings say, in lower case
    """
    if depth > DEPTH_MAX:
        return CUT
    if type(value) is dict:
        shown = {
            pointer_part(key): MASKED if is_private(key, names) else mask(member, names, depth + 1)
            for key, member in list(value.items())[:MEMBERS_MAX]
        }
        return shown if len(value) <= MEMBERS_MAX else shown | {CUT: len(value) - MEMBERS_MAX}
    if type(value) is list:
        shown_list = [mask(member, names, depth + 1) for member in value[:MEMBERS_MAX]]
        return shown_list if len(value) <= MEMBERS_MAX else [*shown_list, CUT]
    if type(value) is str:
        return mask_text(value)
    if type(value) is int:
        return MASKED if abs(value) >= WHOLE_MAX else value
    if type(value) is float:
        # Six digits tell enough of a fraction; sixteen could be those of a card.
        return MASKED if abs(value) >= WHOLE_MAX else float(f"{value:.6g}")
    return value


def is_private(key: str, names: frozenset[str]) -> bool:
    """Whether what stands under a key is masked, whatever it is."""
    return key.lower() in names or _private.search(key) is not None


def mask_text(text: str) -> str:
    """Return a text without addresses, long numbers and what may be a secret."""
    cut = text[: 4 * TEXT_MAX]
    for pattern in (_mail, _long_number, _secret):
        cut = pattern.sub(MASKED, cut)
    return cut if len(cut) <= TEXT_MAX and len(text) <= 4 * TEXT_MAX else cut[:TEXT_MAX] + CUT
