"""Names of fields that hold payment or personal data, and what is shown of each kind. Pure.

Every mask maps its own result to itself, so that data may be masked again by whoever hands it on.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from functools import lru_cache
from typing import Final, Literal

HIDDEN: Final = "****"
NUMBER_SHOWN: Final = "****-****-****-"  # one width for all numbers, so that the length is not told
NAME_SHOWN: Final = 2  # graphemes of a name that are shown
FAMILY_MAX: Final = 32  # characters of a browser family; longer ones are no product names
ADDRESSES_MAX: Final = 32  # addresses in one X-Forwarded-For; a chain of proxies is far shorter
V4_PREFIX: Final = 24
V6_PREFIX: Final = 48

Kind = Literal["number", "secret", "name", "expiry", "address", "agent", "email"]

_NUMBERS: Final = (
    "cardnumber", "cardnum", "cardno", "card", "pan", "primaryaccountnumber", "accountnumber", "ccnumber", "ccnum", "ccno",
    "creditcard", "creditcardnumber", "debitcard", "debitcardnumber", "paymentcard", "paymentcardnumber",
)  # fmt: skip
_SECRETS: Final = (
    "cid", "securitycode", "cardsecuritycode", "cardcode", "pin", "pinblock", "pincode", "track", "track1", "track2",
    "track3", "trackdata", "track1data", "track2data", "track3data", "trackone", "tracktwo", "track2equivalent",
    "track2equivalentdata", "magstripe", "magneticstripe", "magstripedata",
)  # fmt: skip
_SECRET_STEMS: Final = ("cardverification", "emv")
# The card brands' names of the verification code (CVV, CVC, CVN, CVD, CSC, CAV, with 2 or 3), the common slips of the pen,
# those of the chip and of apps (iCVV, dCVV, CVX2), alone, as `card_cvv`, or as `cvcNumber`.
_verification = re.compile(
    r"(?:card|cc|creditcard)?(?:[id]?cvv|cvc|cvn|cvd|csc|cav|ccv|cvx|cv(?=2)|cvvc)[23]?(?:code|number|num|no|value|val)?"
)
_NAMES: Final = ("cardholdername", "cardholder", "nameoncard", "cardname", "cardownername", "accountholdername")
_EXPIRIES: Final = (
    "expiry", "expirydate", "expdate", "expirationdate", "cardexpiry", "cardexpiration", "expmonth", "expyear",
    "expirymonth", "expiryyear", "expirationmonth", "expirationyear", "validthru",
)  # fmt: skip
_ADDRESSES: Final = (
    "ip", "ipaddress", "ipaddr", "clientip", "remoteip", "remoteaddr", "remoteaddress", "sourceip", "xforwardedfor",
    "xrealip", "forwardedfor",
)  # fmt: skip
_KINDS: Final[dict[str, Kind]] = {
    **dict.fromkeys(_NUMBERS, "number"),
    **dict.fromkeys(_SECRETS, "secret"),
    **dict.fromkeys(_NAMES, "name"),
    **dict.fromkeys(_EXPIRIES, "expiry"),
    **dict.fromkeys(_ADDRESSES, "address"),
    **dict.fromkeys(("useragent", "httpuseragent"), "agent"),
    **dict.fromkeys(("email", "emailaddress", "useremail", "billingemail"), "email"),
}
_NAME_CHARACTERS_MAX: Final = 64  # a longer field name is none of these

# Families from special to general: Edge and Opera also say Chrome, and Chrome also says Safari.
_AGENTS: Final = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("Edge", r"\b(?:Edg|EdgA|EdgiOS|Edge)/([0-9]{1,4})\b"),
        ("Opera", r"\b(?:OPR|Opera)/([0-9]{1,4})\b"),
        ("Firefox", r"\b(?:Firefox|FxiOS)/([0-9]{1,4})\b"),
        ("Chrome", r"\b(?:Chrome|CriOS|HeadlessChrome)/([0-9]{1,4})\b"),
        ("Safari", r"\bVersion/([0-9]{1,4})\b.{0,80}\bSafari/"),
    )
)
_agent_shown = re.compile(rf"[A-Za-z][A-Za-z_-]{{0,{FAMILY_MAX - 1}}}(?: [0-9]{{1,4}})?\Z")
_product = re.compile(rf"([A-Za-z][A-Za-z_-]{{0,{FAMILY_MAX - 1}}})(?:/([0-9]{{1,4}})(?![0-9]))?")
_number_shown = re.compile(r"\*{4}-\*{4}-\*{4}-[0-9]{4}\Z")
_email_shown = re.compile(r".{0,8}\*\*\*@[^@\s]+\Z", re.DOTALL)


@lru_cache(maxsize=4096)
def kind_of(name: str) -> Kind | None:
    """Return what a field of this name holds, None for ordinary data. Case, spaces and punctuation do not count."""
    if len(name) > _NAME_CHARACTERS_MAX:
        return None
    plain = "".join(filter(str.isalnum, name.casefold()))
    secret = plain.startswith(_SECRET_STEMS) or _verification.fullmatch(plain)
    return _KINDS.get(plain) or ("secret" if secret else None)


def graphemes(text: str, count: int) -> list[str]:
    """Return the first `count` user-perceived characters: marks, joined emoji and flags stay whole.

    A cluster is at most 16 code points long, which no script needs. Source: the common cases of UAX #29.
    """
    clusters: list[str] = []
    for char in text:
        if clusters and len(clusters[-1]) < 16 and _continues(clusters[-1], char):
            clusters[-1] += char
        elif len(clusters) == count:
            break
        else:
            clusters.append(char)
    return clusters


def _continues(cluster: str, char: str) -> bool:
    if unicodedata.category(char) in {"Mn", "Mc", "Me"} or char in "\u200d\u200c" or "\U0001f3fb" <= char <= "\U0001f3ff":
        return True
    if cluster[-1] == "\u200d":
        return True
    return len(cluster) == 1 and all("\U0001f1e6" <= flag <= "\U0001f1ff" for flag in cluster + char)


def mask_name(value: object) -> str:
    """Return a person's name as its first two characters and `****`; of three only one, of fewer none."""
    if not isinstance(value, str):
        return HIDDEN
    text = value.strip()
    shown = graphemes(text, NAME_SHOWN + 2)
    if text.endswith(HIDDEN) and len(graphemes(text.removesuffix(HIDDEN), NAME_SHOWN + 1)) <= NAME_SHOWN:
        return text
    return "".join(shown[: max(0, min(NAME_SHOWN, len(shown) - 2))]).replace("*", "") + HIDDEN


