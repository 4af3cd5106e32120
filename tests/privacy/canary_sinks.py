"""Everything that a running shieldx writes or shows, as text to be searched, and card numbers that name where they were put."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import redis

from app.embedded.binaries import find_postgres
from tests.credits.ledger_house import Ledger
from tests.stores import run_apart

PREFIX: Final = "4929"  # a Visa range of Barclaycard; the eleven digits behind it count the places
DUMP_TIMEOUT_S: Final = 60
_hex = re.compile(r"\\\\?x([0-9a-f]{26,})")


class _Plain(dict[int, str]):
    """Code point to what is searched: decimal digits of any script as ASCII, nothing for a separator."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = str(unicodedata.decimal(char)) if char.isdecimal() else "" if _is_separator(char) else char
        return self[code]


_plain: Final = _Plain()


def luhn_digit(digits: str) -> str:
    """Return the check digit of ISO/IEC 7812-1 for these digits."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        number = int(char) * (2 - place % 2)
        total += number - 9 if number > 9 else number
    return str(-total % 10)


class Canaries:
    """Card numbers, each used once, and the place where it was sent."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def number(self, place: str) -> str:
        """Return a new card number of 16 digits for a place."""
        digits = f"{PREFIX}{71_003 + 7_919 * len(self.places):011d}"
        digits += luhn_digit(digits)
        self.places[digits] = place
        return digits

    def found_in(self, text: str) -> list[str]:
        """Return the places whose number stands in a text: in digits of any script, between any separators, or in hex."""
        dump = [text, *(bytes.fromhex(found[: len(found) // 2 * 2]).decode("latin-1") for found in _hex.findall(text))]
        forms = [form for part in dump for form in (part, unquote(part), part.replace("\\n", "\n"))]
        hit = set()
        for form in forms:
            plain = unicodedata.normalize("NFKC", form).translate(_plain)
            hit |= {digits for digits in re.findall(rf"(?=({PREFIX}[0-9]{{12}}))", plain) if digits in self.places}
        return sorted(self.places[digits] for digits in hit)


def _is_separator(char: str) -> bool:
    return char in "-./_+=|:,*~\u2212\u00b7" or char.isspace() or unicodedata.category(char) in {"Pd", "Cf", "Mn"}


def notations(digits: str) -> dict[str, str]:
    """Return a number in every notation that text can carry."""

    def spelled(separator: str, width: int = 4) -> str:
        return separator.join(digits[at : at + width] for at in range(0, len(digits), width))

    return {
        "plain": digits, "spaces": spelled(" "), "dashes": spelled("-"), "pairs": spelled(" ", 2), "single": spelled(".", 1),
        "fullwidth": "".join(chr(0xFF10 + int(char)) for char in digits),
        "arabic": "".join(chr(0x660 + int(char)) for char in digits),
        "no-break": spelled("\u00a0"), "zero-width": spelled("\u200b"), "lines": spelled("\n"), "tabs": spelled("\t"),
        "dots": spelled("."), "underscores": spelled("_"), "plus": spelled("+"), "bars": spelled("|"), "colons": spelled(":"),
        "stars": spelled("*"), "accents": spelled("\u0301", 1),
        "percent": spelled("%20"), "percent-digits": "".join(f"%{ord(char):02X}" for char in digits),
        "track-2": f";{digits}=2512101000000000123?", "track-1": f"%B{digits}^DOE/JOHN^2512101000000000123?",
        "form": f"card={digits}&x=1", "glued": f"a{digits}b", "with-code": f"{digits}1227123",
        "json": f'{{"card_number": "{digits}", "cvv": "987"}}', "in-words": f"order 12 {spelled(' ')} exp 12/27",
    }  # fmt: skip


def redis_text(ledger: Ledger) -> str:
    """Return every key, value and slow-log entry of the ledger's Redis as text."""
    parts: list[str] = []
    with redis.Redis.from_url(ledger.redis_url) as link:
        for key in link.scan_iter(count=1000):
            kind = link.type(key).decode()
            value = {
                "string": link.get, "hash": link.hgetall, "stream": link.xrange,
                "zset": lambda k: link.zrange(k, 0, -1, withscores=True), "set": link.smembers,
                "list": lambda k: link.lrange(k, 0, -1),
            }[kind](key)  # fmt: skip
            parts.append(f"{key!r} {value!r}")
        parts.append(repr(link.slowlog_get(1000)))
    return "\n".join(parts)


def postgres_text(ledger: Ledger) -> str:
    """Return a dump of the ledger's database, as a backup would be made of it."""
    program = run_apart(find_postgres(None)).directory / "pg_dump"
    run = subprocess.run(
        [program, "--inserts", ledger.database_url], capture_output=True, text=True, timeout=DUMP_TIMEOUT_S, check=True
    )
    assert "audit_entries" in run.stdout
    return run.stdout


def files_text(*directories: Path) -> str:
    """Return what stands in the files below these directories, as text."""
    return "\n".join(
        path.read_bytes().decode("latin-1") for directory in directories for path in directory.rglob("*") if path.is_file()
    )
