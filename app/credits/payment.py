"""`payment` of a top-up: what a body may say, and what becomes of it before anything is stored, logged or hashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import orjson
from msgspec import Meta

from app.credits.operation import Applied, Refused, Reused
from app.privacy.payment import Payment
from app.privacy.store import OtherPayment
from app.web.fields import Input

if TYPE_CHECKING:
    from app.credits.book import Book, Settled
    from app.privacy.store import Kept, PrivateStore
    from app.web.problems import Problem

NUMBER_PATTERN: Final = r"^[0-9](?:[ -]?[0-9]){12,18}\Z"  # 13 to 19 digits, as people group them
EXPIRY_PATTERN: Final = r"^(0[1-9]|1[0-2])/([0-9]{2}|20[0-9]{2})\Z"
NAME_CHARACTERS_MAX: Final = 100


class PaymentBody(Input, frozen=True):
    """Card data of a top-up. The verification code may be sent and is dropped at once."""

    holds_cards: ClassVar[bool] = True  # to `app.privacy.guard`: here a card number is in its place
    card_number: Annotated[str, Meta(pattern=NUMBER_PATTERN, description="13 to 19 digits.")]
    cvv: Annotated[str, Meta(pattern=r"^[0-9]{3,4}\Z", description="Never kept.")] | None = None
    cardholder_name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX, pattern=r"^[^\x00]*\Z")] | None = None
    expiry: Annotated[str, Meta(pattern=EXPIRY_PATTERN, description="MM/YY or MM/YYYY.")] | None = None

    def __repr__(self) -> str:
        """Show what may be shown."""
        return f"PaymentBody({payment_of(self).shown()})"


def payment_of(body: PaymentBody) -> Payment:
    """Return what may be kept of a body, the number without its separators. The verification code ends here."""
    number = "".join(filter(str.isdecimal, body.card_number))
    return Payment(number, body.cardholder_name, body.expiry)


def details_of(kept: Kept) -> str:
    """Return what the entry of a top-up says of its payment, as canonical JSON: commitment and id of the subject's key."""
    return f'{{"payment":"{kept.commitment.hex()}","private_key":"{kept.dek_id.hex()}"}}'


async def keep_payment(store: PrivateStore, fields: dict[str, Any], payment: Payment) -> Kept:
    """Keep the payment of a stamped top-up under the key of its tenant, and name it in the details of its entry.

    faults  OtherPayment; what `PrivateStore.keep` raises: then the operation must not be submitted
    """
    kept = await store.keep(fields["key"], fields["tenant"], fields["tenant"], payment, fields["fp"])
    fields["details"] = details_of(kept)
    return kept


async def settle_payment(store: PrivateStore, kept: Kept, outcome: Settled | Problem) -> None:
    """Destroy what was kept for a top-up unless an entry of the chain names it.

    The record of a key that an earlier request has used stays: it is that request's. So does one that was kept before the
    key could be used again: an entry of that time may name it.
    """
    if isinstance(outcome, Applied):
        named = orjson.loads(outcome.events[0].details or "{}").get("payment")
        if named == kept.commitment.hex():
            return
    if kept.made or (isinstance(outcome, Refused) and not kept.old):
        await store.forget(kept.record_id)


async def decide_with_payment(store: PrivateStore, book: Book, fields: dict[str, Any], body: PaymentBody) -> Settled:
    """Return the durable outcome of a top-up whose payment data is kept before it is applied.

    Another card under the same idempotency key is another request, although fingerprints tell nothing of cards.
    """
    try:
        kept = await keep_payment(store, fields, payment_of(body))
    except OtherPayment:
        book.tally.take(fields["op"], Reused())
        return Reused()
    outcome = await book.decide(fields)
    await settle_payment(store, kept, outcome)
    return outcome