def mask_number(value: object) -> str:
    """Return a card number as `****-****-****-1234`, whatever its check digit; what is no number as `****`."""
    if isinstance(value, bool | float) or not isinstance(value, str | int):
        return HIDDEN
    text = unicodedata.normalize("NFKC", str(value)[:256])
    if _number_shown.match(text):
        return text
    digits = "".join(str(unicodedata.decimal(char)) for char in text if char.isdecimal())
    return NUMBER_SHOWN + digits[-4:] if 13 <= len(digits) <= 19 and not any(map(str.isalpha, text)) else HIDDEN


def mask_expiry(_value: object) -> str:
    """Return `**/**`."""
    return "**/**"


def mask_address(value: object) -> str:
    """Return the network of an IP address: /24 of IPv4, /48 of IPv6; of several, each. Still personal data."""
    if not isinstance(value, str):
        return HIDDEN
    parts = [part.strip() for part in value.split(",")]
    return ", ".join(map(_network, parts)) if len(parts) <= ADDRESSES_MAX else HIDDEN


def _network(text: str) -> str:
    plain = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    if plain.count(":") == 1:
        plain = plain.partition(":")[0]
    host, slash, prefix = plain.partition("%")[0].partition("/")
    if slash and prefix not in {str(V4_PREFIX), str(V6_PREFIX)}:
        return HIDDEN
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return HIDDEN
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    width = V4_PREFIX if address.version == 4 else V6_PREFIX
    return str(ipaddress.ip_network((address, width), strict=False))


def mask_agent(value: object) -> str:
    """Return family and major version of a user agent, `other` when it has no product name."""
    if not isinstance(value, str):
        return HIDDEN
    if _agent_shown.match(value):
        return value
    text = value[:1024]
    for family, pattern in _AGENTS:
        found = pattern.search(text)
        if found is not None:
            return f"{family} {found[1]}"
    found = _product.match(text)
    if found is None:
        return "other"
    return f"{found[1]} {found[2]}" if found[2] else found[1]


def mask_email(value: object) -> str:
    """Return an e-mail address as `j***@example.com`, `****` when it is none."""
    if not isinstance(value, str):
        return HIDDEN
    if _email_shown.match(value):
        return value
    local, at, domain = value.strip().rpartition("@")
    if not at or not local or not re.fullmatch(r"[^\s@*]{1,253}", domain):
        return HIDDEN
    return f"{graphemes(local, 1)[0]}***@{domain}"
