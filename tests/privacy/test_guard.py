"""Names and keys with card numbers are refused, free text is masked, payments lose their code."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.credits.payment import PaymentBody, fingerprint_payment, keep_payment, payment_of
from app.credits.request import Fingerprints
from app.privacy.cards import mask
from app.privacy.guard import REFUSED_DETAIL, clean_metadata, clean_text, holds_card, keep_cards_out, refuse_cards
from app.privacy.store import PrivateStore

VISA = "4111111111111111"


@pytest.mark.parametrize(
    "text",
    [VISA, f"t-{VISA}", "4111-1111-1111-1111", "4111:1111.1111:1111", "a4111%201111%201111%201111", "x=%34111111111111111"],
)
def test_a_name_with_a_card_number_is_refused(text: str) -> None:
    assert holds_card(text)
    assert refuse_cards([("/tenant_id", text), ("/other", "tenant-1"), ("/none", None)]) == ("/tenant_id",)


@pytest.mark.parametrize(
    "text",
    [
        "tenant-1",
        "0193a1b2-4111-7111-8111-111111111111",
        "1748503543012",
        "order-20261121220000123",
        "4111111111111112",
        "100%",
    ],
)
def test_an_ordinary_name_or_key_is_let_through(text: str) -> None:
    assert refuse_cards([("Idempotency-Key:", text)]) == ()


def test_free_text_is_masked_and_ordinary_text_is_the_same_object() -> None:
    text, metadata = "chat completion", {"model": "small", "tokens": 12}

    assert clean_text(text) is text
    assert clean_metadata(metadata) is metadata
    assert clean_text(None) is clean_metadata(None) is None
    assert clean_text(f"paid with {VISA}") == "paid with ****-****-****-1111"
    assert clean_metadata({"a": {"pan": VISA, "cvv": "123"}, "n": int(VISA)}) == {
        "a": {"pan": "****-****-****-1111"}, "n": "****-****-****-1111",
    }  # fmt: skip


class Body(msgspec.Struct, frozen=True):
    tenant_id: str
    idempotency_key: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    __post_init__ = keep_cards_out


def test_a_body_is_guarded_as_it_is_decoded() -> None:
    body = msgspec.json.decode(
        b'{"tenant_id":"t","description":"4111 1111 1111 1111","metadata":{"cvv":"1","n":4111111111111111}}', type=Body
    )

    assert body == Body("t", None, "****-****-****-1111", {"n": "****-****-****-1111"})
    for text in ('{"tenant_id":"4111111111111111"}', '{"tenant_id":"t","idempotency_key":"4111-1111-1111-1111"}'):
        with pytest.raises(msgspec.ValidationError, match=f"^{REFUSED_DETAIL}"):
            msgspec.json.decode(text, type=Body)


METADATA = st.dictionaries(
    st.text(max_size=6) | st.sampled_from(["pan", "cvv", "model", VISA, "cvv=1", "n:4111"]),
    st.none() | st.booleans() | st.integers() | st.sampled_from([VISA, int(VISA), 4222222222222, "cvv=123", "small", [VISA], {"pin": 1}]) | st.text(max_size=20),
    max_size=5,
)  # fmt: skip


@given(METADATA)
def test_cleaning_metadata_is_masking_it(metadata: dict[str, Any]) -> None:
    assert clean_metadata(metadata) == mask(metadata)


def test_a_payment_is_checked_and_its_code_goes_no_further() -> None:
    body = msgspec.json.decode(
        b'{"card_number":"4111 1111-11111111","cvv":"987","cardholder_name":"John Doe","expiry":"12/2027"}', type=PaymentBody
    )

    payment = payment_of(body)

    assert payment.card_number == VISA
    assert b"987" not in payment.canonical()
    for shown in (repr(body), repr(payment), f"{body}"):
        assert not [secret for secret in (VISA, "987", "John", "2027", "4111") if secret in shown]


@pytest.mark.parametrize(
    "text",
    ['{"card_number":"411111111111"}', '{"card_number":"41111111111111111111"}', '{"card_number":"4111 1111 1111 111x"}', '{"card_number":4111111111111111}',
     '{"card_number":"4111111111111111","cvv":"12"}', '{"card_number":"4111111111111111","cvv":123}', '{"card_number":"4111111111111111","expiry":"13/27"}',
     '{"card_number":"4111111111111111","pin":"1234"}', "{}"],
)  # fmt: skip
def test_a_payment_of_another_form_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refusal:
        msgspec.json.decode(text, type=PaymentBody)

    assert "4111" not in str(refusal.value)


async def test_an_operation_carries_only_hash_and_commitment_of_its_payment(store: PrivateStore) -> None:
    fingerprints = Fingerprints(bytes(32))
    payment = payment_of(PaymentBody(VISA, "987", "John Doe", "12/27"))
    fields = {"op": "topup", "tenant": "t1", "amount": 5}

    fingerprint_payment(fields, payment, fingerprints)
    fingerprints.stamp(fields, "key-1", "req-1")
    kept = await keep_payment(store, fields, "t1", payment)

    assert fields["payment"] == kept.commitment.hex()
    assert fields["private_key"] == kept.dek_id.hex()
    assert kept.record_id == fields["key"]
    assert VISA not in repr(fields)
    assert (await store.read(kept.record_id, actor="a", purpose="p")).payment == payment
