"""What masking finds, what it leaves alone, and what may never come out of it."""

from __future__ import annotations

import copy
import html
import json
import re
import unicodedata
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.privacy.cards import DEPTH_MAX, NODES_MAX, mask, mask_bytes, mask_text
from app.privacy.digits import is_card
from tests.cost import grows_below

VISA = "4111111111111111"
SHOWN = "****-****-****-1111"
ZERO_WIDTH = "\u200b"
MARKS = {"Pd", "Cf", "Cc", "Mn", "Me"}
CARDS = [
    "4222222222222", "30569309025904", "36227206271667", "378282246310005", "6205500000000000004", "4000000000000000006",
    "2223003122003222", "2221000000000009", "6011111111111117", "3530111333300000", "6200000000000005", "6759649826438453",
    "5555555555554444", VISA,
]  # fmt: skip


def spelled(separator: str, width: int = 4, digits: str = VISA) -> str:
    return separator.join(digits[at : at + width] for at in range(0, len(digits), width))


def luhn(digits: str) -> bool:
    total = 0
    for place, char in enumerate(reversed(digits)):
        number = int(char) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


DATE = r"(19|20|21)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-6][0-9]([.,][0-9]{1,9})?)?([+-](0[0-9]|1[0-4]):?[0-5][0-9])?"
MASTERCARD = re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720")
AMERICAN_EXPRESS = re.compile(r"3[47]")
OTHERS = re.compile(r"4|30[0-5]|3095|36|38|39|35(2[89]|[3-8])|6011|64[4-9]|65|62|6759|81|220[0-4]")


def fits(digits: str) -> bool:
    if MASTERCARD.match(digits):
        return len(digits) == 16
    if AMERICAN_EXPRESS.match(digits):
        return len(digits) == 15
    return OTHERS.match(digits) is not None


def survivors(text: str) -> list[str]:
    """Every window of 13-19 digits between separators that a card's rules accept: by trial, not by the code under test."""
    text = re.sub(r"(?<![^\W_])[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![^\W_])", "x", text)
    text = re.sub(rf"(?<!\d){DATE}[T ]{TIME}(?!\d)", "x", text)
    text = "".join(
        str(unicodedata.decimal(plain)) if len(plain := unicodedata.normalize("NFKC", char)) == 1 and plain.isdecimal()
        else " " if char in "-./_+=|:,*#~\u2212\u00b7\u2022" or char.isspace() or unicodedata.category(char) in MARKS
        else "x"
        for char in text
    )  # fmt: skip
    found = []
    for run in re.findall(r"[0-9](?:[0-9 ]*[0-9])?", text):
        for part in re.split(r" {9,}", run):
            groups = part.split()
            for first in range(len(groups)):
                for last in range(first + 1, len(groups) + 1):
                    digits = "".join(groups[first:last])
                    if len(digits) > 19:
                        break
                    if len(digits) >= 13 and fits(digits) and luhn(digits):
                        found.append(digits)
    return found


@pytest.mark.parametrize("number", CARDS)
def test_a_card_number_keeps_its_last_four_digits(number: str) -> None:
    assert mask_text(number) == f"****-****-****-{number[-4:]}"


