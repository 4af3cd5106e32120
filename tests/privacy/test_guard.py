"""Names and keys with card numbers are refused, free text is masked, payments lose their code."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.credits.operation import Applied, IdMask, Refused, Reused, event_of
from app.credits.payment import PaymentBody, keep_payment, payment_of, settle_payment
from app.credits.request import Fingerprints, topup_fields
from app.credits.wire import Consume, TopUp
from app.privacy.cards import mask
from app.privacy.guard import CardFound, Guard, clean_metadata, holds_card, is_card_alone
from app.privacy.payment import Payment
from app.privacy.store import NoRecord, OtherPayment, PrivateStore
from app.shadow.wire import Outcome
from app.web.body import Body
from app.web.fields import Metadata
from app.web.problems import Problem
from tests.privacy.conftest import NOW_MS

VISA = "4111111111111111"


@pytest.mark.parametrize(
    "text",
    [VISA, f"t-{VISA}", "4111-1111-1111-1111", "4111:1111.1111:1111", "a4111%201111%201111%201111", "x=%34111111111111111"],
)
def test_a_name_with_a_card_number_is_refused(text: str) -> None:
    assert holds_card(text)


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
    assert not holds_card(text)


def test_metadata_is_masked_and_ordinary_metadata_is_the_same_object() -> None:
    metadata = {"model": "small", "tokens": 12}

    assert clean_metadata(metadata) is metadata
    assert clean_metadata({"a": {"pan": VISA, "cvv": "123"}, "n": int(VISA)}) == {
        "a": {"pan": "****-****-****-1111"}, "n": "****-****-****-1111",
    }  # fmt: skip


class Part(msgspec.Struct, frozen=True):
    tenant_id: str


class Whole(msgspec.Struct, frozen=True):
    tenant_id: str = "t"
    parts: list[Part] = []
    names: list[str] | None = None
    one: Part | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    payment: PaymentBody | None = None


@pytest.mark.parametrize(
    ("text", "pointer"),
    [({"tenant_id": VISA}, "/tenant_id"), ({"parts": [{"tenant_id": "t"}, {"tenant_id": VISA}]}, "/parts/1/tenant_id"),
     ({"names": ["a", "b", "4111-1111-1111-1111"]}, "/names/2"), ({"one": {"tenant_id": VISA}}, "/one/tenant_id")],
)  # fmt: skip
def test_a_card_number_in_any_name_of_a_body_is_found_at_its_place(text: dict[str, Any], pointer: str) -> None:
    with pytest.raises(CardFound) as found:
        Guard(Whole).clean(msgspec.convert(text, Whole))

    assert found.value.pointer == pointer
    assert VISA not in str(found.value)


def test_an_object_that_is_masked_keeps_its_type_and_what_that_knows() -> None:
    body = Body(Consume).decode(b'{"tenant_id":"t","amount":1,"metadata":{"n":"4111 1111 1111 1111"}}')

    assert body.metadata == {"n": "****-****-****-1111"}
    assert isinstance(body.metadata, Metadata)
    assert body.metadata.size_bytes > 0


@pytest.mark.parametrize("name", ["event_id", "unit_id"])
def test_an_id_that_is_kept_as_a_hash_may_have_the_digits_of_a_card_among_others(name: str) -> None:
    ids = {"event_id": "e", "unit_id": "u"}

    Guard(Outcome).clean(Outcome(success=True, **ids | {name: "run-4111111111-111111-1"}))

    with pytest.raises(CardFound):
        Guard(Outcome).clean(Outcome(success=True, **ids | {name: VISA}))


def test_free_text_is_masked_in_place_and_a_payment_is_left_alone() -> None:
    body = Whole(description=f"paid with {VISA}", metadata={"cvv": "1", "n": int(VISA)}, payment=PaymentBody(VISA))

    Guard(Whole).clean(body)

    assert (body.description, body.metadata) == ("paid with ****-****-****-1111", {"n": "****-****-****-1111"})
    assert body.payment == PaymentBody(VISA)


def test_every_body_is_guarded_as_it_is_decoded() -> None:
    body = Body(Consume).decode(b'{"tenant_id":"t","amount":1,"description":"4111 1111 1111 1111"}')
    with pytest.raises(Problem) as refusal:
        Body(Consume).decode(b'{"tenant_id":"4111111111111111","amount":1}')

    assert body.description == "****-****-****-1111"
    assert (refusal.value.status, refusal.value.errors[0].pointer) == (422, "/tenant_id")


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


def topup(amount: int = 5, card: str = VISA) -> tuple[dict[str, Any], Payment]:
    """The stamped fields of a top-up, and its payment."""
    body = PaymentBody(card, "987", "John Doe", "12/27")
    fields = topup_fields(TopUp("t1", amount, payment=body), None)
    return Fingerprints(bytes(32)).stamp(fields, "key-1", "req-1"), payment_of(body)


def applied(fields: dict[str, Any]) -> Applied:
    """What the ledger says of a top-up that it has applied."""
    result = ["ok", 7, NOW_MS, 5, 0, 2, "t1", fields["amount"], None]
    return Applied((event_of(0, 1, IdMask(0, 0), fields, result),))


async def test_an_entry_names_commitment_and_key_of_its_payment_and_the_fingerprint_nothing(store: PrivateStore) -> None:
    fields, payment = topup()

    kept = await keep_payment(store, fields, payment)

    assert json.loads(fields["details"]) == {"payment": kept.commitment.hex(), "private_key": kept.dek_id.hex()}
    assert kept.record_id == fields["key"]
    assert fields["fp"] == topup(card="4222222222222")[0]["fp"]
    assert fields["fp"] != Fingerprints(bytes(32)).stamp(topup_fields(TopUp("t1", 5), None), "key-1", "")["fp"]
    assert VISA not in repr(fields)
    assert (await store.read(kept.record_id, actor="a", purpose="p")).payment == payment


async def test_another_card_under_the_same_key_is_another_request(store: PrivateStore) -> None:
    fields, payment = topup()
    kept = await keep_payment(store, fields, payment)

    again = await keep_payment(store, *topup())
    with pytest.raises(OtherPayment):
        await keep_payment(store, *topup(card="4222222222222"))
    with pytest.raises(OtherPayment):
        await store.keep(fields["key"], "t2", "t2", payment)

    assert (kept.made, again.made, again.commitment) == (True, False, kept.commitment)


async def test_what_an_entry_names_stays(store: PrivateStore) -> None:
    fields, payment = topup()
    kept = await keep_payment(store, fields, payment)

    await settle_payment(store, kept, applied(fields))
    await settle_payment(store, await keep_payment(store, *topup()), Reused())

    assert await store.shown(kept.record_id) == payment.shown()


@pytest.mark.parametrize(
    "outcome", [Refused("no_account", (), "req-1"), Refused("no_account", (), "r", replayed=True), Reused()]
)
async def test_what_no_entry_names_is_destroyed_with_its_key(
    store: PrivateStore, owner: asyncpg.Connection[Any], outcome: Refused | Reused
) -> None:
    kept = await keep_payment(store, *topup())

    await settle_payment(store, kept, outcome)

    with pytest.raises(NoRecord):
        await store.shown(kept.record_id)
    assert await owner.fetchval("SELECT count(*) FROM private_keys") == 0


async def test_two_requests_under_one_key_do_not_share_a_record(store: PrivateStore) -> None:
    first, payment = topup(5)
    kept = await keep_payment(store, first, payment)

    with pytest.raises(OtherPayment):
        await keep_payment(store, *topup(6))

    await settle_payment(store, await keep_payment(store, *topup(5)), applied(first))
    assert await store.shown(kept.record_id) == payment.shown()


async def test_a_refusal_a_day_later_leaves_the_record_of_the_first_request(
    store: PrivateStore, owner: asyncpg.Connection[Any]
) -> None:
    first, payment = topup(5)
    kept = await keep_payment(store, first, payment)
    await settle_payment(store, kept, applied(first))
    await owner.execute("UPDATE private_records SET created_at = created_at - interval '1 day'")

    for amount in (5, 6):
        again = await keep_payment(store, *topup(amount))
        await settle_payment(store, again, Refused("balance_limit", (), "r"))

        assert again.commitment == kept.commitment
        assert await store.shown(kept.record_id) == payment.shown()


async def test_a_retry_after_an_erasure_leaves_nothing_behind(store: PrivateStore) -> None:
    first, payment = topup()
    kept = await keep_payment(store, first, payment)
    await store.erase("t1", request_id="q", basis="gdpr-17")

    again = await keep_payment(store, *topup())
    with pytest.raises(NoRecord):
        await store.shown(again.record_id, kept.commitment)
    await settle_payment(store, again, applied(first)._replace(replayed=True))

    with pytest.raises(NoRecord):
        await store.shown(again.record_id)


@pytest.mark.parametrize("text", ["4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "378282246310005"])
def test_a_key_that_is_a_card_number_is_one(text: str) -> None:
    assert is_card_alone(text)


@pytest.mark.parametrize(
    "text", ["", "order-4111111111111111", "41111111-11111111", "4111111111111112", "1763799000123456789", "4" * 41]
)
def test_a_key_that_has_the_digits_of_a_number_among_others_is_none(text: str) -> None:
    assert not is_card_alone(text)
