"""POST /v1/privacy/erasures: destroy what is known of a subject, and say so in the chain."""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from msgspec import Meta, Struct

from app.access.matrix import RIGHTS
from app.credits.api import CREDITS, store_of
from app.credits.permits import no_account, sees
from app.privacy.tombstones import enter_tombstones
from app.web.body import Body
from app.web.fields import Input
from app.web.request import Request
from app.web.routes import Handled, Route, json_answer

Subject = Annotated[str, Meta(pattern=r"^[^\x00]{1,128}\Z", description="Whose data is destroyed: a tenant.")]
Basis = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}\Z", description="Ground of the request, e.g. gdpr-17.")]


class ErasureRequest(Input, frozen=True):
    """Body of POST /v1/privacy/erasures."""

    subject: Subject
    basis: Basis = "gdpr-17"


class ErasureDone(Struct):
    """What was destroyed. Without an erasure id there was nothing of the subject, and nothing was entered."""

    erasure_id: str | None
    records: dict[str, int]


ERASURE: Final = Body(ErasureRequest)


async def erase(request: Request) -> Handled:
    """Destroy key and private rows of a subject, enter the tombstone; the subject is named in neither.

    A repeated call finds nothing more, so the call needs no Idempotency-Key. When the chain is out of reach after the
    destruction, the answer is 503 and the tombstone is entered later.
    """
    body = await ERASURE.read(request)
    if not sees(request, body.subject):
        raise no_account()
    store = store_of(request)
    erasure = await store.erase(body.subject, request_id=request.request_id, basis=body.basis)
    await enter_tombstones(store, request.app[CREDITS].record)
    records: dict[str, Any] = {} if erasure is None else orjson.loads(erasure.tombstone)["records"]
    return json_answer(orjson.dumps({"erasure_id": None if erasure is None else erasure.erasure_id, "records": records}))


PRIVACY_ROUTES: Final = (
    Route(
        "POST", "/v1/privacy/erasures", erase, summary="Destroy what is known of a subject", tag="privacy",
        body=ErasureRequest, answers={200: ErasureDone}, roles=RIGHTS["POST", "/v1/privacy/erasures"].roles,
        problems=((404, "no_account"), (503, "unavailable")),
    ),
)  # fmt: skip
