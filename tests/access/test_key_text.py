"""The form of a key: random, checked by its own text, never printed."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from app.access.key_text import (
    ALPHABET,
    ID_PATTERN,
    PREFIX,
    Secret,
    checksum,
    is_well_formed,
    key_hash,
    new_key_id,
    new_secret,
)

KEY = new_secret().text


def test_the_checksum_is_that_of_the_known_scheme() -> None:
    assert checksum("A" * 30) == "0uCPlr"


def test_a_new_key_has_190_random_bits_and_a_good_checksum() -> None:
    keys = [new_secret() for _ in range(200)]

    assert len({key.text for key in keys}) == len({key.hash for key in keys}) == 200
    assert all(re.fullmatch(r"shx_live_[0-9A-Za-z]{38}", key.text) for key in keys)
    assert all(is_well_formed(key.text) for key in keys)
    assert {letter for key in keys for letter in key.text[len(PREFIX) : -6]} == set(ALPHABET)


@given(st.integers(0, len(KEY) - 1), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_refused(place: int, letter: str) -> None:
    typo = KEY[:place] + letter + KEY[place + 1 :]

    assert is_well_formed(typo) == (typo == KEY)


@given(st.integers(len(PREFIX), len(KEY) - 2))
def test_two_characters_in_the_wrong_order_are_refused(place: int) -> None:
    typo = KEY[:place] + KEY[place + 1] + KEY[place] + KEY[place + 2 :]

    assert is_well_formed(typo) == (typo == KEY)


def test_what_is_no_key_is_refused() -> None:
    for text in ("", PREFIX, KEY + "\n", " " + KEY, KEY[:-1], KEY + "0", KEY.replace("live", "test"), "\udc80" * 47):
        assert not is_well_formed(text)


def test_any_text_has_a_hash() -> None:
    assert key_hash("abc") == hashlib.sha256(b"abc").digest()
    assert key_hash("\udcff") == hashlib.sha256(b"\xff").digest()


def test_a_secret_shows_its_beginning_only() -> None:
    secret = Secret(KEY)

    assert secret.shown == KEY[:13]
    assert KEY not in f"{secret!r} {secret} {[secret]}"


def test_ids_are_public_words_of_their_own() -> None:
    ids = {new_key_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(re.match(ID_PATTERN, one) for one in ids)