@pytest.mark.parametrize(
    "text",
    [
        VISA, spelled(" "), spelled("-"), spelled(" ", 2), spelled("", 1).translate({48 + d: 0xFF10 + d for d in range(10)}),
        VISA.translate({48 + d: 0x660 + d for d in range(10)}), spelled("\u00a0"), spelled(ZERO_WIDTH), spelled("\n"),
        spelled("\u2009"), spelled("\t"), spelled("."), spelled("/"), spelled("_"), spelled("+"), spelled("|"), spelled(":"),
        spelled(","), spelled("\u2010"), spelled("\u2015"), spelled("\u2212"), spelled("\u2060"), spelled("\ufeff"),
        spelled("\u00ad"), spelled(" - "), spelled(" ", 1), spelled("%20"), spelled("%C2%A0"), spelled("\\n"), spelled("&nbsp;"),
        "".join(f"%{ord(char):02X}" for char in VISA), "".join(f"\\u{ord(char):04x}" for char in VISA),
        "".join(f"&#{ord(char)};" for char in VISA), spelled("%2520"), "4111 1111\u200b11111111",
        spelled("*"), spelled("#"), spelled("~"), spelled("\u00b7"), spelled("\u2022"), spelled("\u0301"), spelled("\ufe0f\u20e3", 1),
    ],
)  # fmt: skip
def test_every_notation_of_a_number_is_masked(text: str) -> None:
    assert mask_text(text) == SHOWN
    assert mask_text(f"paid with {text}, thanks") == f"paid with {SHOWN}, thanks"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("3782 822463 10005", "****-****-****-0005"),
        ("order 12 4111 1111 1111 1111 exp 12/27", f"order 12 {SHOWN} exp 12/27"),
        ("4111111111111111 5555555555554444", f"{SHOWN} ****-****-****-4444"),
        ("41111111111111115555555555554444", SHOWN),
        ("a4111111111111111b", f"a{SHOWN}b"),
        ("card=4111111111111111&x=1", f"card={SHOWN}&x=1"),
        ("4111111111111111122712", SHOWN),
        ("41111111111111111227123", SHOWN),
        ("4111111111111111123", SHOWN),
        ("4111%201111%201111%201111", SHOWN),
        (";4111111111111111=25121010000012345678?", SHOWN),
        ("%B4111111111111111^DOE/JOHN^2512101000000000123?", SHOWN),
        ("B4111111111111111^DOE/JOHN^2512101000000000123", SHOWN),
        ("%004222222222222\\u0030", "%00****-****-****-2222\\u0030"),
        ("%B24204270111333", "%B2****-****-****-1333"),
        ("4111%A01111%A01111%A01111", SHOWN),
        ("cvv=123", "cvv=***"),
        ("CVC: 123.", "CVC: ***"),
        ("Payment(card_number='4111111111111112', cvv='123', cardholder_name='John Doe', expiry='12/27')",
         "Payment(card_number='****', cvv='***', cardholder_name='Jo****', expiry='**/**')"),
        ('{"card_number":"4111111111111112","cvv":"123","cardholder_name":"John D', '{"card_number":"****","cvv":"***","cardholder_name":"Jo****'),
    ],
)  # fmt: skip
def test_only_what_belongs_to_the_card_is_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "1748503543012", "0193a1b2-4111-7111-8111-111111111111", "12345678-1234-4321-8765-123456789012",
        "41111111-1111-4111-8111-111111111111", "2026-11-21T22:30:00.123456+00:00", "2026-11-25 10:00:00.123456+00",
        "2026-11-21T22:00:00.123Z", "20261121220000123", "+49 30 1234567", "+1 (415) 555-2671", "DE89 3704 0044 0532 0130 00",
        "DE89370400440532013000", "GB29NWBK60161331926819", "0000000000000000", "4111111111111112", "order 4711", "",
        "shard 0 at http://127.0.0.1:5004/docs took the key of tenant:a@b in 5 ms", "code: 404", "on track 7",
        "4111 1111          1111 1111",
    ],
)  # fmt: skip
def test_what_is_no_card_stays_as_it_is(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("card_number", "4111111111111112", "****-****-****-1112"),
        ("cardNumber", 4111111111111111, SHOWN),
        ("PAN", "3782 822463 10005", "****-****-****-0005"),
        ("Primary-Account-Number", "4222222222222", "****-****-****-2222"),
        ("card_number", "1234", "****"),
        ("card_number", "abc4111111111111111", "****"),
        ("card_number", 4111111111111111.0, "****"),
        ("card_number", True, "****"),
        ("card_number", None, "****"),
        ("card_number", "²²²²²²²²²²²²²²²²", "****-****-****-2222"),
        ("card number", b"4111111111111111", SHOWN),
        ("cardholder_name", "John Doe", "Jo****"),
        ("cardholder_name", "Bob", "B****"),
        ("cardholder_name", "Al", "****"),
        ("cardholder_name", "", "****"),
        ("name_on_card", "e\u0301le\u0301onore", "e\u0301l****"),
        (
            "cardholder",
            "\U0001f469\u200d\U0001f680\U0001f1e9\U0001f1eaxyz",
            "\U0001f469\u200d\U0001f680\U0001f1e9\U0001f1ea****",
        ),
        ("expiry", "12/27", "**/**"),
        ("exp_date", 1227, "**/**"),
        ("ip", "203.0.113.7", "203.0.113.0/24"),
        ("remote_addr", "2001:db8:1:2::9", "2001:db8:1::/48"),
        ("X-Forwarded-For", "203.0.113.7, ::ffff:198.51.100.9", "203.0.113.0/24, 198.51.100.0/24"),
        ("ip", "203.0.113.7:5004", "203.0.113.0/24"),
        ("ip", "[2001:db8::1]:443", "2001:db8::/48"),
        ("ip", "unknown", "****"),
        (
            "user_agent",
            "Mozilla/5.0 (X11; Linux) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.1 Safari/537.36",
            "Chrome 120",
        ),
        ("user_agent", "Mozilla/5.0 (X11) Gecko/20100101 Firefox/115.0", "Firefox 115"),
        ("user_agent", "Mozilla/5.0 (Macintosh) AppleWebKit/605 Version/17.1 Safari/605.1.15", "Safari 17"),
        ("user_agent", "Mozilla/5.0 Chrome/120.0 Safari/537.36 Edg/121.0", "Edge 121"),
        ("user_agent", "curl/8.5.0", "curl 8"),
        ("user_agent", "", "other"),
        ("email", "john@example.com", "j***@example.com"),
        ("email", "nobody", "****"),
    ],
)
def test_a_field_is_masked_by_its_name(field: str, value: object, shown: str) -> None:
    masked = mask({field: value})

    assert masked == {field: shown}
    assert mask(masked) == masked


