"""What a sample shows of an input and of answers: the shape of it all, and nothing private. Pure.

A sample is read by whoever compares two versions of a rule, and stays for weeks. So a value is shown only if neither its
field's name nor its own look says that it may be private; numbers as long as those of cards are never shown, under
whatever name, in whatever notation of digits. An answer may be made from the input: a text in it that holds what the input
has under a private name is masked as well, whatever the answer calls it. Every pattern takes time linear in the text, and a
sample has an end: masking runs between the requests of callers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from app.shadow.rules_difference import pointer_part

if TYPE_CHECKING:
    from collections.abc import Iterable

MASKED: Final = "[masked]"
CUT: Final = "[cut]"
TEXT_MAX: Final = 200  # characters of one text
SEEN_MAX: Final = 2 * TEXT_MAX  # of one text that are looked at: masks may be shorter than what they stand for
MEMBERS_MAX: Final = 50  # of one list or object
DEPTH_MAX: Final = 8
VALUES_MAX: Final = 500  # that one sample shows: with the longest input a few ms
KEY_MAX: Final = 64  # characters; a longer key is no name but data
LOOKED_AT_MAX: Final = 2_000  # values of an input that are looked through for private fields
HIDDEN_MAX: Final = 40  # values of private fields that answers are searched for; beyond either they show no text at all
HIDDEN_LENGTH_MIN: Final = 3  # characters; shorter ones stand in too many texts to say anything
HIDDEN_LENGTH_MAX: Final = 64  # of each that are searched for
HIDDEN_WHOLE_MIN: Final = 10_000  # smaller numbers are ages, counts and scores

# Parts of names under which people, their money and their secrets stand.
_private: Final = re.compile(
    r"name|mail|phone|mobile|street|address|city|zip|postal|birth|dob|age\b|gender|ssn|social|passport|licen[cs]e|tax|iban|bic"
    r"|account|card|pan\b|cv[cdnvx2]|ccv|csc\b|cav|security.?code|cid\b|expir|track|pin\b|passw|secret|token|key|auth"
    r"|cookie|session|signature"
    r"|cert|credential|\bip\b|ip_|_ip|latitude|longitude|location|user|customer|person|holder|note|comment|message|text"
    r"|\btel|fax|login|payee|payer|beneficiar|recipient|sender|contact|nationality",
    re.IGNORECASE,
)
# Each begins where a run of its characters begins, and nowhere else in it: tried at every character of a long run that does
# not match, they would take time by the square of its length.
_mail: Final = re.compile(r"(?<![^\s@\uff20\ufe6b])[^\s@\uff20\ufe6b]+[@\uff20\ufe6b][^\s@\uff20\ufe6b]+")
# Twelve digits or more, whatever stands between them but letters: card numbers have 12 to 19. Seven after a plus: a phone's.
_long_number: Final = re.compile(r"\d(?:[\W_]{0,5}\d){11,}|\+\d(?:[\W_]{0,3}\d){6,}")
_secret: Final = re.compile(r"(?<![A-Za-z0-9_+/=.-])(?=[A-Za-z_+/=.-]*\d)(?=[0-9_+/=.-]*[A-Za-z])[A-Za-z0-9_+/=.-]{24,}")
WHOLE_MAX: Final = 10**11  # a larger number has twelve digits


class Sample:
    """The masked values of one sample: its input, and the answers that were made from it."""

    def __init__(self, names: frozenset[str] = frozenset(), said: Iterable[str] = ()) -> None:
        """Begin with nothing seen.

        names  further fields to mask, as the rule's settings say, in lower case
        said   expressions of the versions: a text that stands there as a whole is the rule's own, whatever the input holds
        """
        self._names = names
        self._said = "\n".join(said)
        self._left = VALUES_MAX
        self._hidden: frozenset[str] | None = frozenset()

    def input(self, data: dict[str, Any]) -> Any:
        """Return an input as it may be shown; the input itself stays as it is."""
        self._hidden = _hidden_of(data, self._names)
        return self._shown(data, 0, answers=False)

    def answer(self, value: Any) -> Any:
        """Return an answer to that input as it may be shown; the answer itself stays as it is."""
        return self._shown(value, 0, answers=True)

    def _shown(self, value: Any, depth: int, *, answers: bool) -> Any:
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            return CUT
        if type(value) is dict:
            shown = {
                "*" if answers and self._holds_hidden(key) else pointer_part(key): (
                    MASKED if is_private(key, self._names) else self._shown(member, depth + 1, answers=answers)
                )
                for key, member in list(value.items())[:MEMBERS_MAX]
            }
            return shown if len(value) <= MEMBERS_MAX else shown | {CUT: len(value) - MEMBERS_MAX}
        if type(value) is list:
            shown_list = [self._shown(member, depth + 1, answers=answers) for member in value[:MEMBERS_MAX]]
            return shown_list if len(value) <= MEMBERS_MAX else [*shown_list, CUT]
        return MASKED if answers and self._holds_hidden(value) else _shown_alone(value)

    def _holds_hidden(self, value: Any) -> bool:
        """Whether a text or number of an answer holds what stands under a private name of the input."""
        if type(value) is str:
            cut = value[:SEEN_MAX]
            if f'"{cut}"' in self._said or f"'{cut}'" in self._said:
                return False
            folded = cut.casefold()
            return self._hidden is None or any(one in folded for one in self._hidden)
        if type(value) not in {int, float} or abs(value) < HIDDEN_WHOLE_MIN:
            return False
        return self._hidden is None or str(value) in self._hidden


def _hidden_of(data: dict[str, Any], names: frozenset[str]) -> frozenset[str] | None:
    """Return what stands under private names of an input, as texts in one case; None when that is too much to look for."""
    found: set[str] = set()
    waiting: list[tuple[Any, bool]] = [(data, False)]
    for _ in range(LOOKED_AT_MAX):
        if not waiting or len(found) > HIDDEN_MAX:
            break
        value, private = waiting.pop()
        if type(value) is dict:
            waiting.extend((member, private or is_private(key, names)) for key, member in value.items())
        elif type(value) is list:
            waiting.extend((member, private) for member in value)
        elif private and (type(value) is str or (type(value) in {int, float} and abs(value) >= HIDDEN_WHOLE_MIN)):
            text = str(value)[:HIDDEN_LENGTH_MAX].casefold()
            if len(text) >= HIDDEN_LENGTH_MIN:
                found.add(text)
    return None if waiting or len(found) > HIDDEN_MAX else frozenset(found)


def _shown_alone(value: Any) -> Any:
    """Return a value that is no list and no object as it may be shown by its own look."""
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
    return len(key) > KEY_MAX or key.lower() in names or _private.search(key) is not None


def mask_text(text: str) -> str:
    """Return a text without addresses, long numbers and what may be a secret."""
    cut = text[:SEEN_MAX]
    for pattern in (_mail, _long_number, _secret):
        cut = pattern.sub(MASKED, cut)
    return cut if len(cut) <= TEXT_MAX and len(text) <= SEEN_MAX else cut[:TEXT_MAX] + CUT
