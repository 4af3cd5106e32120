"""`payment` of a top-up: what a body may say, and what becomes of it before anything is stored, logged or hashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from app.privacy.payment import Payment
from app.web.fields import Input

if TYPE_CHECKING:
    from app.credits.request import Fingerprints
    from app.privacy.store import Kept, PrivateStore

NUMBER_PATTERN: Final = r"^[0-9](?:[ -]?[0-9]){12,18}\Z"  # 13 to 19 digits, as people group them
EXPIRY_PATTERN: Final = r"^(0[1-9]|1[0-2])/([0-9]{2}|20[0-9]{2})\Z"
NAME_CHARACTERS_MAX: Final = 100


class PaymentBody(Input, frozen=True):
    """Card data of a top-up. The verification code may be sent and is dropped at once."""

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


def fingerprint_payment(fields: dict[str, Any], payment: Payment, fingerprints: Fingerprints) -> None:
    """Make the payment part of what is asked, as a keyed hash; call it before `Fingerprints.stamp`."""
    fields["payment"] = fingerprints.request(payment.canonical())


async def keep_payment(
    store: PrivateStore, fields: dict[str, Any], tenant: str, payment: Payment, subject: str | None = None
) -> Kept:
    """Keep the payment of a stamped operation and put what the chain says of it into the fields.

    Afterwards `fields["payment"]` is the commitment and `fields["private_key"]` the id of the subject's key, both hex: they
    belong into the `details` of the top-up's entry. The subject is the tenant unless another one is named.
    faults  what `PrivateStore.keep` raises; then the operation must not be submitted
    """
    kept = await store.keep(fields["key"], tenant, subject or tenant, payment)
    fields["payment"], fields["private_key"] = kept.commitment.hex(), kept.dek_id.hex()
    return kept