@pytest.mark.parametrize(
    "field", ["cvv", "CVV2", "cvc", "c.v.c.2", "cid", "CSC", "cav2", "security_code", "card_verification_value", "PIN",
              "pin_block", "track1", "Track-2-Data", "magstripe", "emv_tag_9f26", "cardVerificationCode",
              "ccv", "cvd", "cv2", "CVX2", "iCVV", "dcvv", "cvvc", "cvc3", "card_code", "card-cvv2", "cc_cvv", "cvcNumber", "cvv_value"],
)  # fmt: skip
def test_a_secret_of_the_card_is_removed_with_its_key(field: str) -> None:
    assert mask({field: "123", "amount": 5}) == {"amount": 5}
    assert mask({"payment": [{field: 123}]}) == {"payment": [{}]}


@pytest.mark.parametrize(
    "field",
    [
        "tracking_id",
        "company",
        "spin",
        "discard",
        "account_id",
        "cvs",
        "experiment",
        "cardinal",
        "cv",
        "civil",
        "discount_code",
        "cave",
    ],
)
def test_a_name_that_only_looks_alike_is_an_ordinary_field(field: str) -> None:
    assert mask({field: "123"}) == {field: "123"}


def nested(depth: int) -> Any:
    value: Any = {
        VISA: [VISA, 4111111111111111, b"4111111111111111", {"cvv": 1}],
        "text": json.dumps({"pan": VISA, "cvv": "1"}),
    }
    for level in range(depth):
        value = {"down": value} if level % 2 else [value]
    return value


def test_a_structure_is_masked_at_depth_fifty_and_its_input_stays() -> None:
    value = nested(50)
    before = copy.deepcopy(value)

    masked = repr(mask(value))

    assert value == before
    assert VISA not in masked
    assert "cvv" not in masked
    assert masked.count(SHOWN) == 5


def test_deeper_and_cyclic_and_huge_values_are_hidden() -> None:
    cycle: list[Any] = [VISA]
    cycle.append(cycle)

    assert mask(cycle) == [SHOWN, "****"]
    assert VISA not in repr(mask(nested(DEPTH_MAX + 5)))
    assert "****" in repr(mask(nested(DEPTH_MAX + 5)))
    assert mask([0] * (NODES_MAX + 1))[-1] == "****"


def test_keys_that_look_alike_when_masked_are_both_kept() -> None:
    assert mask({VISA: 1, spelled(" "): 2}) == {SHOWN: 1, f"{SHOWN} (2)": 2}


def test_json_in_a_string_is_masked_as_a_structure() -> None:
    text = json.dumps({"card_number": VISA, "cvv": "123", "n": int(VISA), "inner": json.dumps([{"pin": 1, "pan": VISA}])})

    masked = json.loads(mask_text(text))

    assert masked == {"card_number": SHOWN, "n": SHOWN, "inner": json.dumps([{"pan": SHOWN}])}


def test_nothing_hides_behind_a_key_that_stands_twice() -> None:
    for text in ('{"a":"4111111111111111","a":1}', '{"a":{"cvv":"987"},"a":1}', '{"cvv":"987","cvv":"987"}'):
        masked = mask_text(text)

        assert VISA not in masked
        assert "987" not in masked


def test_bytes_and_other_types_are_masked() -> None:
    assert mask_bytes(b"\xff 4111 1111 1111 1111 \xfe") == b"\xff ****-****-****-1111 \xfe"
    assert mask((bytearray(VISA.encode()), {VISA}, ValueError(VISA))) == (SHOWN.encode(), {SHOWN}, f"ValueError('{SHOWN}')")
    assert mask([float(VISA), 1.5, True, None, 1748503543012]) == [SHOWN, 1.5, True, None, 1748503543012]


FRAGMENTS = st.sampled_from(
    [*CARDS, *(number[:8] for number in CARDS), spelled(" "), spelled("-", 2), "1111", "0004", SHOWN, "****", "-", " ", "%20", "%", "\\u0034",
     "%34", "\\n", "&#52;", "\u200b", "４", "٤", "=", "^", ";", "?", "x", "cvv", ":", '"', "'", "{", "}", "card_number", ",",
     "cardholder_name=", "25121010000012345678", "%B", "41111111-1111-4111-8111-111111111111", "2026-11-25 10:00:00.123456"],
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=12).map("".join), st.text(alphabet="0123456789 -4", max_size=60))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary() | st.sampled_from([int(n) for n in CARDS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(TEXTS)
def test_masking_text_is_idempotent_and_leaves_no_number(text: str) -> None:
    masked = mask_text(text)

    assert mask_text(masked) == masked
    for form in (masked, unquote(masked), html.unescape(masked)):
        assert survivors(form) == []


@settings(max_examples=100, deadline=None, derandomize=True)
@given(VALUES)
def test_masking_a_value_is_idempotent_and_never_changes_its_input(value: Any) -> None:
    before = repr(value)

    masked = mask(value)

    assert repr(value) == before
    assert repr(mask(masked)) == repr(masked)


@given(st.text(), st.sampled_from(["cardholder_name", "card_number", "ip", "user_agent", "email", "expiry"]))
def test_masking_a_field_twice_changes_nothing(value: str, field: str) -> None:
    masked = mask({field: value})

    assert mask(masked) == masked


@given(st.text(alphabet="0123456789", min_size=12, max_size=20))
def test_the_check_of_a_number_is_that_of_the_standard(digits: str) -> None:
    if is_card(digits):
        assert luhn(digits)
        assert 13 <= len(digits) <= 19


@pytest.mark.parametrize(
    "text",
    ["4 " * 50_000, "1" * 100_000, "4111 1111 1111 1111 " * 4_000, "%34" * 30_000, 'cvv="' * 20_000, "card_" * 20_000 + "=",
     "a" * 100_000 + "card=", "{" * 100_000, "\\" * 100_000, "1" + " " * 100_000, "1^" * 40_000, "4111111111111111=" * 5_000,
     "card holder " * 8_000 + ":", "&#52;" * 20_000, "%25" * 30_000, "[" * 50_000 + "cvv:1"],
)  # fmt: skip
def test_time_is_linear_in_the_length(text: str) -> None:
    text = text[: len(text) // 2]

    # Quadratic work would cost sixteen times as much.
    assert grows_below(9, lambda: mask_text(text), lambda: mask_text(text * 4))
